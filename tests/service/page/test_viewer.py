"""What the viewer tells of an image beside its settings: its receipt, and whether it came from the cache."""

import json
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import expect

from tests.conftest import ValkeyHandle
from tests.service.drawing_worker import DrawingWorker
from tests.service.fake_worker import FakeWorker
from tests.service.page.conftest import Visit
from tests.service.page.test_page import take
from tests.service.test_jobs import poll
from worker.contract.keys import TOTALS_KEY


def test_the_receipt_is_a_file_to_keep(visit: Callable[..., Visit], worker: FakeWorker) -> None:
    page = (opened := visit()).page
    page.get_by_label("Seed", exact=True).fill("41")
    opened.draw()
    worker.succeed(take(worker), receipt=json.dumps({"format": "reverie-receipt/1"}))
    opened.jobs.first.get_by_role("button").filter(has=page.get_by_role("img")).first.click()
    dialog = page.get_by_role("dialog")
    with page.expect_download() as download:
        dialog.get_by_role("link", name="Receipt").click()
    assert download.value.suggested_filename == "digits-41-receipt.json"
    assert json.loads(Path(download.value.path()).read_text()) == {"format": "reverie-receipt/1"}
    expect(dialog).not_to_contain_text("from the cache")


def test_what_came_from_the_cache_says_so(visit: Callable[..., Visit], valkey: ValkeyHandle) -> None:
    page = (opened := visit()).page
    with DrawingWorker(valkey) as drawing:
        page.get_by_label("Seed", exact=True).fill("41")
        for count in (1, 2):
            opened.draw()
            expect(opened.jobs).to_have_count(count)
            poll(lambda: valkey.client.hget(TOTALS_KEY, "submitted:digits"))
            drawing.draw_all()
            expect(opened.jobs.first.get_by_role("img")).to_have_count(4)
        assert drawing.drawn == 1
    expect(opened.jobs.nth(1)).not_to_contain_text("from the cache")
    expect(opened.jobs.first).to_contain_text("from the cache")
    expect(page.locator("#toast")).to_have_text("From the cache")
    opened.jobs.first.get_by_role("button").filter(has=page.get_by_role("img")).first.click()
    expect(page.get_by_role("dialog")).to_contain_text("from the cache: an equal request had drawn it")
    expect(page.get_by_role("dialog").get_by_role("link", name="Receipt")).to_have_count(0)

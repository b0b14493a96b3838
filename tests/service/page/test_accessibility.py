"""axe-core finds nothing serious in any state of the page, at any width and in both schemes."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Page, expect

from tests.service.fake_worker import OUT_OF_MEMORY, FakeWorker
from tests.service.page.conftest import Visit
from tests.service.page.test_page import take

VENDOR = Path(__file__).parent / "vendor"
AXE = VENDOR / "axe.min.js"
SCHEMES: tuple[Literal["light"], Literal["dark"]] = ("light", "dark")


def findings(page: Page) -> list[str]:
    """What axe-core calls serious or critical, each with the first element that it is about."""
    page.evaluate(AXE.read_text())
    result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{violation['id']}: {violation['nodes'][0]['html'][:160]} ({violation['nodes'][0].get('failureSummary')})"
        for violation in result["violations"]
        if violation["impact"] in ("serious", "critical")
    ]


def test_axe_is_the_file_that_its_note_names() -> None:
    (noted,) = re.findall(r"[0-9a-f]{64}", (VENDOR / "README.md").read_text())
    assert hashlib.sha256(AXE.read_bytes()).hexdigest() == noted


def test_nothing_serious_is_found(visit: Callable[..., Visit], worker: FakeWorker) -> None:
    """One visit, looked at in each of its states at both widths and in both schemes."""
    opened = visit()
    page, found = opened.page, dict[tuple[str, int, str], list[str]]()

    def look(state: str) -> None:
        for width in (390, 1280):
            page.set_viewport_size({"width": width, "height": 860})
            for scheme in SCHEMES:
                page.emulate_media(color_scheme=scheme)
                # A colour that is on its way to another is neither scheme's.
                page.evaluate("Promise.allSettled(document.getAnimations().map(animation => animation.finished))")
                found[state, width, scheme] = findings(page)

    look("empty")

    opened.choose("two")
    opened.draw()
    worker.succeed(take(worker), warnings=["the end of the prompt was cut"])
    opened.draw()
    worker.fail(take(worker), OUT_OF_MEMORY.model_dump_json())
    opened.draw()
    worker.report(take(worker), 4)
    opened.draw()
    expect(opened.jobs).to_have_count(4)
    expect(opened.jobs.nth(1)).to_contain_text("4 / 50")
    page.locator("#finer summary").click()
    page.get_by_role("button", name="Watch training").click()
    worker.take()
    page.wait_for_timeout(3500)  # until the toasts are gone
    look("jobs")

    page.get_by_label("Steps", exact=True).fill("0")
    opened.draw()
    expect(page.get_by_label("Steps", exact=True)).to_have_attribute("aria-invalid", "true")
    look("error")

    page.get_by_label("Model", exact=True).select_option("emoji")
    page.locator("#negative summary").click()
    look("prompt")

    opened.jobs.nth(3).get_by_role("button").filter(has=page.get_by_role("img")).first.click()
    expect(page.get_by_role("dialog")).to_be_visible()
    look("viewer")
    assert len(found) == 5 * 2 * 2
    assert [(place, problems) for place, problems in found.items() if problems] == []


def test_nothing_moves_for_who_asked_for_that(visit: Callable[..., Visit], worker: FakeWorker) -> None:
    opened = visit()
    opened.draw()
    expect(opened.jobs).to_have_count(1)
    longest = opened.page.evaluate(
        "Math.max(...document.getAnimations().map(a => a.effect.getComputedTiming().endTime), 0)"
    )
    assert longest <= 1


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_is_wider_than_the_window(visit: Callable[..., Visit], worker: FakeWorker, width: int) -> None:
    opened = visit(width=width)
    opened.draw()
    worker.succeed(take(worker))
    expect(opened.jobs.first.get_by_role("img")).to_have_count(4)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    opened.jobs.first.get_by_role("button").filter(has=opened.page.get_by_role("img")).first.click()
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width

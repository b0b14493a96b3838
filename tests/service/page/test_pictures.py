"""Beginning at a picture: dropped in any size, painted over, and used again."""

import io
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.service.fake_worker import FakeWorker, request_of
from tests.service.page.conftest import Visit
from tests.service.page.test_accessibility import findings
from tests.service.page.test_page import take
from tests.service.servers import RunningGateway


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Grey above, dark below, and twice as wide as what is drawn."""
    path = tmp_path / "photo.png"
    picture = Image.new("RGB", (40, 20), (200, 200, 200))
    picture.paste((20, 20, 20), (0, 10, 40, 20))
    picture.save(path)
    return path


def test_a_picture_and_its_mask_are_what_the_request_begins_at(
    visit: Callable[..., Visit], worker: FakeWorker, gateway: RunningGateway, photo: Path
) -> None:
    opened = visit()
    page = opened.page
    page.get_by_label("Begin at a picture").set_input_files(photo)
    expect(page.get_by_role("img", name="The picture to begin at")).to_be_visible()
    assert findings(page) == []
    page.get_by_label("How much of it changes").fill("0.5")
    page.get_by_label("Keep the other pixels exactly").check()
    page.get_by_label("Paint over what is to be drawn anew").fill("60")
    mask = page.locator("canvas.mask")
    mask.scroll_into_view_if_needed()
    box = mask.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + 2, steps=12)
    page.mouse.up()
    opened.draw()
    job = take(worker)
    init = request_of(job).init
    assert init is not None
    assert (init.strength, init.paste_back) == (0.5, True)
    picture, painted = (uploaded(gateway, sha256) for sha256 in (init.picture, init.mask))
    assert picture.size == painted.size == (8, 8), "as large as the model draws"
    assert [picture.getpixel((4, y)) for y in (0, 7)] == [200, 20]
    assert [painted.getpixel((4, y)) for y in (0, 7)] == [255, 0]

    worker.succeed(job)
    opened.jobs.first.get_by_role("button").filter(has=page.get_by_role("img")).first.click()
    page.get_by_role("button", name="Remove picture").evaluate("button => button.click()")
    page.get_by_role("button", name="Reuse settings").click()
    expect(page.get_by_role("img", name="The picture to begin at")).to_be_visible()
    opened.draw()
    again = request_of(take(worker)).init
    assert again is not None
    assert (again.picture, again.mask, again.strength) == (init.picture, init.mask, init.strength)


def test_a_mask_is_painted_and_erased_by_keys(
    visit: Callable[..., Visit], worker: FakeWorker, gateway: RunningGateway, photo: Path
) -> None:
    opened = visit()
    page = opened.page
    page.get_by_label("Begin at a picture").set_input_files(photo)
    mask = page.get_by_role("application", name="Mask: arrow keys move the brush")
    assert (mask.bounding_box() or {"width": 0})["width"] > 200, "as large as a hand needs, however few its pixels"
    place = page.locator("#pictures").get_by_role("status")
    page.get_by_label("How much of it changes").focus()
    expect(page.locator(".brush")).to_be_hidden()
    page.keyboard.press("Shift+Tab")
    expect(mask).to_be_focused()
    expect(page.locator(".brush")).to_be_visible()
    for key in ("ArrowUp", "ArrowLeft"):
        for _ in range(5):
            page.keyboard.press(key)
    expect(place).to_have_text("Column 1 of 8, row 1 of 8: kept")
    page.keyboard.down("Space")
    expect(place).to_have_text("Column 1 of 8, row 1 of 8: painted")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.keyboard.up("Space")
    page.keyboard.press("ArrowRight")
    expect(place).to_have_text("Column 5 of 8, row 1 of 8: kept")
    page.keyboard.press("Shift+ArrowLeft")
    expect(place).to_have_text("Column 4 of 8, row 1 of 8: painted")
    page.get_by_role("button", name="Erase").press("Space")
    expect(page.get_by_role("button", name="Erase")).to_have_attribute("aria-pressed", "true")
    mask.press("Space")
    assert findings(page) == []
    page.keyboard.press("Control+Enter")
    init = request_of(take(worker)).init
    assert init is not None
    painted = uploaded(gateway, init.mask)
    assert [painted.getpixel((x, 0)) for x in range(5)] == [255, 255, 0, 0, 0]
    assert [painted.getpixel((x, 1)) for x in range(5)] == [0] * 5

    mask.focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("Space")
    page.keyboard.press("Control+Enter")
    init = request_of(take(worker)).init
    assert init is not None
    assert init.mask is None, "nothing is painted any more"


def uploaded(gateway: RunningGateway, sha256: str | None) -> Image.Image:
    return Image.open(io.BytesIO(httpx.get(f"{gateway.url}/uploads/{sha256}").raise_for_status().content)).convert("L")


def test_what_is_no_picture_is_said(visit: Callable[..., Visit], tmp_path: Path) -> None:
    page = visit().page
    (tmp_path / "notes.txt").write_text("no picture")
    page.get_by_label("Begin at a picture").set_input_files(tmp_path / "notes.txt")
    expect(page.locator("#toast")).to_contain_text("notes.txt is no picture")

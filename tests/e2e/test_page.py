"""The page before the whole product: noise is seen turning into images that a real worker draws."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Locator, expect

from tests.chromium import launched_chromium
from tests.e2e.conftest import Stack

pytestmark = pytest.mark.slow

PATIENCE_MS = 200_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched_chromium() as chromium:
        yield chromium


def assert_shown(image: Locator) -> None:
    """Eight pixels wide, once it is loaded."""
    image.scroll_into_view_if_needed()
    expect(image).to_have_js_property("naturalWidth", 8, timeout=PATIENCE_MS)


def test_an_image_is_seen_on_its_way_drawn_and_played(stack: Stack, browser: Browser) -> None:
    page = browser.new_page(reduced_motion="reduce")
    page.set_default_timeout(PATIENCE_MS)
    page.goto(str(stack.http.base_url))
    page.locator("#labels label").filter(has_text="3").click()
    page.get_by_label("Steps", exact=True).fill("300")
    page.get_by_label("Images", exact=True).fill("8")
    page.get_by_label("Keep noise turning into the image").check()
    page.locator("#finer summary").click()
    page.get_by_label("Sampler", exact=True).select_option("ddpm")
    page.get_by_role("button", name="Draw 8 images").click()
    preview = page.get_by_alt_text("Image 8 on its way")
    expect(preview).to_be_visible(timeout=PATIENCE_MS)
    assert_shown(preview)
    images = page.locator("#gallery").get_by_role("button").get_by_role("img")
    expect(images).to_have_count(8, timeout=PATIENCE_MS)
    for image in images.all():
        assert_shown(image)
    images.last.click()
    page.get_by_role("button", name="Noise to image").click()
    assert_shown(page.get_by_role("dialog").get_by_role("img"))

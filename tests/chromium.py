"""A real Chromium, driven by Playwright; Playwright's own downloads are not used."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")


@contextmanager
def launched_chromium() -> Iterator[Browser]:
    """Skips the test where there is none. Not for a whole session: Playwright's loop is in the way of asyncio's."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs Chromium: apt install chromium")
    with sync_playwright() as playwright:
        # No sandbox: containers often run as root and without user namespaces.
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()

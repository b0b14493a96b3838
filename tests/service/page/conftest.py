"""The page in a real browser, before a real gateway whose worker does what the test says."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

import numpy as np
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, expect

from service.settings import Settings
from tests.chromium import launched_chromium
from tests.conftest import ValkeyHandle
from tests.service.fake_worker import FakeWorker
from tests.service.servers import RunningGateway
from worker.contract import ImageFormat
from worker.outputs.image_files import encode

expect.set_options(timeout=20_000)

DRAW = re.compile("^Draw")


def png_of(seed: int) -> bytes:
    """8x8 pixels, of one grey."""
    return encode(np.full((8, 8, 1), seed % 256, np.uint8), ImageFormat.PNG).data


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched_chromium() as chromium:
        yield chromium


@pytest.fixture
def worker(valkey: ValkeyHandle) -> FakeWorker:
    worker = FakeWorker(valkey.client)
    worker.file_of = png_of
    worker.announce()
    return worker


@pytest.fixture
def gateway(worker: FakeWorker, valkey: ValkeyHandle) -> Iterator[RunningGateway]:
    with RunningGateway(Settings(redis_url=valkey.url)) as running:
        yield running


@dataclass
class Visit:
    """One open page, and what went wrong in it."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    hosts: set[str | None] = field(default_factory=set)

    def choose(self, label: str) -> None:
        self.page.locator("#labels label").filter(has_text=label).click()

    def draw(self) -> None:
        self.page.get_by_role("button", name=DRAW).click()

    @property
    def jobs(self) -> Locator:
        return self.page.locator("#gallery > .job")


@pytest.fixture
def visit(browser: Browser, gateway: RunningGateway) -> Iterator[Callable[..., Visit]]:
    """Opens the page; at the end nothing of it may have complained or gone elsewhere."""
    visits: list[Visit] = []

    def open_page(*, width: int = 1280, height: int = 860, scheme: Literal["light", "dark"] = "light") -> Visit:
        context = browser.new_context(
            viewport={"width": width, "height": height}, reduced_motion="reduce", color_scheme=scheme
        )
        visit = Visit(context.new_page())
        visits.append(visit)
        visit.page.on("pageerror", lambda error: visit.complaints.append(str(error)))
        visit.page.on("console", lambda message: note(visit, message))
        visit.page.on("request", lambda request: visit.hosts.add(urlsplit(request.url).hostname))
        visit.page.goto(gateway.url)
        expect(visit.page.get_by_role("button", name=DRAW)).to_be_enabled()
        return visit

    def note(visit: Visit, message: ConsoleMessage) -> None:
        # The browser itself complains of each answer that is an error; those are the tests' own.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            visit.complaints.append(message.text)

    yield open_page
    for visit in visits:
        visit.page.context.close()
        assert visit.complaints == []
        assert visit.hosts <= {"127.0.0.1", None}, "the page asks nobody but its gateway"

"""The first commands of the README, on what comes with the package: a prompt, and the default model draws it.

What it draws is no matter here: any version of the bundled model will do.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.chromium import launched_chromium
from tests.waiting import PATIENCE_S, wait_until
from worker.store import BUNDLED_DEFAULT_MODEL, ModelStore, bundled_store_path

STORE = ModelStore(bundled_store_path())
LOADED_WITHIN_S = 600
"""Kernels are compiled and measured for two networks, on whatever machine."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3 * LOADED_WITHIN_S),
    pytest.mark.skipif(BUNDLED_DEFAULT_MODEL not in STORE.models(), reason="the default model is not bundled"),
]
REVERIE = [sys.executable, "-m", "service.launcher.cli"]


@dataclass
class Started:
    """What `make run` leaves running."""

    http: httpx.Client
    folder: Path
    environment: dict[str, str]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """`reverie up --draw` as `make run` calls it."""
    folder = tmp_path_factory.mktemp("quickstart")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("REVERIE_")}
    environment |= {"REVERIE_DATA_DIR": str(folder / "data"), "REVERIE_PORT": str(port)}
    environment |= {"REVERIE_READY_TIMEOUT_S": str(LOADED_WITHIN_S)}
    command = [*REVERIE, "up", "--draw", str(folder / "first")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_until(
            lambda: "Ctrl-C ends it" in (folder / "log").read_text() or process.poll() is not None,
            "it to be ready",
            timeout_s=LOADED_WITHIN_S,
        )
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
            yield Started(http, folder, environment | {"REVERIE_URL": url})
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(PATIENCE_S)
    assert code == 0, (folder / "log").read_text()


def test_the_first_image_is_drawn_from_a_prompt(started: Started) -> None:
    (path,) = wait_until(lambda: list((started.folder / "first").glob("*.png")), "the first image")
    assert path.name.startswith(f"{BUNDLED_DEFAULT_MODEL}-seed7")
    examples = STORE.checkpoint(BUNDLED_DEFAULT_MODEL).manifest.example_prompts
    wait_until(lambda: _opens(path), "its file to be whole")
    with Image.open(path) as image:
        assert examples[0] in str(image.text), "its receipt"  # type: ignore[attr-defined]


def test_a_request_of_a_prompt_alone_is_drawn_by_the_default_model(started: Started) -> None:
    assert started.http.get("/models").json()["default"] == BUNDLED_DEFAULT_MODEL
    job = started.http.post("/generate", json={"prompt": "blue apple"}, headers={"Prefer": "wait=60"}).json()
    wait_until(lambda: started.http.get(f"/jobs/{job['id']}").json()["status"] == "succeeded", "the job to succeed")
    done = started.http.get(f"/jobs/{job['id']}").json()
    current, manifest = STORE.current(BUNDLED_DEFAULT_MODEL), STORE.checkpoint(BUNDLED_DEFAULT_MODEL).manifest
    assert (done["model"], done["version"], done["prompt"]) == (BUNDLED_DEFAULT_MODEL, current, "blue apple")
    assert (done["batch"], done["steps"]) == (1, manifest.request_defaults.steps or 50)
    assert (done["images"][0]["width"], done["images"][0]["height"]) == (manifest.width, manifest.height)


def test_the_second_command_draws_a_prompt_and_digits_are_there_by_name(started: Started) -> None:
    def drawn(*options: str) -> Path:
        out = started.folder / "drawn"
        command = [*REVERIE, "generate", *options, "--steps", "5", "--seed", "1", "--out", str(out)]
        done = subprocess.run(command, env=started.environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return Path(done.stdout.strip())

    prompted, digit = drawn("--prompt", "blue apple"), drawn("--model", "digits", "--label", "3")
    assert prompted.name.startswith(BUNDLED_DEFAULT_MODEL)
    assert digit.name.startswith("digits")
    with Image.open(digit) as image:
        assert image.size == (8, 8)


def test_the_page_opens_with_a_prompt_to_draw(started: Started) -> None:
    with launched_chromium() as browser:
        page = browser.new_page(reduced_motion="reduce")
        page.set_default_timeout(PATIENCE_S * 1000)
        page.goto(str(started.http.base_url))
        expect(page.get_by_label("Model", exact=True)).to_have_value(BUNDLED_DEFAULT_MODEL)
        expect(page.get_by_label("Prompt", exact=True)).not_to_have_value("")
        page.get_by_label("Images", exact=True).fill("1")
        page.get_by_role("button", name="Draw", exact=True).click()
        image = page.locator("#gallery").get_by_role("button").get_by_role("img")
        width = STORE.checkpoint(BUNDLED_DEFAULT_MODEL).manifest.width
        expect(image).to_have_js_property("naturalWidth", width, timeout=PATIENCE_S * 1000)


def _opens(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            image.load()
    except OSError:
        return False
    return True

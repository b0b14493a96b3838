"""What /jobs/{id}/grid and /jobs/{id}/animation promise: all images at once, in order, still or moving."""

import io

import httpx
import numpy as np
import pytest
from PIL import Image, ImageSequence

from tests.conftest import ValkeyHandle
from tests.service.fake_worker import FakeWorker
from tests.service.test_jobs import submit
from worker.contract import ImageFormat
from worker.outputs.image_files import encode


@pytest.fixture
def worker(worker: FakeWorker) -> FakeWorker:
    worker.file_of = lambda seed: encode(np.full((8, 8, 1), seed % 256, np.uint8), ImageFormat.PNG).data
    return worker


def succeeded(http: httpx.Client, worker: FakeWorker, **changes: object) -> str:
    job_id = submit(http, seed=100, **changes)
    worker.succeed(worker.take())
    return f"/jobs/{job_id}"


def grey_at(sheet: Image.Image, column: int, row: int, side: int, gap: int) -> object:
    return sheet.convert("L").getpixel((column * (side + gap) + side // 2, row * (side + gap) + side // 2))


@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_a_grid_shows_every_image_in_rows(http: httpx.Client, worker: FakeWorker, image_format: str) -> None:
    answer = http.get(f"{succeeded(http, worker, batch=5)}/grid?format={image_format}")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, f"image/{image_format}")
    sheet = Image.open(io.BytesIO(answer.content))
    gap = round(64 / 24)
    assert sheet.size == (3 * 64 + 2 * gap, 2 * 64 + gap), "8x8 pixels, each enlarged to a square"
    assert [grey_at(sheet, i % 3, i // 3, 64, gap) for i in range(6)] == [100, 101, 102, 103, 104, 255]
    again = http.get(answer.request.url, headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    ("ask", "accept", "kind"),
    [
        ("", "*/*", "webp"),
        ("", "image/gif", "gif"),
        ("", "image/png, image/apng;q=0.9, */*", "apng"),
        ("?format=gif", "image/webp", "gif"),
        ("?format=apng", "", "apng"),
        ("?image=1", "", "webp"),
        ("?image=1&format=gif", "", "gif"),
    ],
)
def test_an_animation_plays_every_moment_and_ends_on_the_image(
    http: httpx.Client, worker: FakeWorker, ask: str, accept: str, kind: str
) -> None:
    url = f"{succeeded(http, worker, batch=2, frames=4)}/animation{ask}"
    answer = http.get(url, headers={"Accept": accept})
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, f"image/{kind}")
    with Image.open(io.BytesIO(answer.content)) as moving:
        assert moving.format == {"webp": "WEBP", "gif": "GIF", "apng": "PNG"}[kind]
        frames = [frame.convert("L") for frame in ImageSequence.Iterator(moving)]
    assert len(frames) == 4
    alone = "image" in ask
    first = [frame.getpixel((3, 3)) for frame in frames]
    assert first == pytest.approx([10, 20, 30, 101 if alone else 100], abs=2)
    if not alone:
        assert frames[3].getpixel((frames[3].width - 4, 3)) == pytest.approx(101, abs=2)


def test_what_was_not_asked_for_is_not_there(http: httpx.Client, worker: FakeWorker) -> None:
    url = succeeded(http, worker)
    answer = http.get(f"{url}/animation")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert "ask for them with `frames`" in answer.json()["detail"]
    assert http.get(url).json()["links"]["animation"] is None


def test_a_job_that_is_not_done_has_neither(http: httpx.Client, worker: FakeWorker) -> None:
    job_id = submit(http, frames=4)
    for name in ("grid", "animation"):
        assert http.get(f"/jobs/{job_id}/{name}").status_code == 409


def test_both_expire_with_the_images(http: httpx.Client, worker: FakeWorker, valkey: ValkeyHandle) -> None:
    url = succeeded(http, worker, frames=4)
    for name in ("grid", "animation"):
        assert 0 < int(http.get(f"{url}/{name}").headers["Cache-Control"].split("max-age=")[1].split(",")[0]) <= 3600
    for key in valkey.client.scan_iter("reverie:file:*"):
        valkey.client.delete(key)
    for name in ("grid", "animation"):
        answer = http.get(f"{url}/{name}")
        assert (answer.status_code, answer.json()["code"]) == (410, "image_expired")


@pytest.mark.parametrize(
    ("fields", "rule"),
    [({"frames": 25}, "less than or equal to 24"), ({"frames": 24, "batch": 17}, "need frames * batch <= 384")],
)
def test_frames_are_bounded(http: httpx.Client, worker: FakeWorker, fields: dict[str, int], rule: str) -> None:
    answer = http.post("/generate", json={"steps": 5, "batch": 1, **fields})
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["field"] == "frames"
    assert rule in error["rule"]

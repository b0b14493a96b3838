"""Images and uploads in a folder or in S3, as clients see them: there, away, and back."""

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image, ImageSequence

from service.errors import PROBLEM_MEDIA_TYPE
from tests.conftest import ValkeyHandle
from tests.s3_server import BUCKET, S3Server
from tests.service.fake_worker import FakeWorker
from tests.waiting import wait_until
from worker.contract import ImageFormat
from worker.outputs.image_files import encode
from worker.results.places import open_files

S3 = f"s3://{BUCKET}/reverie"


def draw(http: httpx.Client, worker: FakeWorker) -> tuple[str, list[bytes]]:
    job_id = str(http.post("/generate", json={"seed": 5, "steps": 10, "batch": 2, "frames": 2}).json()["id"])
    return job_id, worker.succeed(worker.take())


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.frombytes("RGB", (4, 4), os.urandom(48)).save(buffer, "PNG")
    return buffer.getvalue()


def upload(http: httpx.Client) -> httpx.Response:
    return http.post("/uploads", content=picture(), headers={"Content-Type": "image/png"})


def assert_unavailable(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.headers["Content-Type"]) == (503, PROBLEM_MEDIA_TYPE), answer.text
    assert answer.json()["code"] == "results_unavailable"
    assert int(answer.headers["Retry-After"]) > 0


@dataclass(frozen=True)
class Kept:
    """A gateway whose worker keeps its images where `in_s3` says."""

    http: httpx.Client
    in_s3: bool


@pytest.fixture(params=["folder", "s3"])
def kept(
    request: pytest.FixtureRequest,
    worker: FakeWorker,
    start_gateway: Callable[..., httpx.Client],
    valkey: ValkeyHandle,
    tmp_path: Path,
) -> Kept:
    in_s3 = request.param == "s3"
    if in_s3:
        request.getfixturevalue("s3")
    address = S3 if in_s3 else f"file://{tmp_path}/kept"
    worker.files = open_files(address, valkey.client)
    return Kept(start_gateway(results=address), in_s3)


def test_images_come_from_where_they_are_kept(kept: Kept, worker: FakeWorker, valkey: ValkeyHandle) -> None:
    http = kept.http
    job_id, images = draw(http, worker)
    assert [http.get(f"/jobs/{job_id}/images/{index}").content for index in range(2)] == images
    first = http.get(f"/jobs/{job_id}/images/0", params={"redirect": 1})
    if kept.in_s3:
        assert first.status_code == 307
        assert first.headers["Cache-Control"] == "no-store"
        elsewhere = httpx.get(first.headers["Location"])
        assert (elsewhere.content, elsewhere.headers["Content-Type"]) == (images[0], "image/png")
    else:
        assert (first.status_code, first.content) == (200, images[0])
    etag = http.get(f"/jobs/{job_id}/images/0").headers["ETag"]
    assert http.get(f"/jobs/{job_id}/images/0", headers={"If-None-Match": etag}).status_code == 304
    for key in valkey.all_keys():
        if job_id in key and ":kept:" in key:
            valkey.client.delete(key)
    for params in ({}, {"redirect": 1}):
        assert http.get(f"/jobs/{job_id}/images/0", params=params).status_code == 410
    answer = upload(http)
    assert Image.open(io.BytesIO(http.get(answer.json()["url"]).content)).size == (4, 4)


def test_frames_and_sheets_come_from_where_they_are_kept(kept: Kept, worker: FakeWorker, valkey: ValkeyHandle) -> None:
    http = kept.http
    worker.file_of = lambda seed: encode(np.full((8, 8, 1), seed % 256, np.uint8), ImageFormat.PNG).data
    job = http.post("/generate", json={"seed": 100, "steps": 10, "batch": 2, "frames": 4}).json()
    worker.succeed(worker.take())
    links = http.get(job["links"]["self"]).json()["links"]
    with Image.open(io.BytesIO(http.get(links["animation"]).raise_for_status().content)) as moving:
        first = [frame.convert("L").getpixel((3, 3)) for frame in ImageSequence.Iterator(moving)]
    assert first == pytest.approx([10, 20, 30, 100], abs=2)
    with Image.open(io.BytesIO(http.get(links["grid"]).raise_for_status().content)) as sheet:
        assert sheet.convert("L").getpixel((3, 3)) == 100
    assert not [key for key in valkey.all_keys() if ":file:" in key], "Redis holds no bytes of images"
    for key in valkey.all_keys():
        if job["id"] in key and ":kept:" in key:
            valkey.client.delete(key)
    assert [http.get(links[name]).status_code for name in ("animation", "grid")] == [410, 410]


def test_while_s3_is_gone_images_and_uploads_are_503_and_everything_else_works(
    worker: FakeWorker, start_gateway: Callable[..., httpx.Client], valkey: ValkeyHandle, s3: S3Server
) -> None:
    http = start_gateway(results=S3)
    worker.files = open_files(S3, valkey.client)
    job_id, _ = draw(http, worker)
    s3.stop()
    assert_unavailable(http.get(f"/jobs/{job_id}/images/0"))
    assert_unavailable(http.get(f"/jobs/{job_id}/grid"))
    assert_unavailable(http.get(f"/jobs/{job_id}/animation"))
    assert_unavailable(upload(http))
    assert http.get(f"/jobs/{job_id}").json()["status"] == "succeeded"
    assert http.post("/generate", json={"steps": 3, "batch": 1}).status_code == 202
    s3.reset()
    wait_until(lambda: upload(http).status_code == 201, "the upload to be taken")


def test_a_folder_that_can_not_be_written_is_503_and_then_taken_again(
    worker: FakeWorker, start_gateway: Callable[..., httpx.Client], tmp_path: Path
) -> None:
    http = start_gateway(results=f"file://{tmp_path}/kept")
    in_the_way = tmp_path / "kept" / "uploads"
    in_the_way.write_bytes(b"a file where a folder must be")
    assert_unavailable(upload(http))
    in_the_way.unlink()
    assert upload(http).status_code == 201

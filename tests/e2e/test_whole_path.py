"""The promise of the product, kept by real processes over real HTTP."""

import hashlib
import io
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from tests.e2e.conftest import Stack

pytestmark = pytest.mark.slow


def pixels(png: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        image.load()
        return np.asarray(image, dtype=np.uint8)


def test_ten_digits_by_label_come_back_as_png_and_again_with_the_same_pixels(stack: Stack) -> None:
    def draw_all() -> list[bytes]:
        ids = [stack.generate(seed=7, steps=50, batch=1, class_label=digit) for digit in range(10)]
        return [png for job_id in ids for png in stack.images(stack.finished(job_id))]

    first, again = draw_all(), draw_all()
    assert len(first) == 10
    assert all(pixels(png).shape == (8, 8) for png in first)
    assert [pixels(png).tobytes() for png in first] == [pixels(png).tobytes() for png in again]
    assert len({pixels(png).tobytes() for png in first}) == 10, "ten labels gave fewer than ten different images"


@pytest.mark.skipif(sys.platform != "linux", reason="reads what a process has loaded from /proc")
def test_a_worker_does_not_wait_for_the_packages_of_training(stack: Stack) -> None:
    """diffusers imports scipy where it finds it, and it is here."""
    stack.finished(stack.generate(seed=1, steps=1))
    loaded = Path(f"/proc/{stack.worker.process.pid}/maps").read_text()
    assert "/torch/" in loaded
    assert "/scipy/" not in loaded


def test_the_cache_answers_with_the_pixels_of_a_fresh_draw(stack: Stack) -> None:
    body = {"seed": 11, "steps": 20, "batch": 3, "class_label": 6}
    drawn = stack.finished(stack.generate(**body))
    answer = stack.http.post("/generate", json=body)
    cached = answer.json()
    assert (answer.status_code, cached["cached"], cached["images"] != drawn["images"]) == (200, True, True)
    anew = stack.finished(stack.generate(**body))
    assert [job["cached"] for job in (drawn, anew)] == [False, False]
    first, kept, again = ([pixels(png).tobytes() for png in stack.images(job)] for job in (drawn, cached, anew))
    assert first == kept == again
    assert len(set(kept)) == 3
    assert f"torch {version('torch')}" in stack.worker_status().arithmetic, "the cache is of this arithmetic alone"


def test_the_job_names_the_hash_of_the_pixels_that_it_serves(stack: Stack) -> None:
    job = stack.finished(stack.generate(seed=40, steps=10, batch=3, class_label=3))
    records = job["images"]
    assert isinstance(records, list)
    for record, png in zip(records, stack.images(job), strict=True):
        assert hashlib.sha256(pixels(png).tobytes()).hexdigest() == record["sha256"]
    assert [record["seed"] for record in records] == [40, 41, 42]


def test_a_classifier_of_real_digits_reads_what_was_asked_for(stack: Stack) -> None:
    digits = load_digits()
    classifier = SVC(gamma="scale").fit(digits.data, digits.target)
    with ThreadPoolExecutor(10) as pool:
        jobs = pool.map(
            lambda d: stack.finished(stack.generate(seed=1000, steps=20, batch=20, class_label=d)), range(10)
        )
    right = 0
    for digit, job in enumerate(jobs):
        drawn = np.stack([pixels(png) for png in stack.images(job)]).reshape(20, 64)
        right += int((classifier.predict(drawn / 255.0 * 16.0) == digit).sum())
    assert right >= 180, f"{right} of 200 images were read as asked"


def test_an_uploaded_picture_is_begun_at_and_kept_where_the_mask_is_dark(stack: Stack) -> None:
    drawn = stack.images(stack.finished(stack.generate(seed=3, steps=20, batch=1, class_label=3)))[0]
    dark = np.zeros((8, 8), dtype=np.uint8)
    dark[:, 4:] = 255
    mask = io.BytesIO()
    Image.fromarray(dark).save(mask, "PNG")

    def upload(png: bytes) -> str:
        answer = stack.http.post("/uploads", content=png, headers={"Content-Type": "image/png"}).raise_for_status()
        return str(answer.json()["sha256"])

    names = {"init_image": upload(drawn), "mask": upload(mask.getvalue())}
    jobs = [
        stack.finished(stack.generate(seed=5, steps=20, batch=2, class_label=8, strength=strength, **names))
        for strength in (0.6, 0.6, 1.0)
    ]
    first, again, other = ([pixels(png) for png in stack.images(job)] for job in jobs)
    assert [image.tobytes() for image in first] == [image.tobytes() for image in again]
    assert first[0].tobytes() not in (first[1].tobytes(), other[0].tobytes())
    for image in (*first, *other):
        assert np.array_equal(image[:, :4], pixels(drawn)[:, :4])
    assert jobs[0]["progress"] == {"step": 12, "steps": 12}


def test_requests_of_different_length_and_sampler_share_a_batch_and_keep_their_pixels(stack: Stack) -> None:
    bodies: list[dict[str, object]] = [
        {"seed": 5, "steps": 90, "batch": 3, "sampler": "ddpm", "class_label": 4},
        {"seed": 90, "steps": 70, "batch": 2, "sampler": "ddim", "class_label": 8},
        {"seed": 17, "steps": 60, "batch": 1, "sampler": "dpmpp_2m"},
    ]
    alone = [drawn(stack, stack.generate(**body)) for body in bodies]

    deadline = time.monotonic() + 60
    while True:  # short jobs may miss one another on a busy machine
        with ThreadPoolExecutor(len(bodies)) as pool:
            together = list(pool.map(lambda body: stack.generate(**body), bodies))
        assert [drawn(stack, job_id) for job_id in together] == alone
        seen = stack.worker_status().counters  # as of the worker's last heartbeat
        if min(seen.requests_in_batch_max, seen.step_counts_in_batch_max, seen.samplers_in_batch_max) >= 2:
            return
        assert time.monotonic() < deadline, f"no two of them shared a batch: {seen}"


def drawn(stack: Stack, job_id: str) -> list[bytes]:
    return [pixels(png).tobytes() for png in stack.images(stack.finished(job_id))]

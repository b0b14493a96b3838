"""What a full queue promises: 429 with a time to come back, and no lasting error in its count."""

from collections.abc import Callable

import httpx
import pytest

from tests.service.fake_worker import FakeWorker

BODY = {"steps": 10, "batch": 2}  # 20 image-steps


def test_a_queue_full_of_work_is_429_with_a_measured_retry_after(
    worker: FakeWorker, start_gateway: Callable[..., httpx.Client]
) -> None:
    worker.announce(row_step_s={"digits": 0.2})
    http = start_gateway(max_queue=50)
    assert [http.post("/generate", json=BODY).status_code for _ in range(2)] == [202, 202]
    answer = http.post("/generate", json=BODY)
    assert answer.status_code == 429
    assert answer.json()["code"] == "queue_full"
    # 40 wait and 20 come: 10 too many, at 5 a second.
    assert answer.headers["Retry-After"] == "2"
    assert worker.queue_length() == 2
    assert http.post("/generate", json={"steps": 10, "batch": 1}).status_code == 202


def test_without_a_measured_speed_there_is_still_a_retry_after(
    worker: FakeWorker, start_gateway: Callable[..., httpx.Client]
) -> None:
    http = start_gateway(max_queue=20)
    http.post("/generate", json=BODY)
    assert int(http.post("/generate", json=BODY).headers["Retry-After"]) >= 1


def test_jobs_that_leave_make_room_again(worker: FakeWorker, start_gateway: Callable[..., httpx.Client]) -> None:
    http = start_gateway(max_queue=40)
    taken, canceled = (http.post("/generate", json=BODY).json()["id"] for _ in range(2))
    assert http.post("/generate", json=BODY).status_code == 429
    assert worker.take().id == taken
    while http.post("/generate", json=BODY).status_code == 429:  # until the count is taken anew
        pass
    assert worker.queue_length() == 2
    http.delete(f"/jobs/{canceled}")
    while http.post("/generate", json=BODY).status_code == 429:
        pass
    assert worker.queue_length() == 2


def test_an_empty_queue_takes_even_a_job_above_the_limit(
    worker: FakeWorker, start_gateway: Callable[..., httpx.Client]
) -> None:
    http = start_gateway(max_queue=5)
    assert http.post("/generate", json=BODY).status_code == 202
    assert http.post("/generate", json=BODY).status_code == 429


def test_the_number_of_jobs_is_bounded_too(worker: FakeWorker, start_gateway: Callable[..., httpx.Client]) -> None:
    http = start_gateway(max_queue_jobs=3)
    tiny = {"steps": 1, "batch": 1}
    assert [http.post("/generate", json=tiny).status_code for _ in range(5)] == [202, 202, 202, 429, 429]
    assert worker.queue_length() == 3


def test_the_waiting_work_is_limited_in_seconds_too(
    worker: FakeWorker, start_gateway: Callable[..., httpx.Client]
) -> None:
    """A step of the large model takes twenty times as long: of its jobs far fewer may wait."""
    worker.announce(row_step_s={"digits": 0.05, "clouds": 1.0})
    http = start_gateway(max_queue_s=30)
    large = {"model": "clouds", "steps": 7, "batch": 2, "sampler": "ddpm"}  # 14 s
    assert http.post("/generate", json=BODY).status_code == 202  # 1 s
    assert [http.post("/generate", json=large).status_code for _ in range(2)] == [202, 202]
    answer = http.post("/generate", json=large)
    assert answer.status_code == 429
    assert answer.headers["Retry-After"] == "13"  # 29 s wait and 14 come
    assert "43 s" in answer.json()["detail"] or "29 s" in answer.json()["detail"]
    assert http.post("/generate", json=BODY).status_code == 202


def test_two_workers_do_the_waiting_work_in_half_the_time(
    worker: FakeWorker, start_gateway: Callable[..., httpx.Client]
) -> None:
    worker.announce(row_step_s={"digits": 1.0})
    worker.announce(row_step_s={"digits": 1.0}, name="another")
    http = start_gateway(max_queue_s=30)
    # 20 s of one worker, 10 of both.
    assert [http.post("/generate", json=BODY).status_code for _ in range(4)] == [202, 202, 202, 429]


@pytest.mark.parametrize(("guided", "fits"), [({}, False), ({"guidance_interval": [0.0, 0.45]}, True)])
def test_a_guided_image_counts_twice_in_the_steps_that_are_guided(
    worker: FakeWorker, start_gateway: Callable[..., httpx.Client], guided: dict[str, object], fits: bool
) -> None:
    http = start_gateway(max_queue=50)
    guided = BODY | {"class_label": "one", "guidance_scale": 3.0} | guided
    assert http.post("/generate", json=guided).status_code == 202
    assert http.post("/generate", json=BODY).status_code == (202 if fits else 429)

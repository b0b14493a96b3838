"""What a full queue promises: 429 with a time to come back, and no lasting error in its count."""

from collections.abc import Callable

import httpx

from tests.service.fake_worker import FakeWorker

BODY = {"steps": 10, "batch": 2}  # 20 image-steps


def test_a_queue_full_of_work_is_429_with_a_measured_retry_after(
    worker: FakeWorker, start_gateway: Callable[..., httpx.Client]
) -> None:
    worker.announce(image_steps_per_s=5.0)
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

"""A long job whose worker dies goes on where it was: the whole product, real processes, the bundled digits."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.bundled_digits import digits_store
from tests.conftest import ValkeyHandle, live_workers
from tests.e2e.conftest import Stack, running_stack
from tests.waiting import wait_until
from worker.contract import EngineCounters, SamplingRequest, chain_key
from worker.queue.saved_chains import unpack

pytestmark = pytest.mark.slow

LONG: list[dict[str, Any]] = [
    {"seed": 11, "steps": 700, "batch": 2, "sampler": "ddpm", "class_label": 3},
    {"seed": 50, "steps": 600, "batch": 1, "sampler": "dpmpp_2m", "class_label": 7},
    {"seed": 77, "steps": 550, "batch": 1, "sampler": "ddim", "eta": 1.0, "class_label": 1, "guidance_scale": 2.0},
]
IMAGE_STEPS = sum(body["steps"] * body["batch"] for body in LONG)


@pytest.fixture(scope="module")
def stack(valkey_session: ValkeyHandle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Short leases, frequent saves, and no grace at SIGTERM."""
    settings = {"lease_s": 2, "heartbeat_s": 0.5, "maintenance_s": 0.5, "save_interval_s": 0.2, "grace_s": 0}
    folder = tmp_path_factory.mktemp("stack")
    with running_stack(valkey_session, folder, store=digits_store(folder), **settings) as stack:
        yield stack


def hashes(job: dict[str, Any]) -> list[str]:
    return [image["sha256"] for image in job["images"]]


def steps_saved(stack: Stack, job_id: str, body: dict[str, Any]) -> int:
    """Of the slowest image; 0 before the first save."""
    data = stack.redis.get(chain_key(job_id))
    if not isinstance(data, bytes):
        return 0
    chain = unpack(data, SamplingRequest.model_validate({"model": "digits", **body}))
    return min(image.step for image in chain.images)


def test_a_job_taken_over_goes_on_from_its_last_state_to_the_same_pixels(stack: Stack) -> None:
    """Once after kill -9 and once after SIGTERM, which puts it back."""
    calm = [hashes(stack.finished(job_id)) for job_id in [stack.generate(**body) for body in LONG]]
    job_ids = [stack.generate(**body) for body in LONG]
    versions: list[str] = []
    least_saved = 0
    for number, beyond in ((signal.SIGKILL, 30), (signal.SIGTERM, 80)):
        wait_until(
            lambda beyond=beyond: all(  # type: ignore[misc]  # mypy can't infer a lambda's default
                steps_saved(stack, id_, body) >= beyond for id_, body in zip(job_ids, LONG, strict=True)
            ),
            "every job to be saved in the middle",
        )
        versions = versions or [stack.http.get(f"/jobs/{id_}").json()["version"] for id_ in job_ids]
        stack.worker.killed = number == signal.SIGKILL
        stack.worker.process.send_signal(number)
        stack.worker.process.wait(60)
        least_saved = sum(
            steps_saved(stack, id_, body) * body["batch"] for id_, body in zip(job_ids, LONG, strict=True)
        )
        stack.worker = stack.start_worker()
        wait_until(
            lambda: all(f"job {id_} goes on, " in stack.worker.log.read_text() for id_ in job_ids),
            "the next worker to take the jobs up where they were",
        )
    ended = [stack.finished(job_id) for job_id in job_ids]
    assert [hashes(job) for job in ended] == calm
    assert [job["version"] for job in ended] == versions
    assert not any(stack.redis.exists(chain_key(job_id)) for job_id in job_ids), "an ended job needs no state"

    def last_worker() -> EngineCounters:
        """The killed one is still known, too."""
        return max(live_workers(stack.redis), key=lambda status: status.started_at).counters

    wait_until(lambda: last_worker().requests_succeeded == len(LONG), "the counters to travel with a heartbeat")
    counters = last_worker()
    assert counters.requests_resumed == len(LONG)
    assert counters.image_steps_spared >= least_saved >= 80 * len(LONG)
    assert counters.image_steps == IMAGE_STEPS - counters.image_steps_spared

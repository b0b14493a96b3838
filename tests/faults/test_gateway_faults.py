"""A gateway that is killed while clients post: each post is at most one job, and every answered one is a job."""

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.faults.processes import Machines
from tests.worker.queue.conftest import Jobs

pytestmark = pytest.mark.slow

POSTS = 120


def test_a_gateway_killed_during_posts_makes_at_most_one_job_of_each() -> None:
    with Machines(workers=1, gateways=1) as machines:
        (gateway,), (url,) = machines.gateways, machines.urls
        over = threading.Event()

        def kill_again_and_again() -> None:
            while not over.wait(1.0):
                if _answers(url):
                    gateway.send(signal.SIGKILL)

        def post_once(number: int, key: str | None) -> str | None:
            """The job's id; None when the gateway died before it answered."""
            if not over.is_set():
                time.sleep(number % 10 * 0.15)
            try:
                headers = {} if key is None else {"Idempotency-Key": key}
                answer = httpx.post(
                    url + "/generate",
                    json={"seed": number, "steps": 3, "batch": 1},
                    headers=headers,
                    timeout=10,
                    trust_env=False,
                )
            except httpx.TransportError:
                return None
            return str(answer.json()["id"]) if answer.status_code in (200, 202) else None

        def post_until_answered(number: int) -> str | None:
            deadline = time.monotonic() + 60
            while (job_id := post_once(number, f"key-{number}")) is None and time.monotonic() < deadline:
                time.sleep(0.1)  # the last one killed is still being started again
            return job_id

        killer = threading.Thread(target=kill_again_and_again)
        killer.start()
        try:
            with ThreadPoolExecutor(12) as pool:
                unkeyed = list(pool.map(lambda n: post_once(n, None), range(POSTS)))
                keyed = list(pool.map(lambda n: post_once(n, f"key-{n}"), range(POSTS)))
        finally:
            over.set()
            killer.join()
        again = [post_until_answered(number) for number in range(POSTS)]
        assert None not in again, "a key that was lost with its gateway can be sent again"
        assert all(first in (None, second) for first, second in zip(keyed, again, strict=True))
        assert None in [*unkeyed, *keyed], "no post was cut off"

        jobs = Jobs(machines.valkey)
        every_id = [key.removeprefix("rq:job:") for key in machines.valkey.all_keys() if key.startswith("rq:job:")]
        answered = {job_id for job_id in [*unkeyed, *again] if job_id is not None}
        assert answered <= set(every_id)
        assert len(every_id) <= 2 * POSTS
        # Those that nobody heard of are whole jobs too, and end.
        assert jobs.wait(every_id) == ["finished"] * len(every_id)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url + "/livez", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False

"""Whatever happens to equal requests, in whatever order: each ends once, with its own pixels, and none is lost."""

from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from service.settings import Settings
from tests.conftest import ValkeyHandle
from tests.service.drawing_worker import DrawingWorker, sha256_of
from tests.service.fake_worker import VERSION
from tests.service.servers import RunningGateway
from worker.queue.held_job import HeldJob

VERSIONS = [VERSION, "000013000-00000000", "000014000-00000000"]
SEEDS = st.integers(1, 2)


class Life(RuleBasedStateMachine):
    """Requests of two seeds, a worker that draws, fails or loses them, clients that cancel, versions that go live."""

    valkey: ValkeyHandle
    http: httpx.Client
    worker: DrawingWorker

    def __init__(self) -> None:
        super().__init__()
        self.valkey.client.flushall()
        self.worker.go_live(VERSION)
        self.current = 0
        self.asked: dict[str, tuple[int, str | None, int]] = {}
        """By job: its seed, the version that it names, and which version was current when it came."""
        self.held: list[HeldJob] = []
        self.canceled: set[str] = set()
        self.failed: set[str] = set()

    @rule(seed=SEEDS, named=st.sampled_from([None, None, 0, 1]), anew=st.sampled_from([False, False, False, True]))
    def ask(self, seed: int, named: int | None, anew: bool) -> None:
        version = None if named is None or named > self.current else VERSIONS[named]
        body: dict[str, Any] = {"seed": seed, "steps": 3, "batch": 1} | ({"version": version} if version else {})
        answer = self.http.post("/generate", json=body, headers={"Cache-Control": "no-cache"} if anew else {})
        assert answer.status_code in (200, 202), answer.text
        job = answer.json()
        assert not (anew and (job["cached"] or answer.status_code == 200))
        self.asked[job["id"]] = (seed, version, self.current)
        if answer.status_code == 200:
            assert job["version"] == (version or VERSIONS[self.current])

    @rule()
    def claim(self) -> None:
        if job := self.worker.claim():
            self.held.append(job)

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 9))
    def succeed(self, which: int) -> None:
        self.worker.succeed(self.held.pop(which % len(self.held)))

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 9))
    def fail(self, which: int) -> None:
        job = self.held.pop(which % len(self.held))
        self.worker.fail(job)
        if job.job_id not in self.canceled:
            self.failed.add(job.job_id)

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 9))
    def fail_for_now_or_be_lost(self, which: int) -> None:
        job = self.held.pop(which % len(self.held))
        if which % 2:
            self.worker.leases.release([job])
            self.worker.forget(job)
        elif self.valkey.client.hget(f"rq:job:{job.job_id}", "retries_left") == b"3":
            self.worker.fail(job, retryable=True)
        else:
            self.worker.succeed(job)

    @precondition(lambda self: self.asked)
    @rule(which=st.integers(0, 99))
    def cancel(self, which: int) -> None:
        job_id = list(self.asked)[which % len(self.asked)]
        if self.http.delete(f"/jobs/{job_id}").json()["status"] == "canceled":
            self.canceled.add(job_id)

    @precondition(lambda self: self.current < len(VERSIONS) - 1)
    @rule()
    def go_live(self) -> None:
        self.current += 1
        self.worker.go_live(VERSIONS[self.current])

    @rule()
    def maintain(self) -> None:
        self.worker.leases.recover(stranded_s=60)

    def teardown(self) -> None:
        for job in self.held:
            self.worker.succeed(job)
        self.worker.draw_all()
        for job_id, (seed, version, came_at) in self.asked.items():
            job = self.http.get(f"/jobs/{job_id}").json()
            if job_id in self.canceled:
                assert job["status"] == "canceled"
            elif job_id in self.failed:
                assert job["status"] == "failed"
            else:
                assert job["status"] == "succeeded", job
                assert [image["sha256"] for image in job["images"]] == [sha256_of(seed, job["version"])]
                assert job["version"] in ([version] if version else VERSIONS[came_at : self.current + 1])
        left = [key for key in self.valkey.all_keys() if ":drawing:" in key or "follow" in key or "rq:wip" in key]
        assert left == []
        assert self.valkey.client.llen("rq:queue:reverie") == 0


@pytest.mark.slow
def test_every_accepted_request_ends_once_with_its_own_pixels(valkey: ValkeyHandle) -> None:
    gateway = RunningGateway(Settings(redis_url=valkey.url))
    with gateway, httpx.Client(base_url=gateway.url, timeout=30) as http, DrawingWorker(valkey) as worker:
        Life.valkey, Life.http, Life.worker = valkey, http, worker
        run_state_machine_as_test(
            Life,
            settings=settings(
                max_examples=25,
                stateful_step_count=25,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                # On real servers shrinking takes minutes; what failed is short enough to read.
                phases=[Phase.generate],
            ),
        )

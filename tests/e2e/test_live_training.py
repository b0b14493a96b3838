"""Training publishes, the running service takes it up: no request fails, and every image is of exactly one version."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ValkeyHandle
from tests.e2e.conftest import Stack, running_stack
from tests.waiting import PATIENCE_S, wait_until
from training.configuration import read_configuration
from training.data.digits import load_digits
from training.loop import Budget, StepReport, Trainer
from training.network import Denoiser, build_unet
from training.publishing import Publication
from worker.store import ModelStore, Recipe

pytestmark = pytest.mark.slow

MODEL = "digits"
CLIENTS = 4
PUBLISHED = 3
STEPS_BETWEEN = 10
"""Training steps from one version to the next."""
REQUESTS: Sequence[dict[str, Any]] = (
    {"seed": 1, "steps": 6, "batch": 2, "class_label": 3},
    {"seed": 50, "steps": 9, "batch": 1, "class_label": 7, "guidance_scale": 2.0},
    {"seed": 900, "steps": 5, "batch": 1, "sampler": "ddpm"},
    {"seed": 77, "steps": 7, "batch": 3, "sampler": "dpmpp_2m", "class_label": 0},
)
"""What the load asks for, again and again: few, so that each can be drawn anew on every version."""


class Training:
    """A small network on the digits, and the store that it publishes to."""

    def __init__(self, root: Path) -> None:
        self.store = ModelStore(root)
        self.published: list[str] = []
        self._data = load_digits()
        self._configuration = read_configuration(flags={"batch": 16})
        recipe = Recipe(command="live training", data=self._data.name)
        self._publication = Publication(self.store, MODEL, self._configuration, self._data, None, recipe)

    def run(self, after_publish: Callable[[str], None]) -> None:
        """The first version is published before the first step, untrained; then `PUBLISHED` more on the way."""
        denoiser = Denoiser(
            build_unet(self._data.shape, len(self._data.label_names), width=16, layers_per_block=1, seed=0)
        )
        trainer = Trainer(denoiser, self._data, self._configuration.noise_schedule(), self._configuration)

        def publish(step: int) -> None:
            checkpoint = self._publication.publish(trainer.ema.network, step=step, metrics={})
            self.published.append(checkpoint.version)
            after_publish(checkpoint.version)

        def after_step(report: StepReport) -> None:
            if report.step % STEPS_BETWEEN == 0:
                publish(report.step)

        publish(0)
        trainer.run(Budget(steps=PUBLISHED * STEPS_BETWEEN), after_step)


@dataclass
class Load:
    """Clients that always have one request each in flight, and what they were answered."""

    stack: Stack
    answers: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    """(which of REQUESTS, the finished job)."""
    failures: list[BaseException] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def client(self, first: int) -> None:
        order = [*range(first, len(REQUESTS)), *range(first)]
        for which in cycle(order):
            if self.stop.is_set():
                return
            try:
                self.answers.append((which, self.stack.finished(self.stack.generate(**REQUESTS[which]))))
            except BaseException as error:
                self.failures.append(error)
                return

    def wait_for(self, version: str) -> None:
        """Until an answer was drawn with the version."""

        def answered() -> bool:
            assert not self.failures, self.failures[0]
            return any(job["version"] == version for _, job in list(self.answers))

        wait_until(answered, f"an answer of {version}")


@dataclass
class Live:
    """A service on what a training publishes."""

    stack: Stack
    training: Training
    load: Load


def hashes(job: dict[str, Any]) -> tuple[str, ...]:
    return tuple(image["sha256"] for image in job["images"])


@pytest.fixture(scope="module")
def live(valkey_session: ValkeyHandle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A training that has run while the service was under load; the load has ended."""
    folder = tmp_path_factory.mktemp("live")
    training = Training(folder / "store")
    begun, go_on = threading.Event(), threading.Event()
    after_publish: list[Callable[[str], None]] = []

    def wait_for_the_service(_version: str) -> None:
        begun.set()
        assert go_on.wait(300)
        for wait in after_publish:
            wait(_version)

    trainer = threading.Thread(target=training.run, args=[wait_for_the_service], daemon=True)
    trainer.start()
    assert begun.wait(120)
    # Patient with Redis: on a busy machine its disk stalls for seconds, which is no matter of this test.
    patience = {"redis_timeout_s": 20}
    settings = {"store": folder / "store", "lease_s": 4, "maintenance_s": 1, "max_batch": 8, **patience}
    with running_stack(valkey_session, folder, **settings) as stack:
        load = Load(stack)
        after_publish.append(load.wait_for)
        clients = [threading.Thread(target=load.client, args=[first % len(REQUESTS)]) for first in range(CLIENTS)]
        for client in clients:
            client.start()
        go_on.set()
        trainer.join(300)
        load.stop.set()
        for client in clients:
            client.join(PATIENCE_S)
        yield Live(stack, training, load)


def test_no_request_fails_while_versions_are_published(live: Live) -> None:
    assert live.load.failures == []
    assert len(live.training.published) == 1 + PUBLISHED
    answered = {job["version"] for _, job in live.load.answers}
    assert answered == set(live.training.published), "every version served"
    model = wait_until(lambda: _serves(live.stack, live.training.published[-1]), "the last version to serve")
    assert (model["reload_error"], model["load_failures"]) == (None, 0)


def test_the_version_never_goes_back_in_order_of_admission(live: Live) -> None:
    order = {version: index for index, version in enumerate(live.training.published)}
    by_start: dict[str, list[int]] = {}
    for _, job in live.load.answers:
        by_start.setdefault(job["started_at"], []).append(order[job["version"]])
    newest = 0
    for started_at in sorted(by_start):  # jobs claimed at the same moment have no order between them
        assert min(by_start[started_at]) >= newest
        newest = max(by_start[started_at])
    assert newest == PUBLISHED


def test_every_answer_matches_exactly_one_versions_pixels(live: Live) -> None:
    """Each request is drawn again on each version, by asking for the version by name."""
    store, stack = live.training.store, live.stack
    drawn: dict[tuple[int, str], tuple[str, ...]] = {}
    for version in live.training.published:
        weights_sha256 = store.checkpoint(MODEL, version).manifest.weights_sha256
        jobs = [stack.generate(**request, version=version) for request in REQUESTS]
        for which, job_id in enumerate(jobs):
            job = stack.finished(job_id)
            assert (job["version"], job["weights_sha256"]) == (version, weights_sha256)
            drawn[which, version] = hashes(job)
    assert len(set(drawn.values())) == len(drawn), "another version draws other pixels"
    for which, job in live.load.answers:
        matching = [version for version in live.training.published if drawn[which, version] == hashes(job)]
        assert matching == [job["version"]]


def test_a_job_whose_worker_is_killed_ends_on_the_version_that_it_was_admitted_to(live: Live) -> None:
    stack, store = live.stack, live.training.store
    *_, old, newest = live.training.published
    store.promote(MODEL, old)
    wait_until(lambda: _serves(stack, old), "the older version to serve")
    long = {"seed": 5, "steps": 400, "batch": 4, "sampler": "ddpm", "class_label": 1}
    interrupted = stack.generate(**long)
    wait_until(lambda: stack.http.get(f"/jobs/{interrupted}").json()["version"], "the job to be admitted")
    store.promote(MODEL, newest)
    assert stack.http.get(f"/jobs/{interrupted}").json()["status"] == "running"
    stack.replace_worker()
    later = stack.generate(**REQUESTS[0])
    job = stack.finished(interrupted)
    assert job["version"] == old
    assert stack.finished(later)["version"] == newest
    assert hashes(job) == hashes(stack.finished(stack.generate(**long, version=old)))


def test_a_version_that_is_gone_fails_with_the_reason(live: Live) -> None:
    """It was there when the gateway took the job, and was removed by hand before the worker could load it."""
    stack, store = live.stack, live.training.store
    gone = live.training.published[0]
    assert store.prune(MODEL, keep=PUBLISHED) == [gone]
    answer = stack.http.post("/generate", json={**REQUESTS[0], "version": gone})
    if answer.status_code == 202:  # within a second of the removal
        ended = stack.ended(answer.json()["id"])
        assert ended["status"] == "failed"
        assert ended["error"] == {"code": "model_unavailable", "detail": f"model {MODEL} has no version {gone}"}
    wait_until(
        lambda: stack.http.post("/generate", json={**REQUESTS[0], "version": gone}).status_code == 422, "a refusal"
    )


def _serves(stack: Stack, version: str) -> dict[str, Any] | None:
    model: dict[str, Any] = stack.http.get(f"/models/{MODEL}").raise_for_status().json()
    return model if model["version"] == version else None

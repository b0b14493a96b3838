"""What a worker does with a job between its claim and the engine: the claimer by itself, on a real queue."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import redis

from tests.conftest import ValkeyHandle
from tests.waiting import wait_until
from tests.worker.queue.conftest import Jobs
from tests.worker.queue.fake_engine import FakeCatalogue, FakeEngine
from worker.contract.keys import upload_key
from worker.engine.messages import Admitted, Canceled, SavedChain
from worker.queue.claimer import Claimer
from worker.queue.finisher import Finisher
from worker.queue.give_back import GiveBack
from worker.queue.held_job import Ending, HeldJob, HeldJobs
from worker.queue.leases import Leases
from worker.queue.live_workers import LiveWorkers
from worker.queue.redis_health import RedisHealth
from worker.queue.saved_chains import SavedChains
from worker.results.files import Files, ResultsAway
from worker.results.names import upload_file
from worker.results.redis_files import RedisFiles
from worker.results.uploads import Upload, Uploads


class ChainsReadAtABadMoment(SavedChains):
    """Something happens to each job just before the engine gets it."""

    def __init__(self, happens: Callable[[HeldJob], None]) -> None:
        self._happens = happens

    def read(self, job: HeldJob) -> SavedChain | None:
        self._happens(job)
        return None


class FilesAway(RedisFiles):
    """Images are kept, and no picture can be read."""

    asked = 0

    def get(self, name: str) -> bytes | None:
        self.asked += 1
        raise ResultsAway("away")


@contextmanager
def claiming(
    client: "redis.Redis",
    leases: Leases,
    engine: FakeEngine,
    held: HeldJobs,
    chains: SavedChains,
    files: Files | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    stop = threading.Event()
    health = RedisHealth()
    finisher = Finisher(leases, RedisFiles(client), held, health)
    uploads = Uploads(client, files or RedisFiles(client))
    give_back = GiveBack(leases, engine, held, LiveWorkers(client))
    claimer = Claimer(
        *(leases, engine, held, finisher, chains, health, FakeCatalogue(), give_back, uploads),
        stopping=stop.is_set,
        sleep=sleep,
    )
    threads = [threading.Thread(target=claimer.run), threading.Thread(target=engine.run, args=[stop])]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_stop_that_comes_just_before_the_engine_has_the_job_is_not_lost(
    valkey: ValkeyHandle, jobs: Jobs, worker_of: Callable[..., Leases]
) -> None:
    engine, held = FakeEngine(step_s=0.001), HeldJobs()

    def stop(job: HeldJob) -> None:
        held.end_early(job, Ending.STOPPED)
        engine.cancel(job.job_id)

    job_id = jobs.add(1, steps=1000)
    ended: list[object] = []
    with claiming(valkey.client, worker_of("a", 60), engine, held, ChainsReadAtABadMoment(stop)):

        def canceled() -> bool:
            while not engine.outbox.empty():
                ended.append(engine.outbox.get())
            return Canceled(job_id) in ended

        wait_until(canceled, "the engine to drop the job")


def test_a_job_whose_pictures_can_not_be_read_is_looked_at_now_and_then_and_others_begin(
    valkey: ValkeyHandle, jobs: Jobs, worker_of: Callable[..., Leases]
) -> None:
    engine, held, files = FakeEngine(step_s=0.001), HeldJobs(), FilesAway(valkey.client)
    name = "ab" * 32
    record = Upload(sha256=name, file=upload_file(name, "png"), width=8, height=8, size_bytes=1, ttl_s=600)
    valkey.client.set(upload_key(name), record.model_dump_json())
    waits, other = jobs.add(1, init={"picture": name}), jobs.add(2)
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        time.sleep(0.01)

    begun: list[object] = []

    def other_began() -> bool:
        while not engine.outbox.empty():
            begun.append(engine.outbox.get())
        return any(isinstance(event, Admitted) and event.job_id == other for event in begun)

    chains = ChainsReadAtABadMoment(lambda job: None)
    with claiming(valkey.client, worker_of("a", 60), engine, held, chains, files, sleep):
        wait_until(other_began, "the other job to begin")
        wait_until(lambda: files.asked >= 5, "the pictures to be asked for again")
    assert files.asked <= len(pauses), "it was put back and claimed again at once"
    assert (jobs.status(waits), jobs.fetch(waits).retries_left) == ("queued", 3)

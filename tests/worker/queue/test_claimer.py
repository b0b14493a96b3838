"""What a worker does with a job between its claim and the engine: the claimer by itself, on a real queue."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import redis

from tests.conftest import ValkeyHandle
from tests.waiting import wait_until
from tests.worker.queue.conftest import Jobs
from tests.worker.queue.fake_engine import FakeCatalogue, FakeEngine
from worker.engine.messages import Canceled, SavedChain
from worker.queue.claimer import Claimer
from worker.queue.finisher import Finisher
from worker.queue.give_back import GiveBack
from worker.queue.held_job import Ending, HeldJob, HeldJobs
from worker.queue.leases import Leases
from worker.queue.live_workers import LiveWorkers
from worker.queue.redis_health import RedisHealth
from worker.queue.saved_chains import SavedChains
from worker.results.redis_files import RedisFiles
from worker.results.uploads import Uploads


class ChainsReadAtABadMoment(SavedChains):
    """Something happens to each job just before the engine gets it."""

    def __init__(self, happens: Callable[[HeldJob], None]) -> None:
        self._happens = happens

    def read(self, job: HeldJob) -> SavedChain | None:
        self._happens(job)
        return None


@contextmanager
def claiming(
    client: "redis.Redis", leases: Leases, engine: FakeEngine, held: HeldJobs, chains: SavedChains
) -> Iterator[None]:
    stop = threading.Event()
    health = RedisHealth()
    finisher = Finisher(leases, RedisFiles(client), held, health)
    uploads = Uploads(client, RedisFiles(client))
    give_back = GiveBack(leases, engine, held, LiveWorkers(client))
    claimer = Claimer(
        *(leases, engine, held, finisher, chains, health, FakeCatalogue(), give_back, uploads),
        stopping=stop.is_set,
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

        wait_until(canceled, "the engine to drop the job", timeout_s=20)

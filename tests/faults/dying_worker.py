"""A real worker around the fake engine that kills itself: `python -m tests.faults.dying_worker WHEN`.

WHEN is `claimed` (Redis has given it a job, and its engine has not seen it) or `stored` (the job's images are kept, and
its end is not written).
"""

import hashlib
import os
import signal
import sys
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.retry import Retry

from tests.worker.queue.fake_engine import FakeCatalogue, FakeEngine
from worker.contract.logs import configure_logs
from worker.contract.no_pickle import disable_pickle
from worker.process import WorkerProcess
from worker.queue.connection import SOCKET_TIMEOUT_S
from worker.queue.lua import claim_scripts, lease_scripts
from worker.results.places import open_files
from worker.settings import WorkerSettings

MOMENTS = {"claimed": claim_scripts.CLAIM, "stored": lease_scripts.FINISH}
FATAL = hashlib.sha1(MOMENTS[sys.argv[1]].encode()).hexdigest()


class DyingRedis(redis.Redis):
    """Its process ends when a claim has run and taken something, before anybody reads the answer."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        answer = super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        if args[:2] == ("EVALSHA", FATAL) and answer[:2] != [[], []]:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> "DyingPipeline":
        return DyingPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)


class DyingPipeline(Pipeline):
    """The chosen script is never sent."""

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        if any(args[:2] == ("EVALSHA", FATAL) for args, _ in self.command_stack):
            os.kill(os.getpid(), signal.SIGKILL)
        return list(super().execute(raise_on_error))


def main() -> None:
    settings = WorkerSettings.read()
    configure_logs(settings, "worker")
    disable_pickle()
    timeout_s = SOCKET_TIMEOUT_S
    client = DyingRedis.from_url(settings.redis_url, socket_timeout=timeout_s, retry=Retry(NoBackoff(), 0))
    engine = FakeEngine(settings.max_batch, 0.002)
    files = open_files(settings.results, client)
    os._exit(
        WorkerProcess(
            settings, client, engine, FakeCatalogue(), files, device="cpu", arithmetic="fake", dtype="float32"
        ).run()
    )


if __name__ == "__main__":
    main()

"""A real worker process around the fake engine, for tests to kill: `python -m tests.worker.queue.fake_worker [ms]`."""

import os
import sys

from tests.worker.queue.fake_engine import FakeCatalogue, FakeEngine
from worker.process import WorkerProcess
from worker.queue import rq_overrides
from worker.settings import read_settings
from worker.start import configure_logging, open_redis


def main() -> None:
    settings = read_settings()
    configure_logging(settings.log_level)
    rq_overrides.disable_pickle()
    engine = FakeEngine(settings.max_batch, float(sys.argv[1]) / 1e3 if len(sys.argv) > 1 else 0.005)
    client = open_redis(settings)
    os._exit(WorkerProcess(settings, client, engine, FakeCatalogue(), device="cpu", dtype="float32").run())


main()

"""A real worker process around the fake engine: `python -m tests.worker.queue.fake_worker [ms of a step [models]]`."""

import os
import sys
from collections.abc import Sequence

from tests.worker.queue.fake_engine import MODEL, FakeCatalogue, FakeEngine
from worker.contract.logs import configure_logs
from worker.contract.no_pickle import disable_pickle
from worker.process import WorkerProcess
from worker.results.places import open_files
from worker.settings import WorkerSettings
from worker.start import open_redis


def main(arguments: Sequence[str]) -> None:
    settings = WorkerSettings.read()
    configure_logs(settings, "worker")
    disable_pickle()
    engine = FakeEngine(settings.max_batch, float(arguments[0]) / 1e3 if arguments else 0.005)
    models = arguments[1].split(",") if len(arguments) > 1 else [MODEL]
    client = open_redis(settings)
    files = open_files(settings.results, client)
    os._exit(
        WorkerProcess(
            *(settings, client, engine, FakeCatalogue(models=models), files),
            device="cpu",
            arithmetic="fake",
            dtype="float32",
        ).run()
    )


if __name__ == "__main__":
    main(sys.argv[1:])

"""Processes that are forked from one that has imported what they need: a start costs no imports, and ends like any."""

import multiprocessing
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

PRELOADED = ["tests.worker.queue.fake_worker"]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(PRELOADED)


class ForkedProcess:
    """`python -m <module> <arguments>`, with the face of `subprocess.Popen`. Killed when the tests end.

    Args:
        module: has a `main` that takes its arguments.
        environment: all of it.
        log: takes its standard error, from the beginning.
    """

    def __init__(
        self, module: str, arguments: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path
    ) -> None:
        log.write_bytes(b"")
        given = (module, list(arguments), dict(environment), folder, log)
        self._process = _CONTEXT.Process(target=_run, args=given, daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """Its exit status; of one that a signal has ended minus its number."""
        return self._process.exitcode

    def wait(self, timeout_s: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        self._process.join(timeout_s)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout_s or 0.0)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(module: str, arguments: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    with log.open("ab") as stderr:
        os.dup2(stderr.fileno(), 2)
    import_module(module).main(arguments)

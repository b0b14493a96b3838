"""Training in processes of their own, which a test may stop or kill.

They are forked from one that has imported all of it: tests that start many would wait longest for that.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tests.waiting import wait_until
from training.state import StateFolder


class StartedRun:
    """`python -m training ARGUMENTS`, with these variables beside those of the tests."""

    def __init__(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        descriptor, log = tempfile.mkstemp(suffix=".log")
        os.close(descriptor)
        self._log = Path(log)
        self._pid: int = _ask("start", arguments, dict(environment or {}), log)
        self.returncode: int | None = None
        """Once it has ended; less than 0 for the signal that ended it."""

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self._pid, number)

    def kill(self) -> None:
        """As kill -9 does; it is gone when this returns."""
        self.send_signal(signal.SIGKILL)
        self.finish()

    def finish(self) -> str:
        """What it printed, once it has ended."""
        wait_until(self._has_ended, "the run to end")
        output = self._log.read_text()
        self._log.unlink()
        return output

    def _has_ended(self) -> bool:
        self.returncode = _ask("poll", self._pid)
        return self.returncode is not None


def wait_for_state(root: Path, step: int) -> None:
    """Until the run whose state is in `root` has saved at least that step."""

    def is_there() -> bool:
        state = StateFolder(root / "state").load()
        return state is not None and state.step >= step

    wait_until(is_there, f"a state at step {step}")


def _ask(command: str, *given: object) -> Any:
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps([command, *given]) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


@cache
def _server() -> "subprocess.Popen[str]":
    """Ends with this process, whose end of the pipe closes then."""
    command = [sys.executable, "-m", "tests.training.forking"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

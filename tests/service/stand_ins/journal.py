"""What the stand-in children wrote, and waiting for it."""

import os
import sys
from pathlib import Path

from tests.waiting import wait_until

CHILD = str(Path(__file__).with_name("child.py"))


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and waits for its parent does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    try:
        return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Journal:
    """The file that all stand-ins of one test write to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def command(self, name: str, *options: str) -> tuple[str, ...]:
        """How to start a stand-in."""
        return (sys.executable, "-S", "-E", CHILD, name, str(self.path), *options)

    def entries(self) -> list[tuple[str, str]]:
        """(name, event) in the order written."""
        return [(name, event) for name, event, _ in self._lines()]

    def pids(self, name: str) -> list[int]:
        """The processes that have run under this name, oldest first."""
        return [int(pid) for who, event, pid in self._lines() if who == name and event == "started"]

    def all_pids(self) -> list[int]:
        return [int(pid) for _, event, pid in self._lines() if event == "started"]

    def wait_for_start(self, name: str, times: int = 1) -> int:
        """Wait until `name` has been started so many times; returns the latest process id."""
        wait_until(lambda: len(self.pids(name)) >= times, f"start {times} of {name}")
        return self.pids(name)[-1]

    def _lines(self) -> list[list[str]]:
        return [line.split() for line in self.path.read_text().splitlines()]

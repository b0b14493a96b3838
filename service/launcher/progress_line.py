"""A job's progress on one line of a terminal, with the latest preview above it where the terminal shows pictures."""

import os
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from service.client import JobEvent
from service.launcher.terminal_images import ROWS, Protocol, commands, protocol_of
from service.schemas import Job, JobState

WIDTH = 30
"""Characters of the bar."""


class ProgressLine:
    """Writes nothing where `stream` is no terminal."""

    def __init__(
        self,
        stream: TextIO,
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._shown = stream.isatty()
        self._protocol = protocol_of(stream, environment)
        self._clock = clock
        self._running_since: float | None = None
        self._previews = False

    @property
    def wants_previews(self) -> bool:
        return self._protocol is not Protocol.NONE

    def show(self, event: JobEvent) -> None:
        if not self._shown:
            return
        if event.job.status is JobState.RUNNING and self._running_since is None:
            self._running_since = self._clock()
        picture = commands(event.previews[0].data, self._protocol) if event.previews else ""
        if picture:
            # Room for it above the line, once; then back to its upper left corner each time.
            self._write("" if self._previews else "\n" * ROWS)
            self._write(f"\x1b[{ROWS}A\r\x1b7{picture}\x1b8\x1b[{ROWS}B")
            self._previews = True
        self._write(f"\r\x1b[K{self._text(event.job)}")

    def end(self) -> None:
        if self._shown:
            self._write("\r\x1b[K")

    def _text(self, job: Job) -> str:
        if job.status is JobState.QUEUED:
            wait = "" if job.estimated_wait_s is None else f", about {job.estimated_wait_s:.0f} s"
            return f"queued behind {job.position or 0}{wait}"
        step, steps = job.progress.step, job.progress.steps
        full = WIDTH * step // max(steps, 1)
        elapsed_s = 0.0 if self._running_since is None else self._clock() - self._running_since
        left = f"  {elapsed_s / step * (steps - step):.0f} s left" if step and step < steps else ""
        return f"{job.status.value} [{'#' * full}{'.' * (WIDTH - full)}] {step}/{steps}{left}"

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()

"""Where files are kept, images of jobs and uploaded pictures alike: what every place for them promises.

A file's name is `<folder>/<file>`: a job's files lie in the folder of the execution that drew them. A name is written
once and never used again for other bytes, so who lost its lease overwrites nothing, and nothing of it shows: a file
counts from the moment at which Redis holds something that names it, the outcome of a job say.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol


class ResultsAway(Exception):
    """The place for files can't take or give them at the moment: full, away or too slow. Trying again makes sense."""


@dataclass(frozen=True, slots=True)
class File:
    name: str
    data: bytes
    ttl_s: int
    """Kept for so long."""


class Files(Protocol):
    """A worker's access. Every call may raise what Redis raises, and `ResultsAway`."""

    def put(self, files: Sequence[File]) -> list[Exception | None]:
        """Keep them; the error of each, in its place. To put a file again is as good as once."""

    def get(self, name: str) -> bytes | None:
        """The file; None once it has expired."""

    def keep_on(self, names: Sequence[str], ttl_s: int) -> bool:
        """Let none of them expire before `ttl_s` seconds from now. False when one has expired already."""

    def delete(self, names: Iterable[str]) -> None:
        """Forget them; those that are not there too."""

    def witnesses(self, names: Sequence[str]) -> list[str]:
        """Redis keys that exist as long as all these files are kept: for a script that must not end a job without."""

    def sweep(self) -> int:
        """Delete what has expired, where that does not happen by itself; answers how many files."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A file as it is now."""

    data: bytes
    ttl_ms: int


class AsyncFiles(Protocol):
    """A gateway's access, with the same errors."""

    async def put(self, files: Sequence[File]) -> None:
        """Keep them all, or raise."""

    async def get(self, name: str) -> Kept | None:
        """The file; None once it has expired."""

    async def ttl_ms(self, name: str) -> int:
        """Milliseconds for which it is still kept, without reading it; negative once it has expired."""

    async def keep_on(self, names: Sequence[str], ttl_s: int) -> bool:
        """As of `Files`."""

    async def link(self, name: str, valid_s: float) -> str | None:
        """A URL at which anybody gets the file for so long; None where the place gives out none."""

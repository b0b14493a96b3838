"""Remembers the hashes of files that were read whole, so that loading a model again need not read them twice."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from worker.store.durable_files import hash_file
from worker.store.manifest import FileRecord

SETTLED_AFTER_S = 2.0
"""A file that was written more recently than this is hashed again next time: within one tick of a file system's clock
(2 s at worst, on FAT) a second write leaves the times as they are."""
MOST_FILES = 4096

_Identity = tuple[int, int, int, int, int]


class VerifiedFiles:
    """Hashes by device, inode, size, mtime and ctime. Used by one thread.

    Why an unchanged identity means unchanged bytes: published files are never rewritten in place, and whoever does it
    all the same moves the ctime, which no program can set back. A file that takes the inode of a deleted one has its
    own ctime. The identity is taken before and after the bytes are read, so what changes meanwhile is not kept. What
    stays unseen is a disk that answers other bytes than were written to it: `reverie verify` hashes always, and every
    load checks shapes, finiteness and the golden sample.

    Args:
        read: hashes a file's bytes.
        clock: seconds since 1970.
    """

    def __init__(self, read: Callable[[Path], FileRecord] = hash_file, clock: Callable[[], float] = time.time) -> None:
        self._read = read
        self._clock = clock
        self._known: dict[_Identity, FileRecord] = {}

    def hash_file(self, path: Path) -> FileRecord:
        """SHA-256 and size of a file, read only if it is not known."""
        began = self._clock()
        before = path.stat()
        identity = _identity(before)
        record = self._known.pop(identity, None)
        if record is None:
            record = self._read(path)
            settled = began - max(before.st_mtime, before.st_ctime) >= SETTLED_AFTER_S
            if not settled or _identity(path.stat()) != identity:
                return record
        self._known[identity] = record  # at the end: the least recently used leave first
        while len(self._known) > MOST_FILES:
            del self._known[next(iter(self._known))]
        return record


def _identity(stat: os.stat_result) -> _Identity:
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)

"""Staging folders: a publisher writes into one, and a rename makes it a visible version.

The publisher holds a lock file beside the folder as long as it lives. A folder whose lock is free and that was not
written to for a while is left from a dead publisher and is swept. The age counts too, because on some network file
systems a lock holds within one machine only.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from worker.store.durable_files import exclusive_lock, lock_if_free

STAGING_PREFIX = ".publishing-"
DELETED_PREFIX = ".deleted-"
LOCK_SUFFIX = ".lock"


@contextmanager
def staging_folder(model_folder: Path) -> Iterator[Path]:
    """A new, empty, hidden folder inside `model_folder`, removed at the end unless it was renamed."""
    staging = model_folder / f"{STAGING_PREFIX}{os.urandom(6).hex()}"
    lock = staging.with_name(staging.name + LOCK_SUFFIX)
    with exclusive_lock(lock):
        try:
            staging.mkdir()
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            lock.unlink(missing_ok=True)


def sweep(model_folder: Path, older_than: float) -> list[str]:
    """Remove the leftovers of dead publishers and interrupted deletions, if last written before `older_than`.

    Args:
        older_than: seconds since 1970.

    Returns the names removed.
    """
    swept = []
    for entry in sorted(os.listdir(model_folder)):
        path = model_folder / entry
        if not entry.startswith((STAGING_PREFIX, DELETED_PREFIX)) or _last_written(path) >= older_than:
            continue
        lock = path if entry.endswith(LOCK_SUFFIX) else path.with_name(entry + LOCK_SUFFIX)
        with lock_if_free(lock) as free:
            if not free:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            lock.unlink(missing_ok=True)
            swept.append(entry)
    return swept


def remove_version(version_folder: Path) -> None:
    """Hide a version by one rename, then delete its files."""
    doomed = version_folder.with_name(f"{DELETED_PREFIX}{os.urandom(6).hex()}")
    version_folder.rename(doomed)
    shutil.rmtree(doomed)


def _last_written(path: Path) -> float:
    """Latest modification of `path` or anything below it, in seconds since 1970; -inf if it has just been removed."""
    newest = float("-inf")
    for parent, _, names in os.walk(path):
        for each in [Path(parent), *(Path(parent, name) for name in names)]:
            try:
                newest = max(newest, each.stat().st_mtime)
            except FileNotFoundError:
                continue
    if newest == float("-inf"):
        try:
            return path.stat().st_mtime
        except FileNotFoundError:
            return newest
    return newest

"""Files in a folder or in S3: the worker's side.

Redis holds one key for each folder of files, `kept_key`, that exists as long as they are kept: it is written before the
first of them and no file counts without it. Redis's clock alone says what has expired, and deleting is the sweep's.
"""

import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
import redis
from obstore.store import LocalStore

from worker.contract.keys import kept_key
from worker.results.files import File, ResultsAway
from worker.results.names import OURS, folder_of
from worker.results.objects import ObjectStore, errors_of_the_place, put_options
from worker.results.redis_files import KEEP_ON

logger = logging.getLogger(__name__)

WRITERS = 8
YOUNG_S = 600.0
"""A file is not swept before this age, so that none goes between a look at its key and a second writing of it."""
ROOTS = ("jobs/", "uploads/")
LISTED = 1000
UNFINISHED = re.compile(rf"(?:{OURS.pattern})#\d+")
"""As obstore calls a file in a folder until it is whole."""


class ObjectFiles:
    def __init__(
        self, store: ObjectStore, client: "redis.Redis", now: Callable[[], float] = time.time, young_s: float = YOUNG_S
    ) -> None:
        self._store = store
        self._client = client
        self._now = now
        self._young_s = young_s
        self._keep_on = client.register_script(KEEP_ON)
        self._writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="files")

    def put(self, files: Sequence[File]) -> list[Exception | None]:
        with self._client.pipeline(transaction=False) as pipeline:
            for key, ttl_s in kept_keys(files).items():
                pipeline.set(key, b"", ex=ttl_s)
            pipeline.execute()
        return list(self._writers.map(self._put, files))

    def _put(self, file: File) -> Exception | None:
        try:
            with errors_of_the_place():
                obstore.put(self._store, file.name, file.data, **put_options(self._store, file.name))
        except ResultsAway as error:
            return error
        except FileNotFoundError as error:  # the folder's last file was deleted, and the folder with it, just now
            return ResultsAway(str(error).splitlines()[0])
        return None

    def get(self, name: str) -> bytes | None:
        if not self._client.exists(kept_key(folder_of(name))):
            return None
        try:
            with errors_of_the_place():
                return bytes(obstore.get(self._store, name).bytes())
        except FileNotFoundError:
            return None

    def keep_on(self, names: Sequence[str], ttl_s: int) -> bool:
        return bool(self._keep_on(keys=self.witnesses(names), args=[ttl_s]))

    def delete(self, names: Iterable[str]) -> None:
        for error in self._writers.map(self._delete, names):
            if error is not None:
                raise error

    def _delete(self, name: str) -> Exception | None:
        try:
            with errors_of_the_place():
                obstore.delete(self._store, name)
        except FileNotFoundError:
            pass
        except ResultsAway as error:
            return error
        return None

    def witnesses(self, names: Sequence[str]) -> list[str]:
        return list(dict.fromkeys(kept_key(folder_of(name)) for name in names))

    def sweep(self) -> int:
        """Delete the files whose time is over: the losers', the expired ones', those of a worker that died on the way.
        Only names that are ours are touched; answers how many."""
        deleted = 0
        for root in ROOTS:
            with errors_of_the_place():
                for listed in obstore.list(self._store, root, chunk_size=LISTED):
                    old = [one["path"] for one in listed if self._is_old(one["last_modified"].timestamp())]
                    dead = self._without_key([name for name in old if OURS.fullmatch(name)])
                    self.delete(dead)
                    deleted += len(dead)
        return deleted + self._sweep_unfinished()

    def _is_old(self, written_at: float) -> bool:
        return self._now() - written_at >= self._young_s

    def _without_key(self, names: Sequence[str]) -> list[str]:
        with self._client.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.exists(kept_key(folder_of(name)))
            kept = pipeline.execute()
        return [name for name, is_kept in zip(names, kept, strict=True) if not is_kept]

    def _sweep_unfinished(self) -> int:
        """In a folder: what a process that was killed was just writing, which no listing shows."""
        if not isinstance(self._store, LocalStore) or self._store.prefix is None:
            return 0
        deleted = 0
        folder = Path(self._store.prefix)
        # os.walk and not Path.rglob, which raises when a folder goes with its last file just now.
        for inside, _, names in (found for root in ROOTS for found in os.walk(folder / root)):
            for path in (Path(inside, name) for name in names if "#" in name):
                if UNFINISHED.fullmatch(path.relative_to(folder).as_posix()) and self._is_old(_written_at(path)):
                    path.unlink(missing_ok=True)
                    deleted += 1
        return deleted


def _written_at(path: Path) -> float:
    """Never, for one that is whole by now and has its own name."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def kept_keys(files: Iterable[File]) -> dict[str, int]:
    """The keys of their folders, and for how many seconds each is to be there."""
    keys: dict[str, int] = {}
    for file in files:
        key = kept_key(folder_of(file.name))
        keys[key] = max(file.ttl_s, keys.get(key, 0))
    return keys

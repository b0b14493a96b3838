"""An unchanged file is hashed once; whatever touches it has it hashed again."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.worker.tiny_models import TINY, publish_tiny
from worker.store.durable_files import hash_file
from worker.store.errors import BadCheckpoint
from worker.store.manifest import WEIGHTS_PATH, FileRecord
from worker.store.model_store import ModelStore
from worker.store.verified_files import MOST_FILES, SETTLED_AFTER_S, VerifiedFiles


class Reader:
    """Hashes files, and keeps which ones it was asked for."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def __call__(self, path: Path) -> FileRecord:
        self.read.append(path.name)
        return hash_file(path)


def an_hour_later() -> float:
    return time.time() + 3600


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(b"good")
    return path


def _write_and_set_times_back(path: Path) -> None:
    stat = path.stat()
    path.write_bytes(b"evil")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"evil")
    other.replace(path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "written in place": lambda path: path.write_bytes(b"evil"),
    "written in place, its times set back": _write_and_set_times_back,
    "replaced": _replace,
    "longer": lambda path: path.write_bytes(b"good and more"),
}


def test_an_unchanged_file_is_read_once_also_by_another_name(path: Path) -> None:
    reader = Reader()
    os.link(path, path.with_name("again"))
    known = VerifiedFiles(reader, clock=an_hour_later)
    assert known.hash_file(path) == known.hash_file(path) == known.hash_file(path.with_name("again")) == hash_file(path)
    assert reader.read == ["weights"]


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_file_is_read_again(path: Path, change: Callable[[Path], object]) -> None:
    known = VerifiedFiles(clock=an_hour_later)
    known.hash_file(path)
    ticked = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == ticked:  # one tick of the file system's clock, a few milliseconds
        change(path)
    assert known.hash_file(path) == hash_file(path)


def test_a_file_that_was_written_a_moment_ago_is_not_remembered(path: Path) -> None:
    """A second write within one tick of the file system's clock would leave its times as they are."""
    reader = Reader()
    known = VerifiedFiles(reader, clock=lambda: path.stat().st_ctime + 0.9 * SETTLED_AFTER_S)
    known.hash_file(path)
    known.hash_file(path)
    assert reader.read == ["weights"] * 2


def test_a_file_that_changes_while_it_is_read_is_not_remembered(path: Path) -> None:
    seen: list[str] = []

    def disturbed(path: Path) -> FileRecord:
        record = hash_file(path)
        path.write_bytes(b"longer than before" * (1 + len(seen)))
        seen.append(record.sha256)
        return record

    known = VerifiedFiles(disturbed, clock=an_hour_later)
    assert known.hash_file(path) != known.hash_file(path)


def test_only_so_many_files_are_remembered(tmp_path: Path) -> None:
    reader = Reader()
    known = VerifiedFiles(reader, clock=an_hour_later)
    first = tmp_path / "0"
    for number in range(MOST_FILES + 1):
        (tmp_path / str(number)).touch()
        known.hash_file(tmp_path / str(number))
    known.hash_file(first)
    assert reader.read.count("0") == 2


def test_a_model_is_verified_again_without_reading_it_and_read_whole_by_who_asks_for_that(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    checkpoint = publish_tiny(store)
    reader = Reader()
    known = VerifiedFiles(reader, clock=an_hour_later)
    store.verify(TINY, checkpoint.version, known)
    once = list(reader.read)
    store.verify(TINY, checkpoint.version, known)
    assert reader.read == once
    weights = checkpoint.path / WEIGHTS_PATH
    content = bytearray(weights.read_bytes())
    content[-1] ^= 0xFF
    weights.write_bytes(bytes(content))
    for remembered in (known, None):
        with pytest.raises(BadCheckpoint, match="SHA-256"):
            store.verify(TINY, checkpoint.version, remembered)

"""Publishing under bad luck: rivals, kill -9, a full disk. A reader never sees anything but whole versions."""

import multiprocessing
import os
import resource
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tests.worker.tiny_checkpoint import RECIPE, publish_tiny, write_tiny
from worker.store import ModelStore, PublishFailed
from worker.store.manifest import WEIGHTS_PATH
from worker.store.staging import DELETED_PREFIX, STAGING_PREFIX

SPAWN = multiprocessing.get_context("spawn")
# Every child is a daemon: a test that fails must not wait for a child that hangs on purpose.


def _leftovers(root: Path) -> list[str]:
    return [name for name in os.listdir(root / "digits") if name.startswith((STAGING_PREFIX, DELETED_PREFIX))]


def _all_whole(store: ModelStore) -> None:
    for version in [*store.versions("digits"), store.current("digits")]:
        store.verify("digits", version)


def _publish_many(root: Path, steps: range) -> None:
    store = ModelStore(root)
    for step in steps:
        publish_tiny(store, step=step)


def test_concurrent_publishers_all_succeed_and_readers_see_whole_versions_only(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    publish_tiny(store, step=1)
    # Ranges overlap, so that some publish the same version at the same time.
    publishers = [SPAWN.Process(daemon=True, target=_publish_many, args=(tmp_path, range(1, 9 + n))) for n in range(3)]
    for publisher in publishers:
        publisher.start()
    reads = 0
    while any(publisher.is_alive() for publisher in publishers) or reads == 0:
        _all_whole(store)
        reads += 1
    for publisher in publishers:
        publisher.join()
    assert [publisher.exitcode for publisher in publishers] == [0, 0, 0]
    assert sorted(checkpoint[:9] for checkpoint in store.versions("digits")) == [f"{n:09d}" for n in range(1, 11)]
    _all_whole(store)
    assert _leftovers(tmp_path) == []


def _publish_and_hang(root: Path, hung: Connection) -> None:
    def write(folder: Path) -> None:
        write_tiny(folder, 5.0)
        hung.send("written")
        time.sleep(600)

    ModelStore(root).publish("digits", write, step=5, labels=[], null_label=None, metrics={}, recipe=RECIPE)


def test_a_publisher_killed_in_the_middle_leaves_nothing_visible_and_is_swept_later(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    before = publish_tiny(store, step=1)
    here, there = SPAWN.Pipe()
    publisher = SPAWN.Process(daemon=True, target=_publish_and_hang, args=(tmp_path, there))
    publisher.start()
    assert here.poll(60)
    # Alive, it keeps its folder even if somebody's clock is far ahead.
    publish_tiny(ModelStore(tmp_path, clock=lambda: time.time() + 1e6), step=1)
    assert len(_leftovers(tmp_path)) == 2
    publisher.kill()
    publisher.join()
    assert store.versions("digits") == [before.version]
    assert store.current("digits") == before.version
    publish_tiny(store, step=1)
    assert len(_leftovers(tmp_path)) == 2  # dead, but too young to be sure of it on a network mount
    publish_tiny(ModelStore(tmp_path, clock=lambda: time.time() + 1e6), step=1)
    assert _leftovers(tmp_path) == []


def test_kill_9_at_any_moment_leaves_whole_versions_and_a_whole_current(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    publish_tiny(store, step=1)
    for round_ in range(4):
        first = 100_000 * (round_ + 1)
        publisher = SPAWN.Process(daemon=True, target=_publish_many, args=(tmp_path, range(first, first + 50_000)))
        publisher.start()
        deadline = time.monotonic() + 60
        # A different moment of the publisher's cycle in each round.
        while sum(int(version[:9]) >= first for version in store.versions("digits")) < 2 + round_:
            assert time.monotonic() < deadline
        assert publisher.pid is not None
        os.kill(publisher.pid, signal.SIGKILL)
        publisher.join()
        assert publisher.exitcode == -signal.SIGKILL
        _all_whole(store)
        publish_tiny(store, step=first + 50_000)  # nobody is locked out by the dead


def _publish_on_a_full_disk(root: Path, answer: Connection) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        ModelStore(root).publish(
            "digits",
            lambda folder: write_tiny(folder, 2.0, count=4096),
            step=2,
            labels=[],
            null_label=None,
            metrics={},
            recipe=RECIPE,
        )
    except PublishFailed as error:
        answer.send(str(error))
    else:
        answer.send("published")


def test_a_full_disk_fails_the_publish_and_changes_nothing(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    before = publish_tiny(store, step=1)
    here, there = SPAWN.Pipe()
    publisher = SPAWN.Process(daemon=True, target=_publish_on_a_full_disk, args=(tmp_path, there))
    publisher.start()
    assert here.poll(60)
    assert "File too large" in here.recv()
    publisher.join()
    assert store.versions("digits") == [before.version]
    assert store.current("digits") == before.version
    assert _leftovers(tmp_path) == []


def test_what_the_writer_raises_comes_out_and_nothing_is_left(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    before = publish_tiny(store, step=1)

    def write(folder: Path) -> None:
        write_tiny(folder)
        raise ZeroDivisionError("in the middle")

    with pytest.raises(ZeroDivisionError):
        store.publish("digits", write, step=2, labels=[], null_label=None, metrics={}, recipe=RECIPE)
    assert store.versions("digits") == [before.version]
    assert _leftovers(tmp_path) == []


def test_other_users_can_read_what_is_published_whoever_wrote_it(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        write_tiny(folder)
        (folder / WEIGHTS_PATH).chmod(0o600)  # as the safetensors library leaves it

    before = os.umask(0o022)
    try:
        version = ModelStore(tmp_path).publish(
            "digits", write, step=1, labels=[], null_label=None, metrics={}, recipe=RECIPE
        )
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in version.path.rglob("*") if path.is_file()} == {0o644}

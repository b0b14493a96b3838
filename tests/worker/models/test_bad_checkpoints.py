"""Each kind of bad checkpoint, in front of a pool that serves: the old version goes on, the reason is logged once."""

import errno
import logging
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.worker.engine.harness import HandClock, ask, draw, load_float32, same_pixels
from tests.worker.store.test_bad_checkpoints import BAD
from tests.worker.tiny_models import LABELS, NULL_LABEL, TINY, publish_tiny
from worker.contract import ModelInfo
from worker.models.pool import ModelPool
from worker.store import Checkpoint, ModelStore, PublishFailed, Recipe
from worker.store.manifest import WEIGHTS_PATH
from worker.store.model_store import CURRENT_NAME

RECIPE = Recipe(command="none", data="none")
NOT_THERE = "000000009-00000000"


@pytest.fixture(scope="module")
def two_versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a version of step 1, and one of step 2 that is not current."""
    store = ModelStore(tmp_path_factory.mktemp("two") / "store")
    publish_tiny(store)
    publish_tiny(store, weights_seed=1, step=2, make_current=False)
    return store.root


class Served:
    """A copy of the store, and a pool that serves its first version."""

    def __init__(self, two_versions: Path, folder: Path) -> None:
        shutil.copytree(two_versions, folder / "store")
        self.clock = HandClock()
        self.store = ModelStore(folder / "store")
        self.good, self.other = self.store.versions(TINY)
        self.pool = ModelPool(self.store, load_float32, clock=self.clock)
        self.look()
        self.before = draw(self.pool, ask())

    def look(self, times: int = 1) -> ModelInfo:
        """Poll that many times, minutes apart."""
        for _ in range(times):
            self.pool.poll()
            self.pool.load_pending()
            self.clock.now += 100
        (info,) = self.pool.describe()
        return info

    def set_current(self, content: str | bytes) -> None:
        """Past every check that `promote` makes."""
        path = self.store.root / TINY / CURRENT_NAME
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def assert_the_old_one_serves(self) -> None:
        assert same_pixels(draw(self.pool, ask()), self.before)


@pytest.fixture
def served(two_versions: Path, tmp_path: Path) -> Served:
    return Served(two_versions, tmp_path)


@pytest.mark.parametrize("damage", BAD)
def test_a_damaged_version_leaves_the_old_one_serving_and_is_taken_once_it_is_mended(
    served: Served, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    act, reason = BAD[damage]
    act(served.store.root / TINY / served.other)
    served.set_current(served.other)
    with caplog.at_level(logging.ERROR):
        info = served.look(times=5)
    assert info.version == served.good
    assert reason in str(info.reload_error)
    assert served.other in str(info.reload_error)
    assert info.load_failures == 1, "tried again although nothing had changed"
    assert [reason in record.getMessage() for record in caplog.records] == [True], "in the log, once"
    served.assert_the_old_one_serves()

    publish_tiny(served.store, weights_seed=1, step=2)  # the same weights: whole files in the place of the damaged
    info = served.look()
    assert (info.version, info.reload_error, info.load_failures) == (served.other, None, 1)


def _without(name: str, weights: dict[str, torch.Tensor]) -> None:
    del weights[name]


BAD_WEIGHTS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "not a number": (lambda w: w["conv_in.bias"].fill_(torch.nan), "conv_in.bias is not finite"),
    "infinite": (lambda w: w["conv_out.weight"].fill_(torch.inf), "conv_out.weight is not finite"),
    "wrong shape": (lambda w: w.update({"conv_in.bias": torch.zeros(3)}), "conv_in.bias"),
    "missing": (lambda w: _without("conv_in.bias", w), "conv_in.bias"),
    "left over": (lambda w: w.update({"extra": torch.zeros(1)}), "extra"),
}


def publish_weights(store: ModelStore, change: Callable[[dict[str, torch.Tensor]], object]) -> Checkpoint:
    """Publish, with right hashes, what a broken training would."""
    model = store.checkpoint(TINY)

    def write(folder: Path) -> None:
        shutil.copytree(model.path, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
        weights = load_file(folder / WEIGHTS_PATH)
        change(weights)
        save_file(weights, folder / WEIGHTS_PATH, metadata={"format": "pt"})

    return store.publish(TINY, write, step=3, labels=LABELS, null_label=NULL_LABEL, metrics={}, recipe=RECIPE)


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_whole_files_with_bad_weights_leave_the_old_one_serving(served: Served, kind: str) -> None:
    change, reason = BAD_WEIGHTS[kind]
    bad = publish_weights(served.store, change)
    info = served.look(times=5)
    assert (info.version, info.load_failures) == (served.good, 1)
    assert bad.version in str(info.reload_error)
    assert reason in str(info.reload_error)
    served.assert_the_old_one_serves()


@pytest.mark.parametrize("content", ["../..", "/etc/passwd", "", NOT_THERE, "\0", b"\xff\xfe", "x" * 10_000])
def test_a_current_file_that_names_nothing_leaves_the_old_one_serving(
    served: Served, content: str | bytes, caplog: pytest.LogCaptureFixture
) -> None:
    served.set_current(content)
    with caplog.at_level(logging.ERROR):
        info = served.look(times=5)
    assert (info.version, info.load_failures) == (served.good, 1)
    assert "current of model tiny" in str(info.reload_error)
    assert len(caplog.records) == 1
    served.assert_the_old_one_serves()
    served.set_current(served.other)
    info = served.look()
    assert (info.version, info.reload_error) == (served.other, None)


def test_a_version_that_is_still_being_copied_in_is_taken_when_it_is_whole(served: Served) -> None:
    """Somebody copies a folder by hand and sets `current` first."""
    folder = served.store.root / TINY / served.other
    aside = served.store.root / "aside"
    shutil.copytree(folder, aside)
    (folder / WEIGHTS_PATH).write_bytes((aside / WEIGHTS_PATH).read_bytes()[:5000])
    served.set_current(served.other)
    assert served.look(times=3).load_failures == 1
    shutil.copyfile(aside / WEIGHTS_PATH, folder / WEIGHTS_PATH)
    shutil.rmtree(aside)
    info = served.look()
    assert (info.version, info.reload_error) == (served.other, None)


def test_a_disk_that_fills_while_publishing_is_not_even_noticed(served: Served) -> None:
    def write(folder: Path) -> None:
        (folder / "unet").mkdir()
        (folder / WEIGHTS_PATH).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(PublishFailed, match="No space left"):
        served.store.publish(TINY, write, step=5, labels=[], null_label=None, metrics={}, recipe=RECIPE)
    info = served.look()
    assert (info.version, info.reload_error, info.load_failures) == (served.good, None, 0)


def test_a_named_version_that_is_bad_fails_its_requests_alone_and_is_read_once(served: Served) -> None:
    act, reason = BAD["one bit flipped"]
    act(served.store.root / TINY / served.other)
    assert served.pool.acquire(TINY, served.other) is None
    assert served.look(times=3).reload_error is None, "it is not the current one"
    for _ in range(3):
        with pytest.raises(Exception, match=reason):
            served.pool.acquire(TINY, served.other)
    assert served.look().load_failures == 1
    served.assert_the_old_one_serves()


def _serve_without_rights(root: Path, good: str, answer: Connection) -> None:
    if os.geteuid() == 0:
        os.setuid(65534)  # root reads everything
    store, clock = ModelStore(root), HandClock()
    store_of_good = {good: load_float32(store.checkpoint(TINY, good))}
    pool = ModelPool(store, lambda checkpoint: store_of_good[checkpoint.version], clock=clock)
    (root / TINY / CURRENT_NAME).write_text(good)
    pool.poll()
    pool.load_pending()
    (root / TINY / CURRENT_NAME).write_text(store.versions(TINY)[1])
    for _ in range(3):
        pool.poll()
        pool.load_pending()
        clock.now += 100
    (info,) = pool.describe()
    answer.send((info.version, info.reload_error, info.load_failures))


def test_a_version_without_permission_leaves_the_old_one_serving(two_versions: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "store")
        shutil.copytree(two_versions, root)
        Path(folder).chmod(0o755)
        (root / TINY / CURRENT_NAME).chmod(0o666)
        good, other = ModelStore(root).versions(TINY)
        (root / TINY / other / WEIGHTS_PATH).chmod(0)
        here, there = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        child = context.Process(daemon=True, target=_serve_without_rights, args=(root, good, there))
        child.start()
        assert here.poll(120)
        version, reload_error, load_failures = here.recv()
        child.join()
    assert (version, load_failures) == (good, 1)
    assert "Permission denied" in reload_error

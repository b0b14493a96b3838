"""Each way a checkpoint can be bad is found by the store, and named."""

import json
import multiprocessing
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.tiny_checkpoint import RECIPE, changed_byte, publish_tiny, safetensors, write_tiny
from worker.store import BadCheckpoint, Checkpoint, ModelStore, PublishFailed, StoreError
from worker.store.manifest import MANIFEST_NAME, REQUIRED_PATHS, UNET_CONFIG_PATH, WEIGHTS_PATH


def _truncate(version: Path) -> None:
    weights = (version / WEIGHTS_PATH).read_bytes()
    (version / WEIGHTS_PATH).write_bytes(weights[:-5])


def _zero_the_tail(version: Path) -> None:
    weights = (version / WEIGHTS_PATH).read_bytes()
    (version / WEIGHTS_PATH).write_bytes(weights[:-32] + bytes(32))


def _flip_one_bit(version: Path) -> None:
    weights = bytearray((version / WEIGHTS_PATH).read_bytes())
    weights[-1] ^= 1
    (version / WEIGHTS_PATH).write_bytes(weights)


def _pickle_beside(version: Path) -> None:
    (version / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps({}))


def _wrong_hash(version: Path) -> None:
    manifest = json.loads((version / MANIFEST_NAME).read_text())
    manifest["files"][UNET_CONFIG_PATH]["sha256"] = "0" * 64
    (version / MANIFEST_NAME).write_text(json.dumps(manifest))


def _wrong_weights_hash(version: Path) -> None:
    manifest = json.loads((version / MANIFEST_NAME).read_text())
    manifest["weights_sha256"] = "0" * 64
    (version / MANIFEST_NAME).write_text(json.dumps(manifest))


def _path_outside(version: Path) -> None:
    manifest = json.loads((version / MANIFEST_NAME).read_text())
    manifest["files"]["../../secret"] = {"sha256": "0" * 64, "size_bytes": 0}
    (version / MANIFEST_NAME).write_text(json.dumps(manifest))


def _link_outside(version: Path) -> None:
    copy = version.parent / "copy.safetensors"
    shutil.move(version / WEIGHTS_PATH, copy)
    (version / WEIGHTS_PATH).symlink_to(copy)


def _another_versions_manifest(version: Path) -> None:
    manifest = json.loads((version / MANIFEST_NAME).read_text())
    manifest["model"] = "cats"
    (version / MANIFEST_NAME).write_text(json.dumps(manifest))


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated weights": (_truncate, "bytes, the manifest says"),
    "zero-filled tail": (_zero_the_tail, "SHA-256"),
    "one bit flipped": (_flip_one_bit, "SHA-256"),
    "0-byte weights": (lambda version: (version / WEIGHTS_PATH).write_bytes(b""), "has 0 bytes"),
    "missing weights": (lambda version: (version / WEIGHTS_PATH).unlink(), "is missing"),
    "missing manifest": (lambda version: (version / MANIFEST_NAME).unlink(), "can't read manifest.json"),
    "0-byte manifest": (lambda version: (version / MANIFEST_NAME).write_bytes(b""), "is not a manifest"),
    "half-written manifest": (lambda version: (version / MANIFEST_NAME).write_text('{"model": "dig'), "not a manifest"),
    "configuration edited": (lambda version: (version / UNET_CONFIG_PATH).write_text("{}"), "bytes, the manifest says"),
    "pickle": (_pickle_beside, "safetensors only"),
    "python code": (lambda version: (version / "pipeline.py").write_text(""), "can run code"),
    "a file that nobody listed": (lambda version: (version / "notes.txt").write_text("x"), "not in the manifest"),
    "wrong hash in the manifest": (_wrong_hash, "sha256 of component unet is not the hash"),
    "wrong weights hash in the manifest": (_wrong_weights_hash, "weights_sha256 is not the hash"),
    "a path that leads out": (_path_outside, "relative paths inside"),
    "a link that leads out": (_link_outside, "symbolic link"),
    "manifest of another model": (_another_versions_manifest, "is about cats/"),
}


@pytest.mark.parametrize("damage", BAD)
def test_a_bad_checkpoint_is_refused_with_the_reason(tmp_path: Path, damage: str) -> None:
    store = ModelStore(tmp_path)
    good, bad = publish_tiny(store, step=1), publish_tiny(store, step=2)
    act, reason = BAD[damage]
    act(bad.path)
    with pytest.raises(BadCheckpoint, match=reason):
        store.verify("digits", bad.version)
    with pytest.raises(BadCheckpoint, match=f"digits/{bad.version}"):
        store.verify("digits", bad.version)
    store.verify("digits", good.version)
    assert store.versions("digits").count(bad.version) == 1


@pytest.fixture(scope="module")
def published() -> Iterator[tuple[ModelStore, Checkpoint]]:
    with tempfile.TemporaryDirectory() as folder:
        store = ModelStore(Path(folder))
        yield store, publish_tiny(store)


@settings(max_examples=150, deadline=None)
@given(path=st.sampled_from(REQUIRED_PATHS), position=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_any_changed_byte_of_any_file_is_seen(
    published: tuple[ModelStore, Checkpoint], path: str, position: float, flip: int
) -> None:
    store, checkpoint = published
    with changed_byte(checkpoint.path / path, position, flip), pytest.raises(BadCheckpoint):
        store.verify("digits", checkpoint.version)
    store.verify("digits", checkpoint.version)


@settings(max_examples=60, deadline=None)
@given(length=st.integers(0, len(safetensors(1.0)) - 1))
def test_weights_cut_anywhere_are_not_even_published(published: tuple[ModelStore, Checkpoint], length: int) -> None:
    store, checkpoint = published

    def write(folder: Path) -> None:
        write_tiny(folder)
        (folder / WEIGHTS_PATH).write_bytes(safetensors(1.0)[:length])

    with pytest.raises(PublishFailed, match="not published"):
        store.publish("digits", write, step=2, labels=[], null_label=None, metrics={}, recipe=RECIPE)
    assert store.versions("digits") == [checkpoint.version]
    assert store.current("digits") == checkpoint.version


@pytest.mark.parametrize("missing", REQUIRED_PATHS)
def test_a_directory_that_lacks_a_file_is_not_published(tmp_path: Path, missing: str) -> None:
    def write(folder: Path) -> None:
        write_tiny(folder)
        (folder / missing).unlink()

    with pytest.raises(PublishFailed, match=missing):
        ModelStore(tmp_path).publish("m", write, step=1, labels=[], null_label=None, metrics={}, recipe=RECIPE)
    assert ModelStore(tmp_path).models() == []


def test_a_metric_that_is_not_a_number_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(PublishFailed, match=r"metrics\.loss"):
        ModelStore(tmp_path).publish(
            "m", write_tiny, step=1, labels=[], null_label=None, metrics={"loss": float("nan")}, recipe=RECIPE
        )


def _verify_without_rights(root: Path, version: str, answer: Connection) -> None:
    if os.geteuid() == 0:
        os.setuid(65534)  # root reads everything
    try:
        ModelStore(root).verify("digits", version)
    except StoreError as error:
        answer.send(f"{type(error).__name__}: {error}")
    else:
        answer.send("verified")


def test_a_checkpoint_without_permission_is_refused_with_the_reason() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        version = publish_tiny(ModelStore(root))
        (version.path / WEIGHTS_PATH).chmod(0)
        here, there = multiprocessing.Pipe()
        child = multiprocessing.get_context("spawn").Process(
            daemon=True, target=_verify_without_rights, args=(root, version.version, there)
        )
        child.start()
        assert here.poll(60)
        answer = here.recv()
        child.join()
    assert answer.startswith("BadCheckpoint")
    assert "Permission denied" in answer

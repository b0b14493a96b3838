"""The store: what is published is found again, and names never lead anywhere else."""

import json
import os
import time
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.worker.tiny_checkpoint import RECIPE, publish_tiny, write_tiny
from worker.contract import SamplerName
from worker.store import (
    BUNDLED_DEFAULT_MODEL,
    BadCheckpoint,
    ModelNotFound,
    ModelStore,
    PublishFailed,
    RequestDefaults,
    StoreError,
    StoreNotFound,
    VersionNotFound,
    bundled_store_path,
)
from worker.store.manifest import MANIFEST_NAME, WEIGHTS_PATH, Manifest, is_model_name


def test_what_is_published_is_found_again(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store", clock=lambda: 1_800_000_000.0)
    published = publish_tiny(store, step=7)
    found = ModelStore(tmp_path / "store").checkpoint("digits")
    assert found == published
    assert found.path == tmp_path / "store" / "digits" / found.version
    assert found.version == f"000000007-{found.manifest.weights_sha256[:8]}"
    assert (found.manifest.height, found.manifest.width, found.manifest.channels) == (8, 8, 1)
    assert found.manifest.created_at.timestamp() == 1_800_000_000
    assert (found.manifest.labels, found.manifest.null_label) == (["0", "1"], 2)
    assert store.models() == ["digits"]
    store.verify("digits", found.version)


def test_what_requests_get_that_name_nothing_else_and_what_to_try_is_kept_with_a_version(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    defaults = RequestDefaults(sampler=SamplerName.DDPM, steps=25, guidance_scale=4.0)
    examples = ["blue apple", "cat face"]
    store.publish("tuned", write_tiny, step=1, recipe=RECIPE, request_defaults=defaults, example_prompts=examples)
    manifest = store.checkpoint("tuned").manifest
    assert (manifest.request_defaults, manifest.example_prompts) == (defaults, examples)
    with pytest.raises(PublishFailed, match=r"example_prompts: .*at most 32 items"):
        store.publish("chatty", write_tiny, step=1, recipe=RECIPE, example_prompts=["x"] * 33)
    publish_tiny(store)
    plain = store.checkpoint("digits").manifest
    assert (plain.request_defaults, plain.example_prompts) == (RequestDefaults(), [])
    # What earlier releases wrote says nothing of either.
    written = json.loads((store.checkpoint("digits").path / MANIFEST_NAME).read_text())
    earlier = {name: value for name, value in written.items() if name not in ("request_defaults", "example_prompts")}
    assert Manifest.model_validate(earlier) == plain


def test_versions_are_listed_oldest_first_whatever_their_step(tmp_path: Path) -> None:
    seconds = iter(range(1_800_000_000, 1_800_000_100))
    store = ModelStore(tmp_path, clock=lambda: float(next(seconds)))
    order = [publish_tiny(store, step=step).version for step in (30, 10, 20)]
    assert store.versions("digits") == order


def test_publishing_the_same_version_twice_changes_nothing(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    first = publish_tiny(store)
    assert publish_tiny(store) == first
    assert store.versions("digits") == [first.version]


def test_publishing_again_heals_a_damaged_version(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    version = publish_tiny(store)
    (version.path / WEIGHTS_PATH).write_bytes(b"")
    publish_tiny(store)
    store.verify("digits", version.version)


def test_the_same_weights_with_another_configuration_are_refused(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    publish_tiny(store)

    def other(folder: Path) -> None:
        write_tiny(folder, 1.0)
        (folder / "scheduler/scheduler_config.json").write_text('{"num_train_timesteps": 500}')

    with pytest.raises(PublishFailed, match="already there with other files"):
        store.publish("digits", other, step=1, labels=[], null_label=None, metrics={}, recipe=RECIPE)


def test_a_version_can_be_published_without_becoming_current(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    first = publish_tiny(store, step=1)
    second = publish_tiny(store, step=2, make_current=False)
    assert store.current("digits") == first.version
    store.promote("digits", second.version)
    assert store.current("digits") == second.version
    store.promote("digits", first.version)
    assert store.current("digits") == first.version


def test_a_damaged_version_is_not_promoted(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    first = publish_tiny(store, step=1)
    second = publish_tiny(store, step=2, make_current=False)
    (second.path / MANIFEST_NAME).unlink()
    with pytest.raises(BadCheckpoint, match="manifest"):
        store.promote("digits", second.version)
    assert store.current("digits") == first.version


def test_what_is_not_there_is_named_by_name(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFound, match="nowhere"):
        ModelStore(tmp_path / "nowhere").models()
    store = ModelStore(tmp_path)
    with pytest.raises(ModelNotFound, match="no model cats"):
        store.current("cats")
    publish_tiny(store)
    with pytest.raises(VersionNotFound, match="no version 000000009-00000000"):
        store.checkpoint("digits", "000000009-00000000")
    (tmp_path / "digits" / "current").unlink()
    with pytest.raises(VersionNotFound, match="no current version"):
        store.checkpoint("digits")


@settings(max_examples=60, deadline=None)
@given(
    name=st.one_of(st.text(max_size=80), st.sampled_from(["..", "../other", "/etc", "a/b", "digits\n", "digits/", ""]))
)
def test_no_name_leads_out_of_the_store(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    base = tmp_path_factory.getbasetemp() / "names"
    store = ModelStore(base / "store")
    if not (base / "store").exists():
        publish_tiny(store)
        publish_tiny(ModelStore(base), "other")
    if name == "digits":
        return
    with pytest.raises(ModelNotFound):
        store.checkpoint(name)
    with pytest.raises(VersionNotFound):
        store.checkpoint("digits", name)
    if not is_model_name(name):
        with pytest.raises(PublishFailed):
            publish_tiny(store, name)
    assert sorted(os.listdir(base)) == ["other", "store"]


@settings(max_examples=60, deadline=None)
@given(
    text=st.one_of(
        st.binary(max_size=300),
        st.sampled_from(
            [b"", b"../..", b"../../other/000000001-00000000", b"000000009-00000000", b"\0", b"/etc/passwd"]
        ),
    )
)
def test_a_current_file_with_anything_in_it_gives_a_store_error(
    tmp_path_factory: pytest.TempPathFactory, text: bytes
) -> None:
    root = tmp_path_factory.getbasetemp() / "current"
    store = ModelStore(root)
    if not root.exists():
        publish_tiny(store)
    (root / "digits" / "current").write_bytes(text)
    with pytest.raises((BadCheckpoint, VersionNotFound)):
        store.checkpoint("digits")


def test_a_model_is_still_there_when_current_is_junk(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    version = publish_tiny(store).version
    (tmp_path / "digits" / "current").write_text("../..")
    assert store.models() == ["digits"]
    store.verify("digits", version)
    with pytest.raises(StoreError):
        store.prune("digits", keep=0)
    assert store.versions("digits") == [version]


def test_every_bundled_model_is_whole_and_installed_with_all_its_files() -> None:
    store = ModelStore(bundled_store_path())
    assert set(store.models()) == {"digits", BUNDLED_DEFAULT_MODEL, "emoji-64"}
    for model in store.models():
        store.verify(model, store.current(model))
        assert store.versions(model) == [store.current(model)]
    assert store.checkpoint(BUNDLED_DEFAULT_MODEL).manifest.example_prompts, "the page opens with one"
    packaging = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    patterns = packaging["tool"]["setuptools"]["package-data"]["worker"]
    room = bundled_store_path().parent
    installed = {path for pattern in patterns for path in room.glob(pattern) if path.is_file()}
    assert {path for path in bundled_store_path().rglob("*") if path.is_file()} <= installed


def test_the_bundled_cascade_enlarges_what_the_bundled_default_draws() -> None:
    store = ModelStore(bundled_store_path())
    small, large = (store.checkpoint(model).manifest for model in (BUNDLED_DEFAULT_MODEL, "emoji-64"))
    assert small.components.items() <= large.components.items()
    assert (large.width, large.height) == (2 * small.width, 2 * small.height)
    assert large.request_defaults == small.request_defaults
    assert large.example_prompts == small.example_prompts


class StoreHistory(RuleBasedStateMachine):
    """Any order of publishing, promoting and pruning: the store agrees with a list and a pointer."""

    @initialize(folder=st.just(None))
    def begin(self, folder: None) -> None:
        import tempfile

        self._temporary = tempfile.TemporaryDirectory()
        self.seconds = 1_800_000_000.0
        self.store = ModelStore(Path(self._temporary.name), clock=lambda: self.seconds)
        self.versions: list[str] = []
        self.current: str | None = None

    def teardown(self) -> None:
        if hasattr(self, "_temporary"):
            self._temporary.cleanup()

    @rule(step=st.integers(1, 6), make_current=st.booleans())
    def publish(self, step: int, make_current: bool) -> None:
        make_current = make_current or self.current is None
        self.seconds += 1
        version = publish_tiny(self.store, step=step, make_current=make_current).version
        if version not in self.versions:
            self.versions.append(version)
        if make_current:
            self.current = version

    @precondition(lambda self: self.versions)
    @rule(data=st.data())
    def promote(self, data: st.DataObject) -> None:
        self.current = data.draw(st.sampled_from(self.versions))
        self.store.promote("digits", self.current)

    @precondition(lambda self: self.versions)
    @rule(keep=st.integers(0, 3), data=st.data())
    def prune(self, keep: int, data: st.DataObject) -> None:
        pinned = data.draw(st.sets(st.sampled_from(self.versions), max_size=2))
        newest = self.versions[-keep:] if keep else []
        kept = [each for each in self.versions if each in {*newest, *pinned, self.current}]
        removed = self.store.prune("digits", keep=keep, pinned=pinned)
        assert removed == [each for each in self.versions if each not in kept]
        self.versions = kept

    @precondition(lambda self: self.versions)
    @invariant()
    def agrees(self) -> None:
        assert self.store.versions("digits") == self.versions
        assert self.store.current("digits") == self.current


TestStoreHistory = StoreHistory.TestCase
TestStoreHistory.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)


def test_a_fingerprint_changes_with_content_and_rights_and_not_with_reading(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    checkpoint = publish_tiny(store)
    weights = checkpoint.path / WEIGHTS_PATH

    def fingerprint() -> object:
        return store.fingerprint("digits", checkpoint.version)

    first = fingerprint()
    store.verify("digits", checkpoint.version)
    assert fingerprint() == first
    seen = {first}
    before = weights.stat()
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    for change in (
        lambda: weights.write_bytes(bytes(changed)),
        lambda: os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns)),  # hiding it does not help
        lambda: weights.chmod(0o600),
        lambda: weights.unlink(),
    ):
        time.sleep(0.02)  # some file systems keep time in ticks of hundredths
        change()
        seen.add(fingerprint())
    assert len(seen) == 5
    assert store.fingerprint("digits", "000000009-00000000") is None


def test_a_current_file_that_is_a_folder_is_named_and_nothing_is_changed(tmp_path: Path) -> None:
    """A wrong mount, say."""
    store = ModelStore(tmp_path)
    version = publish_tiny(store).version
    (tmp_path / "digits" / "current").unlink()
    (tmp_path / "digits" / "current").mkdir()
    before = sorted(path.name for path in (tmp_path / "digits").iterdir())
    with pytest.raises(BadCheckpoint, match="can't read current of model digits: Is a directory"):
        store.current("digits")
    with pytest.raises(StoreError, match=f"can't promote digits/{version}: Is a directory"):
        store.promote("digits", version)
    with pytest.raises(BadCheckpoint, match="can't read current"):
        store.prune("digits", keep=0)
    assert sorted(path.name for path in (tmp_path / "digits").iterdir()) == before


def test_the_number_of_versions_to_keep_is_checked(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    version = publish_tiny(store).version
    with pytest.raises(ValueError, match="need keep >= 0, got -1"):
        store.prune("digits", keep=-1)
    assert store.versions("digits") == [version]

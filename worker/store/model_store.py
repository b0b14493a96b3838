"""The checkpoints on disk: models, their versions, which version is current, and how another is published.

<root>/<model>/<version>/     a diffusers pipeline directory plus manifest.json, never changed once visible
<root>/<model>/current        the name of the version that is served; replaced by atomic rename
<root>/<model>/.lock          held while `current` changes or versions are removed

Readers take no lock and only ever see whole versions. Changes are found by polling: the root may be a network mount.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from worker.contract import MODEL_NAME_PATTERN, VERSION_PATTERN
from worker.store.description import Details, describe
from worker.store.durable_files import exclusive_lock, fsync_path, fsync_tree, hash_file, replace_file, share_like
from worker.store.errors import BadCheckpoint, ModelNotFound, PublishFailed, StoreError, StoreNotFound, VersionNotFound
from worker.store.inspection import Fingerprint, folder_fingerprint, read_manifest, verify_files
from worker.store.lora_store import LaidLora
from worker.store.manifest import (
    MANIFEST_NAME,
    GoldenOutput,
    Manifest,
    Recipe,
    RequestDefaults,
    is_model_name,
    is_version_name,
    utc,
)
from worker.store.staging import remove_version, staging_folder, sweep
from worker.store.verified_files import VerifiedFiles

CURRENT_NAME = "current"
LOCK_NAME = ".lock"
STALE_AFTER_S = 3600.0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One published version."""

    model: str
    version: str
    path: Path
    manifest: Manifest
    loras: tuple[LaidLora, ...] = ()
    """Laid upon its weights when it is loaded, in this order."""


class ModelStore:
    """The store at `root`. Stateless: each call reads the disk.

    Args:
        root: the store's folder; the first publish creates it.
        clock: seconds since 1970.
    """

    def __init__(self, root: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.root = Path(root)
        self._clock = clock

    def models(self) -> list[str]:
        """Names of the models that have a version, sorted."""
        return [name for name in self._model_folders() if self._version_folders(self.root / name)]

    def versions(self, model: str) -> list[str]:
        """All versions of a model, oldest first by the manifest's creation time."""
        folder = self._model_folder(model)
        names = self._version_folders(folder)
        return sorted(names, key=lambda version: (self._created_at(folder, model, version), version))

    def version_names(self, model: str) -> frozenset[str]:
        """Names of all versions of a model, from one listing of its folder."""
        return frozenset(self._version_folders(self._model_folder(model)))

    def current(self, model: str) -> str:
        """The version to serve."""
        folder = self._model_folder(model)
        try:
            with (folder / CURRENT_NAME).open("rb") as file:
                text = file.read(256).decode("utf-8", "replace").strip()
        except FileNotFoundError:
            raise VersionNotFound(f"model {model} has no current version") from None
        except OSError as error:
            raise BadCheckpoint(f"can't read {CURRENT_NAME} of model {model}: {error.strerror}") from error
        if not is_version_name(text):
            raise BadCheckpoint(
                f"{CURRENT_NAME} of model {model} must hold a version like 000012000-3f2a9c1b, holds {text!r}"
            )
        if text not in self._version_folders(folder):
            raise VersionNotFound(f"{CURRENT_NAME} of model {model} names {text}, which is not there")
        return text

    def checkpoint(self, model: str, version: str | None = None) -> Checkpoint:
        """One version, by default the current one. Reads its manifest; `verify` checks the files."""
        version = self.current(model) if version is None else version
        folder = self._version_folder(model, version)
        return Checkpoint(model=model, version=version, path=folder, manifest=read_manifest(folder, model, version))

    def verify(
        self,
        model: str,
        version: str,
        known: VerifiedFiles | None = None,
        in_memory: AbstractSet[str] = frozenset(),
    ) -> None:
        """Raise BadCheckpoint unless every byte of the version matches its manifest.

        Args:
            known: hashes of files that have not changed since they were read; None: every byte is read.
            in_memory: see `verify_files`.
        """
        checkpoint = self.checkpoint(model, version)
        verify_files(checkpoint.path, checkpoint.manifest, hash_file if known is None else known.hash_file, in_memory)

    def fingerprint(self, model: str, version: str) -> Fingerprint | None:
        """A value that changes when a file of the version is written, replaced, removed or given another mode.

        Reads no file. None: there is no such version.
        """
        try:
            return folder_fingerprint(self._version_folder(model, version))
        except StoreError:
            return None

    def publish(
        self,
        model: str,
        write: Callable[[Path], None],
        *,
        step: int,
        recipe: Recipe,
        labels: Sequence[str] = (),
        null_label: int | None = None,
        metrics: Mapping[str, float] | None = None,
        skipped: Sequence[str] = (),
        request_defaults: RequestDefaults | None = None,
        example_prompts: Sequence[str] = (),
        golden: GoldenOutput | None = None,
        make_current: bool = True,
    ) -> Checkpoint:
        """Publish a new version of `model`, written by `write` into the empty folder that it gets.

        `write` leaves a diffusers pipeline directory: a folder for each component, and the index that names them.
        For a text-to-image model:

            unet.save_pretrained(folder / "unet")
            text_encoder.save_pretrained(folder / "text_encoder")
            tokenizer.save_pretrained(folder / "tokenizer")
            (folder / "scheduler").mkdir()
            (folder / "scheduler" / "scheduler_config.json").write_text(...)
            write_text_to_image_index(folder)  # from worker.store; write_index for any other

        The same files at the same step are the same version: publishing them again changes nothing, or replaces a
        damaged copy. Raises PublishFailed, and whatever `write` raises; nothing visible has changed then.

        Args:
            model: name to publish under.
            write: makes the pipeline directory.
            step: training step of the weights.
            recipe: how they were made.
            labels: name of each class, for a model with classes.
            null_label: the class that means "no class".
            metrics: how good the weights are.
            skipped: components that the weights came with and that are not published.
            request_defaults: for requests that name nothing else.
            example_prompts: to try it with.
            golden: outputs of the network that loaders compare with theirs.
            make_current: serve it at once.
        """
        if not is_model_name(model):
            raise PublishFailed(f"need a model name that matches {MODEL_NAME_PATTERN}, got {model!r}")
        details = Details(
            step=step,
            recipe=recipe,
            labels=labels,
            null_label=null_label,
            metrics=metrics or {},
            skipped=skipped,
            request_defaults=request_defaults,
            example_prompts=example_prompts,
            golden=golden,
        )
        folder = self.root / model
        try:
            folder.mkdir(parents=True, exist_ok=True)
            sweep(folder, older_than=self._clock() - STALE_AFTER_S)
            with staging_folder(folder) as staging:
                write(staging)
                manifest = describe(staging, model, details, utc(self._clock()))
                (staging / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
                share_like(staging / MANIFEST_NAME, staging)
                fsync_tree(staging)
                with self._locked(folder):
                    version_folder = self._place(staging, folder, manifest)
                    if make_current:
                        replace_file(folder / CURRENT_NAME, manifest.version + "\n")
        except OSError as error:
            raise PublishFailed(f"can't publish {model} in {self.root}: {error.strerror or error}") from error
        except BadCheckpoint as error:
            raise PublishFailed(f"not published: {error}") from error
        return Checkpoint(
            model, manifest.version, version_folder, read_manifest(version_folder, model, manifest.version)
        )

    def promote(self, model: str, version: str) -> None:
        """Verify `version`, which may be an older one, and make it current."""
        self.verify(model, version)
        folder = self._model_folder(model)
        try:
            with self._locked(folder):
                self._version_folder(model, version)
                replace_file(folder / CURRENT_NAME, version + "\n")
        except OSError as error:
            raise StoreError(f"can't promote {model}/{version}: {error.strerror or error}") from error

    def prune(self, model: str, keep: int, pinned: AbstractSet[str] = frozenset()) -> list[str]:
        """Remove all versions but the newest `keep`, the current one and those in `pinned`.

        Returns the removed versions, oldest first.
        """
        if keep < 0:
            raise ValueError(f"need keep >= 0, got {keep}")
        folder = self._model_folder(model)
        try:
            with self._locked(folder):
                versions = self.versions(model)
                # Raises, and removes nothing, when the current version is unknown.
                protected = {self.current(model), *pinned, *versions[len(versions) - min(keep, len(versions)) :]}
                doomed = [version for version in versions if version not in protected]
                for version in doomed:
                    remove_version(folder / version)
                sweep(folder, older_than=self._clock() - STALE_AFTER_S)
        except OSError as error:
            raise StoreError(f"can't prune {model}: {error.strerror or error}") from error
        return doomed

    def _place(self, staging: Path, folder: Path, manifest: Manifest) -> Path:
        """Rename the finished folder to its version. The caller holds the model's lock."""
        target = folder / manifest.version
        if target.exists():
            try:
                present = read_manifest(target, manifest.model, manifest.version)
                verify_files(target, present)
            except BadCheckpoint:
                remove_version(target)  # damaged: ours is whole and has the same name
            else:
                if present.files != manifest.files:
                    raise BadCheckpoint(f"{manifest.model}/{manifest.version} is already there with other files")
                return target
        staging.rename(target)
        fsync_path(folder)
        return target

    @contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        with exclusive_lock(folder / LOCK_NAME):
            yield

    def _model_folders(self) -> list[str]:
        try:
            with os.scandir(self.root) as entries:
                return sorted(entry.name for entry in entries if is_model_name(entry.name) and entry.is_dir())
        except OSError as error:
            raise StoreNotFound(f"no store at {self.root}: {error.strerror}") from error

    def _model_folder(self, model: str) -> Path:
        if not is_model_name(model):
            raise ModelNotFound(f"need a model name that matches {MODEL_NAME_PATTERN}, got {model!r}")
        if model not in self._model_folders() or not self._version_folders(self.root / model):
            raise ModelNotFound(f"no model {model} in the store {self.root}")
        return self.root / model

    def _version_folders(self, folder: Path) -> list[str]:
        try:
            with os.scandir(folder) as entries:
                return [entry.name for entry in entries if is_version_name(entry.name) and entry.is_dir()]
        except OSError as error:
            raise BadCheckpoint(f"can't read {folder}: {error.strerror}") from error

    def _version_folder(self, model: str, version: str) -> Path:
        folder = self._model_folder(model)
        if not is_version_name(version):
            raise VersionNotFound(f"need a version that matches {VERSION_PATTERN}, got {version!r}")
        if version not in self._version_folders(folder):
            raise VersionNotFound(f"model {model} has no version {version}")
        return folder / version

    def _created_at(self, folder: Path, model: str, version: str) -> float:
        try:
            return read_manifest(folder / version, model, version).created_at.timestamp()
        except BadCheckpoint:
            return (folder / version).stat().st_mtime  # damaged versions are listed too

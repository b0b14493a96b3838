"""The checkpoints on disk: which models and versions there are, which one is current, and publishing another.

<root>/<model>/<version>/     a diffusers pipeline directory plus manifest.json, never changed once visible
<root>/<model>/current        names the version that is served; replaced by atomic rename
<root>/<model>/.lock          held while `current` changes or versions are removed

Readers take no lock and see whole versions only. Everything works by polling, so the root may be a network mount.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from worker.contract import MODEL_NAME_PATTERN, VERSION_PATTERN
from worker.store.durable_files import (
    exclusive_lock,
    fsync_path,
    fsync_tree,
    hash_file,
    replace_file,
    share_like,
)
from worker.store.errors import BadCheckpoint, ModelNotFound, PublishFailed, StoreError, StoreNotFound, VersionNotFound
from worker.store.inspection import (
    Fingerprint,
    check_structure,
    files_below,
    first_problem,
    folder_fingerprint,
    image_shape,
    read_manifest,
    verify_files,
)
from worker.store.manifest import (
    MANIFEST_NAME,
    REQUIRED_PATHS,
    WEIGHTS_PATH,
    GoldenOutput,
    Manifest,
    Recipe,
    is_model_name,
    is_version_name,
    utc,
    version_name,
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


class ModelStore:
    """The store at `root`. Holds no state of its own: every answer is read from the disk when asked for.

    Args:
        root: the store's folder; made by the first publish.
        clock: seconds since 1970.
    """

    def __init__(self, root: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.root = Path(root)
        self._clock = clock

    def models(self) -> list[str]:
        """Names of the models that have a version, sorted."""
        return [name for name in self._model_folders() if self._version_folders(self.root / name)]

    def default_model(self) -> str:
        """The model meant when none is named: the only one, or the first by name."""
        models = self.models()
        if not models:
            raise ModelNotFound(f"no model in the store {self.root}")
        return models[0]

    def versions(self, model: str) -> list[str]:
        """All versions of a model, oldest first (by the manifest's creation time)."""
        folder = self._model_folder(model)
        names = self._version_folders(folder)
        return sorted(names, key=lambda version: (self._created_at(folder, model, version), version))

    def version_names(self, model: str) -> frozenset[str]:
        """The names of all versions of a model; one look at its folder and nothing read."""
        return frozenset(self._version_folders(self._model_folder(model)))

    def current(self, model: str) -> str:
        """The version that is to be served."""
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
        """One version, by default the current one, with its manifest read and nothing else checked: see `verify`."""
        version = self.current(model) if version is None else version
        folder = self._version_folder(model, version)
        return Checkpoint(model=model, version=version, path=folder, manifest=read_manifest(folder, model, version))

    def verify(self, model: str, version: str, known: VerifiedFiles | None = None) -> None:
        """Raise BadCheckpoint unless every byte of the version is what its manifest says.

        Args:
            known: hashes of files that have not changed since they were read; None: every byte is read.
        """
        checkpoint = self.checkpoint(model, version)
        verify_files(checkpoint.path, checkpoint.manifest, hash_file if known is None else known.hash_file)

    def fingerprint(self, model: str, version: str) -> Fingerprint | None:
        """Changes whenever a file of the version is written, replaced, removed or given other rights; reads no file.

        None: there is no such version.
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
        labels: Sequence[str],
        null_label: int | None,
        metrics: Mapping[str, float],
        recipe: Recipe,
        golden: GoldenOutput | None = None,
        make_current: bool = True,
    ) -> Checkpoint:
        """Make a new version out of what `write` puts into the empty folder it is given.

        `write` makes a diffusers pipeline directory. The same weights at the same step are the same version: publishing
        them again changes nothing, or puts whole files in the place of damaged ones. Raises PublishFailed, and whatever
        else `write` raises, with nothing visible changed.
        """
        if not is_model_name(model):
            raise PublishFailed(f"need a model name that matches {MODEL_NAME_PATTERN}, got {model!r}")
        folder = self.root / model
        try:
            folder.mkdir(parents=True, exist_ok=True)
            sweep(folder, older_than=self._clock() - STALE_AFTER_S)
            with staging_folder(folder) as staging:
                write(staging)
                manifest = self._describe(
                    model,
                    staging,
                    step=step,
                    labels=labels,
                    null_label=null_label,
                    metrics=metrics,
                    recipe=recipe,
                    golden=golden,
                )
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
        """Make `version` the current one, after verifying it; older versions too."""
        self.verify(model, version)
        folder = self._model_folder(model)
        try:
            with self._locked(folder):
                self._version_folder(model, version)
                replace_file(folder / CURRENT_NAME, version + "\n")
        except OSError as error:
            raise StoreError(f"can't promote {model}/{version}: {error.strerror or error}") from error

    def prune(self, model: str, keep: int, pinned: AbstractSet[str] = frozenset()) -> list[str]:
        """Remove all but the newest `keep` versions, never the current one and never a `pinned` one.

        Returns the versions removed, oldest first.
        """
        if keep < 0:
            raise ValueError(f"need keep >= 0, got {keep}")
        folder = self._model_folder(model)
        try:
            with self._locked(folder):
                versions = self.versions(model)
                # Raises, and nothing is removed, when it can't be known which version is current.
                protected = {self.current(model), *pinned, *versions[len(versions) - min(keep, len(versions)) :]}
                doomed = [version for version in versions if version not in protected]
                for version in doomed:
                    remove_version(folder / version)
                sweep(folder, older_than=self._clock() - STALE_AFTER_S)
        except OSError as error:
            raise StoreError(f"can't prune {model}: {error.strerror or error}") from error
        return doomed

    def _describe(
        self,
        model: str,
        staging: Path,
        *,
        step: int,
        labels: Sequence[str],
        null_label: int | None,
        metrics: Mapping[str, float],
        recipe: Recipe,
        golden: GoldenOutput | None,
    ) -> Manifest:
        """The manifest of what lies in `staging`, once it is seen to be a checkpoint at all."""
        found = files_below(staging, model)
        missing = [path for path in REQUIRED_PATHS if path not in found]
        if missing:
            raise BadCheckpoint(f"{model}: {', '.join(missing)} missing")
        check_structure(staging, model)
        height, width, channels = image_shape(staging, model)
        files = {path: hash_file(staging / path) for path in found}
        weights_sha256 = files[WEIGHTS_PATH].sha256
        try:
            return Manifest(
                model=model,
                version=version_name(step, weights_sha256),
                step=step,
                created_at=utc(self._clock()),
                labels=list(labels),
                null_label=null_label,
                width=width,
                height=height,
                channels=channels,
                metrics=dict(metrics),
                weights_sha256=weights_sha256,
                files=files,
                recipe=recipe,
                golden=golden,
            )
        except ValidationError as error:
            raise BadCheckpoint(f"{model}: {first_problem(error)}") from error

    def _place(self, staging: Path, folder: Path, manifest: Manifest) -> Path:
        """Give the finished folder its name. Called with the model's lock held."""
        target = folder / manifest.version
        if target.exists():
            try:
                present = read_manifest(target, manifest.model, manifest.version)
                verify_files(target, present)
            except BadCheckpoint:
                remove_version(target)  # damaged: what we hold is whole and has the same name
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
            return (folder / version).stat().st_mtime  # damaged versions are listed too, so that they can be seen

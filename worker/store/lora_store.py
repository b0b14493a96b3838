"""The LoRAs on disk, beside the models of a store.

<root>/_loras/<name>/<sha256>/lora.safetensors, manifest.json    never changed once visible
<root>/_loras/<name>/current                                     the hash that a request gets that names none

A name that is imported again keeps its earlier files: jobs and receipts name them by hash.
"""

import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import AwareDatetime, Field, ValidationError

from worker.contract import MODEL_NAME_PATTERN
from worker.store.durable_files import exclusive_lock, fsync_path, fsync_tree, hash_file, replace_file, share_like
from worker.store.errors import BadLora, LoraNotFound, PublishFailed
from worker.store.inspection import first_problem
from worker.store.manifest import MANIFEST_NAME, ManifestPart, Sha256, is_model_name, utc
from worker.store.staging import staging_folder, sweep

FOLDER = "_loras"
"""No name of a model."""
FILE = "lora.safetensors"
CURRENT_NAME = "current"
STALE_AFTER_S = 3600.0
SHA256 = re.compile(r"[0-9a-f]{64}")


class LoraManifest(ManifestPart):
    """What is known of one LoRA."""

    name: str = Field(pattern=MODEL_NAME_PATTERN)
    sha256: Sha256
    """Of its file, as it was imported."""
    size_bytes: int = Field(ge=0)
    created_at: AwareDatetime
    source: str
    """Name of the file that was imported."""
    made_for: str | None = None
    """The only model that it is offered for; None: all that it fits."""
    components: list[str]
    """Whose weights it changes."""


@dataclass(frozen=True, slots=True)
class Lora:
    """One LoRA of the store."""

    path: Path
    manifest: LoraManifest

    @property
    def file(self) -> Path:
        return self.path / FILE


@dataclass(frozen=True, slots=True)
class LaidLora:
    """A LoRA that is laid upon a checkpoint's weights."""

    lora: Lora
    scale: float

    @property
    def identity(self) -> str:
        """What decides by how much it changes them."""
        return f"{self.lora.manifest.sha256} {self.scale!r}"


class LoraStore:
    """The LoRAs of the store at `root`. Stateless: each call reads the disk."""

    def __init__(self, root: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._root = Path(root) / FOLDER
        self._clock = clock

    def names(self) -> list[str]:
        """Of the LoRAs that there are, sorted."""
        if not self._root.is_dir():
            return []
        return sorted(path.name for path in self._root.iterdir() if is_model_name(path.name) and self.hashes(path.name))

    def hashes(self, name: str) -> list[str]:
        """Of all files that were imported under a name, sorted."""
        if not is_model_name(name) or not (self._root / name).is_dir():
            return []
        return sorted(path.name for path in (self._root / name).iterdir() if SHA256.fullmatch(path.name))

    def current(self, name: str) -> str:
        """The hash of the file that was imported last under a name. Raises LoraNotFound."""
        try:
            text = (self._root / name / CURRENT_NAME).read_text(encoding="utf-8").strip() if is_model_name(name) else ""
        except OSError:
            text = ""
        if text not in self.hashes(name):
            raise LoraNotFound(f"there is no LoRA {name}")
        return text

    def find(self, name: str, sha256: str | None = None) -> Lora:
        """Raises LoraNotFound, BadLora."""
        sha256 = self.current(name) if sha256 is None else sha256
        if sha256 not in self.hashes(name):
            raise LoraNotFound(f"there is no LoRA {name} of SHA-256 {sha256}")
        folder = self._root / name / sha256
        try:
            manifest = LoraManifest.model_validate_json((folder / MANIFEST_NAME).read_bytes())
        except OSError as error:
            raise BadLora(f"LoRA {name}: can't read {MANIFEST_NAME}: {error.strerror}") from error
        except ValidationError as error:
            raise BadLora(f"LoRA {name}: {MANIFEST_NAME} is not one: {first_problem(error)}") from error
        if (manifest.name, manifest.sha256) != (name, sha256):
            raise BadLora(f"LoRA {name}: {MANIFEST_NAME} is about {manifest.name} {manifest.sha256}")
        return Lora(folder, manifest)

    def verify(self, lora: Lora) -> None:
        """Raise BadLora unless the file is the one that was imported, byte for byte."""
        try:
            found = hash_file(lora.file).sha256
        except OSError as error:
            raise BadLora(f"LoRA {lora.manifest.name}: can't read {FILE}: {error.strerror}") from error
        if found != lora.manifest.sha256:
            raise BadLora(f"LoRA {lora.manifest.name}: {FILE} has SHA-256 {found}, need {lora.manifest.sha256}")

    def publish(self, file: Path, name: str, *, components: list[str], made_for: str | None = None) -> Lora:
        """Take a file whose fit was checked, and make it the one that a request gets.

        Raises:
            PublishFailed: the store could not take it; nothing visible has changed.
        """
        if not is_model_name(name):
            raise PublishFailed(f"need a LoRA's name that matches {MODEL_NAME_PATTERN}, got {name!r}")
        folder = self._root / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            sweep(folder, older_than=self._clock() - STALE_AFTER_S)
            with staging_folder(folder) as staging:
                shutil.copyfile(file, staging / FILE)
                record = hash_file(staging / FILE)
                manifest = LoraManifest(
                    name=name,
                    sha256=record.sha256,
                    size_bytes=record.size_bytes,
                    created_at=utc(self._clock()),
                    source=file.name,
                    made_for=made_for,
                    components=components,
                )
                (staging / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
                share_like(staging / MANIFEST_NAME, staging)
                fsync_tree(staging)
                with exclusive_lock(folder / ".lock"):
                    self._place(staging, folder / record.sha256)
                    replace_file(folder / CURRENT_NAME, record.sha256 + "\n")
        except OSError as error:
            raise PublishFailed(f"can't take LoRA {name} into the store: {error.strerror or error}") from error
        return self.find(name, record.sha256)

    def _place(self, staging: Path, target: Path) -> None:
        """The same file again replaces what is there: `--for` may have changed, or a copy may be damaged."""
        if target.exists():
            for name in (FILE, MANIFEST_NAME):
                (staging / name).replace(target / name)
            fsync_path(target)
        else:
            staging.rename(target)
            fsync_path(target.parent)

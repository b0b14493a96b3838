"""A published version, with the settings that it was trained by."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from training.configuration import TrainingConfiguration, read_configuration
from training.errors import ConfigurationError
from training.text import CaptionTokenizer
from worker.store import Checkpoint, ModelStore


@dataclass(frozen=True, eq=False)
class OpenedVersion:
    """Attributes:
    store: that holds it.
    checkpoint: where it is, with its manifest.
    configuration: of its training, of a cascade of that of its second leg.
    tokenizer: None where it takes no prompts.
    """

    store: ModelStore
    checkpoint: Checkpoint
    configuration: TrainingConfiguration
    tokenizer: CaptionTokenizer | None


def settings_like(name: str, store: ModelStore) -> Mapping[str, object]:
    """The settings that `MODEL[@VERSION]` was trained with. Raises StoreError or ConfigurationError."""
    checkpoint = named_checkpoint(name, store)
    settings = checkpoint.manifest.recipe.settings
    known = {key: value for key, value in settings.items() if key in TrainingConfiguration.model_fields}
    if "data" not in known:
        raise ConfigurationError(f"{name} does not record the settings it was trained with")
    return known


def named_checkpoint(name: str, store: ModelStore) -> Checkpoint:
    model, _, version = name.partition("@")
    return store.checkpoint(model, version or None)


def open_version(name: str, store: ModelStore) -> OpenedVersion:
    """Open `MODEL[@VERSION]`. Raises StoreError or ConfigurationError."""
    checkpoint = named_checkpoint(name, store)
    store.verify(checkpoint.model, checkpoint.version)
    configuration = read_configuration(like=settings_like(name, store))
    folder = checkpoint.path / "tokenizer"
    return OpenedVersion(store, checkpoint, configuration, CaptionTokenizer.open(folder) if folder.is_dir() else None)


def store_at(path: str | None, environment: str | None) -> ModelStore:
    """The store that a command means. Raises ConfigurationError."""
    chosen = path or environment
    if not chosen:
        raise ConfigurationError("need a folder of checkpoints: --store or REVERIE_STORE")
    return ModelStore(Path(chosen))

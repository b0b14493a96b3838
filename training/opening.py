"""A published version as the network that was trained, with the settings it was trained by."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from safetensors import SafetensorError
from transformers import CLIPTextModel

from training.configuration import TrainingConfiguration, read_configuration
from training.data.latents import Autoencoder, open_autoencoder
from training.errors import ConfigurationError
from training.network import Backbone, Denoiser
from training.text import CaptionTokenizer
from worker.store import Checkpoint, ModelStore
from worker.store.super_resolution import SUPER_RESOLUTION


@dataclass(frozen=True, eq=False)
class OpenedVersion:
    """Attributes:
    checkpoint: where it is, with its manifest.
    configuration: of its training.
    denoiser: in float32.
    tokenizer: None without captions.
    autoencoder: None for a model of pixels.
    """

    checkpoint: Checkpoint
    configuration: TrainingConfiguration
    denoiser: Denoiser
    tokenizer: CaptionTokenizer | None
    autoencoder: Autoencoder | None = None


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
    folder = checkpoint.path
    text_encoder, tokenizer = None, None
    network: Backbone
    try:
        if configuration.super_resolution_of is not None:  # the leg that was trained
            network = UNet2DModel.from_pretrained(folder / SUPER_RESOLUTION, torch_dtype=torch.float32)
        elif (folder / "text_encoder").is_dir():
            network = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
            text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
            tokenizer = CaptionTokenizer.open(folder / "tokenizer")
        elif (folder / "transformer").is_dir():
            network = DiTTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32)
        else:
            network = UNet2DModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigurationError(f"can't open {name}: {error}") from error
    autoencoder = None
    if (folder / "vae").is_dir():
        configuration = configuration.model_copy(update={"autoencoder": folder / "vae"})
        autoencoder = open_autoencoder(folder / "vae")
    return OpenedVersion(checkpoint, configuration, Denoiser(network, text_encoder).eval(), tokenizer, autoencoder)


def store_at(path: str | None, environment: str | None) -> ModelStore:
    """The store that a command means. Raises ConfigurationError."""
    chosen = path or environment
    if not chosen:
        raise ConfigurationError("need a folder of checkpoints: --store or REVERIE_STORE")
    return ModelStore(Path(chosen))

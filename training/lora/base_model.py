"""The published model that a LoRA is trained on: what it is, how it was trained, and its networks."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from training.configuration import TrainingConfiguration, read_configuration
from training.data import ImageSource
from training.errors import ConfigurationError, DataError
from training.lora.adapters import TEXT_TARGETS, add_adapters
from training.lora.prompted import PromptedDenoiser, PromptTokens
from training.opening import named_checkpoint
from worker.diffusion import PredictionType
from worker.models.chain_config import ChainConfig, read_chain_config
from worker.models.errors import ModelError
from worker.models.weights import open_diffusers
from worker.store import Checkpoint, ModelStore
from worker.store.component_rules import TEXT_PARTS
from worker.store.denoiser_config import DenoiserConfig, read_denoiser_config
from worker.store.json_files import read_json_object
from worker.store.manifest import NOISE_CONFIG_PATH, UNET_CONFIG_PATH, VAE_CONFIG_PATH
from worker.store.pipeline_index import ZEROS_FLAG, latent_pipeline_class, read_index
from worker.store.vae_config import read_vae_config

ENCODERS: Mapping[str, Any] = {
    "CLIPTextModel": CLIPTextModel,
    "CLIPTextModelWithProjection": CLIPTextModelWithProjection,
}
OF_THE_MODEL = frozenset(
    {"autoencoder", "backbone", "width", "patch", "depth", "heads", "channels", "layers", "attention", "norm_groups"}
    | {"dropout", "text_width", "text_layers", "tokens", "vocabulary", "contrastive_steps"}
    | {"schedule", "zero_terminal_snr", "prediction", "learned_variance", "super_resolution_of"}
)
"""Settings that are the model's own."""


@dataclass(frozen=True, eq=False)
class BaseModel:
    """Attributes:
    checkpoint: where it is.
    encoders: its text encoders, with the tokenizer of each.
    chain: how it was trained.
    tokens: from captions to what it reads.
    """

    checkpoint: Checkpoint
    encoders: tuple[tuple[str, str], ...]
    chain: ChainConfig
    tokens: PromptTokens

    @property
    def name(self) -> str:
        return f"{self.checkpoint.model}/{self.checkpoint.version}"

    @property
    def has_autoencoder(self) -> bool:
        return "vae" in self.checkpoint.manifest.components

    def settled(self, configuration: TrainingConfiguration) -> TrainingConfiguration:
        """The configuration with what is the model's own. Raises ConfigurationError where that was given, too."""
        if given := sorted(OF_THE_MODEL & configuration.model_fields_set):
            flag = f"--{given[0].replace('_', '-')}"
            raise ConfigurationError(f"{flag} is what {self.name} has: need --lora-on without it")
        settings = {**configuration.model_dump(), **self._schedule(), "prediction": self.chain.prediction_type}
        settings["autoencoder"] = self.checkpoint.path / "vae" if self.has_autoencoder else None
        has_own_size = configuration.data == "digits" or configuration.data.endswith((".npy", ".npz"))
        if configuration.size is None and not has_own_size:
            settings["size"] = self.checkpoint.manifest.height
        return read_configuration(flags=settings)

    def check(self, source: ImageSource) -> None:
        """Raises DataError unless the model can be shown such images."""
        if not source.captioned:
            raise DataError(f"{source.name}: need images with captions, {self.name} draws from prompts")
        channels = self._unet_config().channels
        if source.shape[0] != channels:
            raise DataError(f"{source.name}: need images of {channels} channels for {self.name}, got {source.shape[0]}")

    def denoiser(self, configuration: TrainingConfiguration) -> PromptedDenoiser:
        """Its networks in float32, frozen, with adapters that change nothing yet. Raises ConfigurationError."""
        folder = self.checkpoint.path
        classes = self.checkpoint.manifest.components
        try:
            unet = open_diffusers(UNet2DConditionModel, folder / "unet", torch.float32, self.name)
        except ModelError as error:
            raise ConfigurationError(str(error)) from error
        encoders = [_open_encoder(folder / name, classes[name].class_name) for name, _ in self.encoders]
        rank, alpha, seed = configuration.lora_rank, lora_alpha(configuration), configuration.seed
        add_adapters(unet, configuration.lora_targets, rank=rank, alpha=alpha, seed=seed)
        for place, encoder in enumerate(encoders if configuration.lora_text else ()):
            add_adapters(encoder, TEXT_TARGETS, rank=rank, alpha=alpha, seed=seed + 1 + place)
        return PromptedDenoiser(unet, encoders, self._factor(), self._blank())

    def _blank(self) -> torch.Tensor | None:
        """As the worker does, where a network is told the text as a whole."""
        if len(self.encoders) < 2 or not read_index(self.checkpoint.path, self.name).flags.get(ZEROS_FLAG, True):
            return None
        return self.tokens([""])[0]

    def _factor(self) -> int:
        if not self.has_autoencoder:
            return 1
        return read_vae_config(read_json_object(self.checkpoint.path, VAE_CONFIG_PATH, self.name)).factor

    def _unet_config(self) -> DenoiserConfig:
        return read_denoiser_config(
            "UNet2DConditionModel", read_json_object(self.checkpoint.path, UNET_CONFIG_PATH, self.name)
        )

    def _schedule(self) -> Mapping[str, object]:
        """The settings that give its noise schedule. Raises ConfigurationError where none do."""
        wanted = self.chain.schedule.betas
        for schedule in ("linear", "scaled_linear", "cosine"):
            for rescaled in (False, True):
                settings = {"schedule": schedule, "zero_terminal_snr": rescaled}
                tried = TrainingConfiguration.model_validate({**settings, "prediction": PredictionType.V})
                betas = tried.noise_schedule().betas
                if betas.shape == wanted.shape and torch.allclose(betas, wanted, rtol=1e-6, atol=0):
                    return settings
        raise ConfigurationError(f"{self.name} was trained with betas that no --schedule has")


def open_base_model(name: str, store: ModelStore) -> BaseModel:
    """`MODEL[@VERSION]` of the store, verified.

    Raises:
        ConfigurationError: it is none that a LoRA can be trained on.
        StoreError: it is not there, or damaged.
    """
    checkpoint = named_checkpoint(name, store)
    store.verify(checkpoint.model, checkpoint.version)
    where = f"{checkpoint.model}/{checkpoint.version}"
    components = checkpoint.manifest.components
    encoders = tuple(part for part in TEXT_PARTS if part[0] in components)
    if "unet" not in components or components["unet"].class_name != "UNet2DConditionModel" or not encoders:
        raise ConfigurationError(f"need a text-to-image model for --lora-on, got {where}")
    if encoders[0] != TEXT_PARTS[0]:
        raise ConfigurationError(f"need a model that draws from noise for --lora-on, got the refiner {where}")
    unet = read_denoiser_config("UNet2DConditionModel", read_json_object(checkpoint.path, UNET_CONFIG_PATH, where))
    if unet.picture_channels or unet.predicts_variance:
        other = "reads a mask" if unet.picture_channels else "predicts its variance"
        raise ConfigurationError(f"need a model that reads and predicts nothing else for --lora-on: {where} {other}")
    noise = read_json_object(checkpoint.path, NOISE_CONFIG_PATH, where)
    try:
        chain = read_chain_config(noise, where, latent_pipeline_class(checkpoint.path))
    except ModelError as error:
        raise ConfigurationError(str(error)) from error
    tokens = PromptTokens([checkpoint.path / tokenizer for _, tokenizer in encoders])
    return BaseModel(checkpoint, encoders, chain, tokens)


def lora_alpha(configuration: TrainingConfiguration) -> float:
    return configuration.lora_rank if configuration.lora_alpha is None else configuration.lora_alpha


def _open_encoder(folder: Path, class_name: str) -> Any:
    try:
        encoder = ENCODERS[class_name].from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigurationError(f"can't open {folder}: {' '.join(str(error).split())[:300]}") from error
    return encoder.eval().requires_grad_(False)

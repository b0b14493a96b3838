"""From trained adapters to a LoRA of the store, in the file that diffusers' `load_lora_weights` opens."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from training.configuration import TrainingConfiguration
from training.lora.adapters import lora_tensors
from training.lora.base_model import lora_alpha
from training.network import Denoiser
from worker.store import ModelStore, PublishFailed, StoreError
from worker.store.lora_import import import_lora
from worker.store.lora_store import Lora, LoraStore
from worker.store.safetensors_header import read_metadata

FILE_NAME = "pytorch_lora_weights.safetensors"
"""As diffusers calls it."""
RECORD_KEY = "reverie"
"""Of the file's metadata. The only one, for the library writes several in any order."""


@dataclass(frozen=True, eq=False)
class LoraPublication:
    """What every file of one run shares.

    Attributes:
        store, name: where it goes.
        model: of the store, that it is offered for.
        configuration: of the run.
        identity: what decides the weights.
    """

    store: ModelStore
    name: str
    model: str
    configuration: TrainingConfiguration
    identity: Mapping[str, Any]

    def publish(
        self, denoiser: Denoiser, *, step: int, metrics: Mapping[str, float], samples: Tensor | None = None
    ) -> Lora:
        """Make the adapters of `denoiser` (the averaged ones) the file that a request gets. It has no place for
        samples. Raises StoreError."""
        scale = lora_alpha(self.configuration) / self.configuration.lora_rank
        dtype = getattr(torch, self.configuration.publish_dtype)
        tensors: dict[str, Tensor] = {}
        for component, network in denoiser.named_children():
            name = "unet" if component == "network" else component
            tensors |= lora_tensors(network, name, scale)
        record = {"step": step, "metrics": dict(metrics), "settings": dict(self.identity)}
        with TemporaryDirectory() as folder:
            file = Path(folder) / FILE_NAME
            try:
                save_file(
                    {name: tensor.to("cpu", dtype).contiguous() for name, tensor in tensors.items()},
                    file,
                    {RECORD_KEY: json.dumps(record, sort_keys=True)},
                )
            except (OSError, SafetensorError) as error:
                raise PublishFailed(f"can't write the LoRA: {error}") from error
            lora, _ = import_lora(self.store, file, self.name, self.model)
        return lora

    def current_metrics(self) -> Mapping[str, float] | None:
        """Of the file that a request gets now; None where there is none, or one that was not trained here."""
        try:
            metadata = read_metadata(LoraStore(self.store.root).find(self.name).file)
            metrics = json.loads(metadata[RECORD_KEY])["metrics"]
        except (StoreError, OSError, ValueError, KeyError, TypeError):
            return None
        return {str(name): float(value) for name, value in metrics.items()}

"""diffusers' `DiTTransformer2DModel`: a Transformer over patches, conditioned on a class. Peebles & Xie 2023."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worker.diffusion.noise import Shape
from worker.networks.architecture import TextShape, check_channels
from worker.networks.network_input import InputSpec, NamedInput, NetworkInput
from worker.networks.unet2d import CLASS_LABELS
from worker.store.denoiser_config import read_denoiser_config
from worker.store.errors import BadCheckpoint


@dataclass(frozen=True, eq=False)
class DiTDenoiser:
    """float32 in and out; the Transformer computes in `dtype`."""

    transformer: nn.Module
    dtype: torch.dtype
    memory_format: torch.memory_format = torch.channels_last

    def __call__(self, inputs: NetworkInput) -> Tensor:
        x = inputs.x.to(self.dtype).contiguous(memory_format=self.memory_format)
        (output,) = self.transformer(x, timestep=inputs.t, return_dict=False, **inputs.named)
        return torch.as_tensor(output).to(torch.float32).contiguous()


class DiT:
    """Implements `Architecture`."""

    def input_spec(self, config: Mapping[str, object], shape: Shape, text_shape: TextShape | None = None) -> InputSpec:
        known = read_denoiser_config("DiTTransformer2DModel", config)
        check_channels(known.channels, shape)
        if shape[1:] != (known.only_size, known.only_size):
            raise BadCheckpoint(f"need states of sample_size {known.only_size}, got {shape[1]}x{shape[2]}")
        return InputSpec(shape, (NamedInput(CLASS_LABELS, (), torch.int64, known.num_classes),))

    def model_class(self) -> type[nn.Module]:
        from diffusers import DiTTransformer2DModel

        model_class: type[nn.Module] = DiTTransformer2DModel
        return model_class

    def denoiser(
        self, network: nn.Module, dtype: torch.dtype, memory_format: torch.memory_format = torch.channels_last
    ) -> DiTDenoiser:
        return DiTDenoiser(network, dtype, memory_format)

"""How a chain begins at a picture in place of noise: SDEdit (Meng et al. 2022), and inpainting on the same way."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.conditioning.images import Pixels, as_image, as_mask, in_channels
from worker.contract import InitImage, SamplingRequest
from worker.diffusion.inpainting import Inpainting
from worker.diffusion.noise import DIFFUSION_STREAM, POSTERIOR_STREAM, Shape, standard_normal
from worker.diffusion.samplers import SamplerPlan
from worker.models.loaded_model import LoadedModel


class PictureMisfit(ValueError):
    """The picture is not there or does not fit the model; the message names the rule."""


@dataclass(frozen=True, eq=False, slots=True)
class Beginning:
    """Where one image begins.

    Attributes:
        x_t: [C, H, W] float32; None: at noise, as without a picture.
        inpainting: None where nothing is kept.
        named: further inputs of the network, those of one row.
    """

    x_t: Tensor | None
    inpainting: Inpainting | None
    named: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, slots=True)
class PictureStart:
    """The picture of a request, checked, and on its way to where each of its images begins.

    Attributes:
        init: what was asked for.
        shape: (C, H, W) of the state.
        original: [H, W, C] in the model's channels.
        mask: [H, W], where the picture is drawn anew; None: everywhere.
    """

    init: InitImage
    request: SamplingRequest
    model: LoadedModel
    shape: Shape
    original: Pixels
    mask: NDArray[np.bool_] | None

    @property
    def calls(self) -> Sequence[Callable[[], Tensor]]:
        """What is left to run: one image through the encoder for each image; none where it is denoised as it is.

        A network that inpaints reads the picture without the part that is drawn anew, too, and at full strength nothing
        but that.
        """
        if self.model.codec.in_step:
            return ()
        images = range(self.request.batch)
        if self.model.picture_input is None:
            return [partial(self._encode, index) for index in images]
        whole = [] if self._is_full else [partial(self._encode, index) for index in images]
        return [*whole, *(partial(self._encode_masked, index) for index in images)]

    @property
    def _is_full(self) -> bool:
        """Whether nothing of the picture is in what is drawn anew."""
        return self.init.strength == 1

    def beginnings(self, encoded: Sequence[Tensor], plan: SamplerPlan) -> list[Beginning]:
        """Of each image.

        Args:
            encoded: results of `calls`.
        """
        if self.model.codec.in_step:
            encoded = [self._image()] * self.request.batch
        noise = self._noise(DIFFUSION_STREAM)
        mask = None if self.mask is None else self._state_mask(self.mask)
        if self.model.picture_input is not None and mask is not None:
            images = len(encoded) - self.request.batch
            pairs = zip(encoded[:images] or noise, noise, encoded[images:], strict=True)
            return [self._inpainting(plan, x_0, eps, mask, masked) for x_0, eps, masked in pairs]
        return [self._beginning(plan, x_0, eps, mask) for x_0, eps in zip(encoded, noise, strict=True)]

    def pasted(self, pixels: Pixels) -> Pixels:
        """The drawn image, with the original's pixels outside the mask where that was asked for."""
        if self.mask is None or not self.init.paste_back:
            return pixels
        return np.where(self.mask[:, :, None], pixels, self.original)

    def _beginning(self, plan: SamplerPlan, x_0: Tensor, eps: Tensor, mask: Tensor | None) -> Beginning:
        noised = Inpainting.noised(x_0, eps, plan.alpha_bar[0])
        if mask is None:
            return Beginning(noised, None)
        x_t = plan.initial_scale * eps if self._is_full else noised
        return Beginning(x_t, Inpainting(x_0, eps, mask))

    def _inpainting(self, plan: SamplerPlan, x_0: Tensor, eps: Tensor, mask: Tensor, masked: Tensor) -> Beginning:
        """Of a network that reads what is to be kept."""
        x_t = plan.initial_scale * eps if self._is_full else Inpainting.noised(x_0, eps, plan.alpha_bar[0])
        assert self.model.picture_input is not None
        return Beginning(x_t, None, {self.model.picture_input: torch.cat([mask.to(masked.dtype), masked])})

    def _image(self) -> Tensor:
        return as_image(self.original).to(self.model.device)

    def _encode(self, index: int) -> Tensor:
        eps = self._noise(POSTERIOR_STREAM)[index : index + 1]
        return self.model.codec.encode(self._image()[None], eps)[0]

    def _encode_masked(self, index: int) -> Tensor:
        """Grey where the picture is drawn anew."""
        assert self.mask is not None
        kept = torch.from_numpy(~self.mask).to(self.model.device)
        eps = self._noise(POSTERIOR_STREAM, draw=1)[index : index + 1]
        return self.model.codec.encode((self._image() * kept)[None], eps)[0]

    def _noise(self, stream: int, draw: int = 0) -> Tensor:
        first = self.request.seed
        seeds = torch.arange(first, first + self.request.batch, device=self.model.device)
        return standard_normal(seeds, stream, torch.full_like(seeds, draw), self.shape)

    def _state_mask(self, mask: NDArray[np.bool_]) -> Tensor:
        """[1, h, w] bool: of each block of pixels that is one place of the state, the one at the top left."""
        _, height, width = self.shape
        rows, columns = (np.arange(n) * m // n for n, m in zip((height, width), mask.shape, strict=True))
        return torch.from_numpy(mask[np.ix_(rows, columns)].copy())[None].to(self.model.device)


def picture_start(
    request: SamplingRequest, model: LoadedModel, shape: Shape, pictures: Mapping[str, Pixels]
) -> PictureStart | None:
    """None for a request that begins at noise.

    Args:
        shape: (C, H, W) of the state.

    Raises:
        PictureMisfit: a picture is missing or of another size than the model draws.
    """
    init = request.init
    if model.picture_input is not None and (init is None or init.mask is None):
        raise PictureMisfit(f"model {model.name} inpaints: need an init_image and a mask")
    if init is None:
        return None
    if model.upscale is not None:
        raise PictureMisfit(f"model {model.name} is a cascade: it begins at noise, not at an init_image")
    channels, own_height, own_width = model.image_shape
    height, width = own_height * shape[1] // model.shape[1], own_width * shape[2] // model.shape[2]
    original = in_channels(_found("init_image", init.picture, pictures, height, width), channels)
    mask = None if init.mask is None else as_mask(_found("mask", init.mask, pictures, height, width))
    return PictureStart(init, request, model, shape, original, mask)


def _found(what: str, name: str, pictures: Mapping[str, Pixels], height: int, width: int) -> Pixels:
    if name not in pictures:
        raise PictureMisfit(f"{what}: upload {name} is not there")
    pixels = pictures[name]
    if pixels.shape[:2] != (height, width):
        found = f"{pixels.shape[1]} x {pixels.shape[0]}"
        raise PictureMisfit(f"{what}: need {width} x {height} pixels, as the model draws, got {found}")
    return pixels

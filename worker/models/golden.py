"""Checks that a network computes what it did when it was published.

It compares outputs of the network, not samples: ten steps amplify bfloat16's rounding to a tenth of the pixels' range,
as far off as another network's image.
"""

import base64
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from worker.conditioning.conditioning import ConditionRefusedError
from worker.contract import Guidance, TextCondition
from worker.diffusion.golden import golden_inputs, golden_small_images, spread_values
from worker.diffusion.noise import Shape
from worker.models.errors import BrokenModel
from worker.models.golden_sample import check_golden_sample
from worker.models.loaded_model import Execution, LoadedModel
from worker.networks.denoiser import Denoiser
from worker.networks.network_input import NetworkInput
from worker.networks.super_resolution import NOISE_LEVEL, SMALL_IMAGE
from worker.networks.unet2d import CLASS_LABELS
from worker.store.manifest import GoldenOutput, GoldenSample

TOLERANCES = {"float32": 5e-3, "tf32": 1e-2, "float16": 2e-2, "bfloat16": 5e-2}
"""Largest relative error of a row, by dtype. Rounding makes 1e-5 in float32 and up to 0.016 in bfloat16, measured on
trained and on random networks; other weights make 1, and 1 % of noise on the weights makes 0.005 to 0.04."""


@torch.inference_mode()
def check_golden(model: LoadedModel, golden: GoldenOutput | GoldenSample, open_plain: Callable[[], Denoiser]) -> None:
    """Raise BrokenModel unless the model reproduces the manifest's golden output.

    A `GoldenSample` is an image, which can only be compared in float32. In another dtype the plain float32 network must
    reproduce the image, and the model must agree with the plain network.

    Args:
        open_plain: opens the same weights in float32, in diffusers' own modules, on the model's device.
    """
    if isinstance(golden, GoldenOutput):
        return _check_output(model, golden)
    if model.execution.dtype == "float32":
        return check_golden_sample(model, golden)
    plain = replace(model, denoise=open_plain(), execution=Execution("float32"))
    check_golden_sample(plain, golden)
    last = model.num_train_timesteps - 1
    classes = [model.null_label or 0] * 4 if model.num_classes else None
    inputs = _inputs(model, golden.seed, [0, last // 3, 2 * last // 3, last], classes)
    outputs = (each.denoise(inputs).flatten(1) for each in (model, plain))
    _compare(f"{model.name}/{model.version}", model.execution.dtype, *outputs)
    return None


def _check_output(model: LoadedModel, golden: GoldenOutput) -> None:
    where = f"{model.name}/{model.version}"
    expected = _kept_values(golden)
    classes = golden.class_labels
    if (classes is not None) != (model.num_classes > 0) or any(label >= model.num_classes for label in classes or ()):
        raise BrokenModel(f"{where}: the golden output has classes {classes}, the network {model.num_classes}")
    inputs = _inputs(model, golden.seed, golden.timesteps, classes)
    if golden.prompt is not None:
        inputs = NetworkInput(inputs.x, inputs.t, {**inputs.named, **_prompted(model, golden.prompt, len(inputs))})
    _compare_values(where, model.execution.dtype, model.denoise(inputs), expected)


@torch.inference_mode()
def check_golden_leg(
    denoise: Denoiser, golden: GoldenOutput, shape: Shape, device: torch.device, dtype: str, where: str
) -> None:
    """Raise BrokenModel unless a second leg's network, in `dtype`, reproduces its golden output.

    Args:
        shape: (C, H, W) of its state.
        where: which checkpoint, and that it is about the second leg.
    """
    x, t = golden_inputs(golden.seed, golden.timesteps, shape, device)
    levels = torch.tensor(golden.class_labels or (), dtype=torch.float32, device=device)
    named = {SMALL_IMAGE: golden_small_images(golden.seed, len(x), shape, device), NOISE_LEVEL: levels}
    _compare_values(where, dtype, denoise(NetworkInput(x, t, named)), _kept_values(golden))


def _kept_values(golden: GoldenOutput) -> Tensor:
    """[N, n]"""
    data = bytearray(base64.b64decode(golden.values_base64))
    return torch.frombuffer(data, dtype=torch.float32).view(len(golden.timesteps), -1)


def _compare_values(where: str, dtype: str, output: Tensor, expected: Tensor) -> None:
    """Args: expected: [N, n] values kept of each row."""
    if expected.shape[1] > (values := output[0].numel()):
        raise BrokenModel(f"{where}: the golden output has {expected.shape[1]} values a row, the network's {values}")
    _compare(where, dtype, spread_values(output, expected.shape[1]), expected.to(output.device))


def _inputs(model: LoadedModel, seed: int, timesteps: list[int], classes: list[int] | None) -> NetworkInput:
    x, t = golden_inputs(seed, timesteps, model.shape, model.device)
    return NetworkInput(x, t, {} if classes is None else {CLASS_LABELS: torch.tensor(classes, device=model.device)})


def _prompted(model: LoadedModel, prompt: str, rows: int) -> dict[str, Tensor]:
    """The named inputs of rows that are all guided by one prompt."""
    try:
        encoding = model.conditioner(TextCondition(prompt=prompt), Guidance(scale=1.0))
    except ConditionRefusedError as error:
        raise BrokenModel(f"{model.name}/{model.version}: the golden output has a prompt: {error}") from error
    conditioning = encoding.assemble([call() for call in encoding.calls])[0].extended(model.named_of_size(model.shape))
    return {name: value.expand(rows, *value.shape[1:]).contiguous() for name, value in conditioning.named.items()}


def _compare(where: str, dtype: str, output: Tensor, expected: Tensor) -> None:
    """[N, n] both."""
    tolerance = TOLERANCES[dtype]
    error, norm = (output.double() - expected.double()).norm(dim=1), expected.double().norm(dim=1)
    if not bool((error <= tolerance * norm).all()):  # `not <=`: nan is no pass
        raise BrokenModel(
            f"{where}: need the golden output within {tolerance:g} of its norm in {dtype},"
            f" is off by {float((error / norm).max()):.3g}"
        )

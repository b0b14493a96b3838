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
from worker.diffusion.golden import golden_inputs, spread_values
from worker.models.errors import BrokenModel
from worker.models.golden_sample import check_golden_sample
from worker.models.loaded_model import Execution, LoadedModel
from worker.networks.denoiser import Denoiser
from worker.networks.network_input import NetworkInput
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
    _compare(model, model.denoise(inputs).flatten(1), plain.denoise(inputs).flatten(1))
    return None


def _check_output(model: LoadedModel, golden: GoldenOutput) -> None:
    where = f"{model.name}/{model.version}"
    data = bytearray(base64.b64decode(golden.values_base64))
    expected = torch.frombuffer(data, dtype=torch.float32).view(len(golden.timesteps), -1)
    classes = golden.class_labels
    if (classes is not None) != (model.num_classes > 0) or any(label >= model.num_classes for label in classes or ()):
        raise BrokenModel(f"{where}: the golden output has classes {classes}, the network {model.num_classes}")
    inputs = _inputs(model, golden.seed, golden.timesteps, classes)
    if golden.prompt is not None:
        inputs = NetworkInput(inputs.x, inputs.t, {**inputs.named, **_prompted(model, golden.prompt, len(inputs))})
    output = model.denoise(inputs)
    if expected.shape[1] > (values := output[0].numel()):
        raise BrokenModel(f"{where}: the golden output has {expected.shape[1]} values a row, the network's {values}")
    _compare(model, spread_values(output, expected.shape[1]), expected.to(model.device))


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


def _compare(model: LoadedModel, output: Tensor, expected: Tensor) -> None:
    """[N, n] both."""
    tolerance = TOLERANCES[model.execution.dtype]
    error, norm = (output.double() - expected.double()).norm(dim=1), expected.double().norm(dim=1)
    if not bool((error <= tolerance * norm).all()):  # `not <=`: nan is no pass
        where, dtype = f"{model.name}/{model.version}", model.execution.dtype
        raise BrokenModel(
            f"{where}: need the golden output within {tolerance:g} of its norm in {dtype},"
            f" is off by {float((error / norm).max()):.3g}"
        )

"""Draws the image that a checkpoint's publisher drew, for manifests that were written before `GoldenOutput`."""

import base64
import time

import numpy as np
import torch
from torch import Tensor

from worker.contract import SamplingRequest
from worker.diffusion.chain import noise_of, run_chain
from worker.diffusion.noise import initial_noise
from worker.models.errors import BrokenModel
from worker.models.loaded_model import LoadedModel
from worker.networks.network_input import NetworkInput
from worker.networks.unet2d import CLASS_LABELS
from worker.store.manifest import GoldenSample


@torch.inference_mode()
def check_golden_sample(model: LoadedModel, golden: GoldenSample) -> None:
    """Raise BrokenModel when the mean absolute difference of the pixels, 0..255, is above the sample's tolerance."""
    where = f"{model.name}/{model.version}"
    C, H, W = model.shape
    expected = np.frombuffer(base64.b64decode(golden.pixels_base64), dtype=np.uint8)
    if expected.size != C * H * W:
        raise BrokenModel(f"{where}: the golden sample has {expected.size} pixels, the model draws {C * H * W}")
    drawn = _draw(model, golden)
    difference = float(np.abs(drawn.reshape(-1) - expected.astype(np.float64)).mean())
    if not difference <= golden.tolerance:  # `not <=`: nan is no pass
        raise BrokenModel(
            f"{where}: need the golden sample within {golden.tolerance:g} levels of 255, is off by {difference:.2f}"
        )


def _draw(model: LoadedModel, golden: GoldenSample) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    """[H, W, C] in 0..255, not rounded."""
    request = SamplingRequest(model=model.name, seed=golden.seed, steps=golden.steps, batch=1, sampler=golden.sampler)
    plan = model.plan(request)
    label = golden.class_label if golden.class_label is not None else model.null_label
    has_label = model.num_classes > 0 and label is not None
    named = {CLASS_LABELS: torch.tensor([label], device=model.device)} if has_label else {}
    seeds = torch.tensor([golden.seed], device=model.device)

    def evaluate(x_t: Tensor, t: float) -> Tensor:
        began = time.monotonic()
        output = model.denoise(NetworkInput(x_t, torch.tensor([t], device=model.device), named))
        # Rests as long as it works: the engine's steps share the processor with this one's and are much longer, so none
        # of them takes twice its time.
        time.sleep(time.monotonic() - began)
        return output

    x_T, z_at = initial_noise(seeds, model.shape), noise_of(seeds, model.shape)
    x_t = run_chain(plan, evaluate, x_T, model.chain.clip, z_at)
    pixels = ((x_t[0].double() + 1) * 127.5).clamp(0, 255).permute(1, 2, 0)
    return np.asarray(pixels.cpu().numpy(), dtype=np.float64)

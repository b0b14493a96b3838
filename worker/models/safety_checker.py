"""The safety checker that a Stable Diffusion folder brings: whether a drawn image shows what its makers would not."""

import threading
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from worker.models.errors import BrokenModel
from worker.store.component_rules import SAFETY_CHECKER, SAFETY_PARTS
from worker.store.model_store import Checkpoint

_opening = threading.Lock()
_checkers: "WeakValueDictionary[tuple[str, str, str], SafetyChecker]" = WeakValueDictionary()
"""By hash of both parts, and device."""


class SafetyChecker:
    """diffusers' checker in float32, and what makes its input of an image.

    Raises:
        BrokenModel: it can't be opened, or weights are missing.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        # Here: they take seconds to import.
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
        from transformers import CLIPImageProcessorPil

        folders = {name: str(checkpoint.path / name) for name in SAFETY_PARTS}
        where = f"{checkpoint.model}/{checkpoint.version}: the safety checker"
        try:
            self._processor: Any = CLIPImageProcessorPil.from_pretrained(
                folders["feature_extractor"], local_files_only=True
            )
            checker, info = StableDiffusionSafetyChecker.from_pretrained(
                folders[SAFETY_CHECKER],
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except Exception as error:  # the library raises what its own parsers raise
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BrokenModel(f"{where} can't be opened: {reason[:300]}") from error
        for problem in ("missing_keys", "mismatched_keys", "error_msgs"):
            if info.get(problem):
                raise BrokenModel(f"{where}: {problem.replace('_', ' ')}: {sorted(info[problem])[:3]}")
        self._checker: Any = checker.eval().requires_grad_(False).to(device)
        self._device = device
        self.weight_bytes = sum(weight.nbytes for weight in checker.state_dict().values())

    @torch.inference_mode()
    def __call__(self, pixels: NDArray[np.uint8]) -> bool:
        """Whether it objects to the image, uint8 [H, W, C]: one per call, so that no other matters."""
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
        clip_input = self._processor(images=[image], return_tensors="pt").pixel_values.to(self._device)
        # It blacks out the images that it is given; those are ours to black out.
        _, (flagged,) = self._checker(images=[np.zeros(0)], clip_input=clip_input)
        return bool(flagged)


def open_safety_checker(checkpoint: Checkpoint, device: torch.device) -> SafetyChecker | None:
    """None for a version that brings none; versions and models with the same one share it. Raises BrokenModel."""
    components = checkpoint.manifest.components
    if not components.keys() >= set(SAFETY_PARTS):
        return None
    checker_sha256, processor_sha256 = (components[name].sha256 for name in SAFETY_PARTS)
    key = (checker_sha256, processor_sha256, str(device))
    with _opening:
        checker = _checkers.get(key)
        if checker is None:
            checker = _checkers[key] = SafetyChecker(checkpoint, device)
    return checker

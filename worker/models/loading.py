"""From a checkpoint's folder to a model in memory: diffusers builds the U-Net, this checks it and makes it ready."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from worker.models.chain_config import read_chain_config
from worker.models.errors import BrokenModel, UnsupportedModel
from worker.models.golden_sample import check_golden_sample
from worker.models.loaded_model import LoadedModel
from worker.networks.cpu.forms import prepare_on_cpu
from worker.networks.cpu.team import cpu_threads
from worker.networks.cuda.networks import GpuNetworks, bytes_of, gpu_networks
from worker.networks.denoiser import Denoiser
from worker.networks.exactness import is_batch_invariant
from worker.networks.padded import PadBatch, padded
from worker.store.manifest import NOISE_CONFIG_PATH, UNET_CONFIG_PATH, Manifest
from worker.store.model_store import Checkpoint

log = logging.getLogger(__name__)


def load_checkpoint(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    *,
    pad_batch: PadBatch = PadBatch.AUTO,
    max_batch: int = 16,
    threads: int | None = None,
    networks: GpuNetworks | None = None,
) -> LoadedModel:
    """Read, check and prepare one version; slow, and touching nothing that serves.

    Args:
        max_batch: the engine's; the one size of batches where `pad_batch` asks for a single one.
        threads: of the CPU; None for as many as there are.
        networks: records and keeps networks on a GPU; None records none.

    Raises:
        UnsupportedModel: another kind of network or scheduler.
        BrokenModel: weights missing, left over, of another shape or not finite, or they draw another golden sample.
    """
    where = f"{checkpoint.model}/{checkpoint.version}"
    manifest = checkpoint.manifest
    chain = read_chain_config(_read_json(checkpoint.path / NOISE_CONFIG_PATH, where), where)
    config = _read_json(checkpoint.path / UNET_CONFIG_PATH, where)
    num_classes = _check_config(config, manifest, where)
    shape = (manifest.channels, manifest.height, manifest.width)
    threads = cpu_threads(threads)
    kind = json.dumps([config, shape, str(device), str(dtype), threads, pad_batch, max_batch], sort_keys=True)

    def open_unet() -> nn.Module:
        unet = _open_unet(checkpoint.path / "unet", dtype, where)
        _check_finite(unet, where)
        return unet

    def checked(denoise: Denoiser, weight_bytes: int, let_go: Callable[[], None] = lambda: None) -> LoadedModel:
        model = LoadedModel(
            name=checkpoint.model,
            version=checkpoint.version,
            weights_sha256=manifest.weights_sha256,
            denoise=denoise,
            chain=chain,
            shape=shape,
            labels=tuple(manifest.labels),
            num_classes=num_classes,
            null_label=manifest.null_label,
            device=device,
            weight_bytes=weight_bytes,
            step=manifest.step,
            created_at=manifest.created_at,
            metrics=dict(manifest.metrics),
            let_go=let_go,
        )
        if manifest.golden is not None:
            check_golden_sample(model, manifest.golden)
        return model

    if device.type == "cpu" and networks is None:
        unet, denoise = prepare_on_cpu(open_unet, kind, shape, num_classes, dtype, threads, where)
        return checked(padded(denoise, pad_batch, max_batch, device), bytes_of(unet))
    networks = networks or gpu_networks(device, record=False)
    network = networks.prepare(
        open_unet, kind, shape, dtype, device, with_labels=num_classes > 0, pad_batch=pad_batch, max_batch=max_batch
    )
    try:
        _log_exactness(network.denoise, kind, shape, num_classes, device, where)
        return checked(network.denoise, bytes_of(network.unet), lambda: networks.give_back(network))
    except BrokenModel:
        networks.give_back(network)
        raise


_known_exactness: dict[str, bool] = {}  # a reload of the same network need not be probed again


def _log_exactness(
    denoise: Denoiser, kind: str, shape: tuple[int, int, int], num_classes: int, device: torch.device, where: str
) -> None:
    """Say so where rows depend on their batch: on a GPU, a batch row by row would cost more than it is worth."""
    if kind not in _known_exactness:
        _known_exactness[kind] = is_batch_invariant(denoise, shape, num_classes, device)
    if not _known_exactness[kind]:
        log.warning("%s: an image's last bits depend on its batch on %s", where, device)


def _read_json(path: Path, where: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BrokenModel(f"{where}: can't read {path.name}: {error}") from error
    if not isinstance(value, dict):
        raise BrokenModel(f"{where}: {path.name} is not a JSON object")
    return value


def _check_config(config: dict[str, Any], manifest: Manifest, where: str) -> int:
    """Rows of the class embedding, once the network is seen to be of a kind that the engine can call."""
    rules = {
        "_class_name": ("UNet2DModel", config.get("_class_name", "UNet2DModel")),
        "time_embedding_type": ("positional", config.get("time_embedding_type", "positional")),
        "class_embed_type": (None, config.get("class_embed_type")),
        "in_channels": (manifest.channels, config.get("in_channels", 3)),
        "out_channels": (manifest.channels, config.get("out_channels", 3)),
    }
    for key, (needed, found) in rules.items():
        if needed != found:
            raise UnsupportedModel(f"{where}: need {key} {needed!r}, got {found!r}")
    if manifest.channels not in (1, 3, 4):
        raise UnsupportedModel(f"{where}: need 1, 3 or 4 channels, got {manifest.channels}")
    num_classes = int(config.get("num_class_embeds") or 0)
    if len(manifest.labels) > num_classes:
        raise BrokenModel(f"{where}: {len(manifest.labels)} labels, but the network knows {num_classes} classes")
    if manifest.null_label is not None and manifest.null_label >= num_classes:
        raise BrokenModel(f"{where}: null_label {manifest.null_label}, but the network knows {num_classes} classes")
    if num_classes and not manifest.labels and manifest.null_label is None:
        raise BrokenModel(f"{where}: a model with {num_classes} classes needs labels or a null_label in its manifest")
    return num_classes


def _open_unet(folder: Path, dtype: torch.dtype, where: str) -> nn.Module:
    from diffusers import UNet2DModel  # here: it takes seconds to import, and tests of the engine do without

    try:
        unet, info = UNet2DModel.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            torch_dtype=dtype,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BrokenModel(f"{where}: diffusers can't open it: {reason[:300]}") from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if info.get(problem):
            raise BrokenModel(f"{where}: {problem.replace('_', ' ')}: {list(info[problem])[:3]}")
    module: nn.Module = unet.eval().requires_grad_(False)
    return module


def _check_finite(unet: nn.Module, where: str) -> None:
    for name, weight in unet.state_dict().items():
        if not bool(torch.isfinite(weight).all()):
            raise BrokenModel(f"{where}: weight {name} is not finite")

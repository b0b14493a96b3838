"""From a checkpoint's folder to a model in memory: diffusers builds the network, this checks it and makes it ready."""

from collections.abc import Sequence
from functools import partial

import torch

from worker.codecs.kl_autoencoder import KlAutoencoder
from worker.conditioning.conditioning import Conditioner, EachLeg
from worker.conditioning.labels import Labels, Unconditional
from worker.conditioning.text import TextReader
from worker.conditioning.unguided import Unguided
from worker.contract import LoraUse
from worker.models.autoencoder import open_codec, read_autoencoding
from worker.models.chain_config import ChainConfig, read_chain_config
from worker.models.errors import BrokenModel, UnsupportedModel
from worker.models.golden import check_golden
from worker.models.loaded_model import LoadedModel, Sizes
from worker.models.network_loading import (
    Host,
    ReadyNetwork,
    StoredNetwork,
    make_ready,
    read_json,
    read_network,
    sizes_named,
)
from worker.models.refiner import Refiner, open_refiner
from worker.models.safety_checker import open_safety_checker
from worker.models.super_resolution import Enlarging, open_super_resolution
from worker.models.text_parts import encoder_bytes, open_readers, text_conditioner, text_parts_of
from worker.networks.cpu.forms import compile_ahead
from worker.networks.cpu.team import cpu_threads
from worker.networks.cuda.fused_step import choose_end_step
from worker.networks.cuda.networks import GpuNetworks, bytes_of, gpu_networks
from worker.networks.padded import PadBatch
from worker.networks.shared_choices import SharedChoices
from worker.networks.unet2d import CLASS_LABELS
from worker.networks.unet2d_condition import MASKED_PICTURE
from worker.store.component_rules import SAFETY_CHECKER
from worker.store.inspection import denoiser_config_path, size_multiple
from worker.store.manifest import NOISE_CONFIG_PATH, Manifest
from worker.store.model_store import Checkpoint
from worker.store.pipeline_index import ZEROS_FLAG, latent_pipeline_class, read_index


def load_checkpoint(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype | None,
    *,
    choices: SharedChoices | None = None,
    pad_batch: PadBatch = PadBatch.AUTO,
    max_batch: int = 16,
    threads: int | None = None,
    networks: GpuNetworks | None = None,
    tile_above_pixels: int | None = None,
    safety_checker: bool = False,
) -> LoadedModel:
    """Read, check and prepare one version. Slow; changes nothing that serves.

    Args:
        dtype: None chooses for each kind of network, of those that a CPU computes in.
        choices: keeps what was chosen for all workers; None keeps it for this process.
        max_batch: the engine's; the only batch size where `pad_batch` asks for one.
        threads: of the CPU; None: all there are.
        tile_above_pixels: larger images are decoded in tiles; None: none are.
        safety_checker: run the one that the checkpoint brings.
        networks: prepares networks on a GPU and keeps evicted ones for reuse; None: no CUDA graphs, nothing kept.

    Raises:
        UnsupportedModel: another kind of network or scheduler.
        BrokenModel: weights missing, left over, of another shape or not finite, or not those that were published.
        OSError: what other workers chose can't be known now.
    """
    manifest = checkpoint.manifest
    threads = cpu_threads(threads)
    if device.type != "cpu" and networks is None:
        networks = gpu_networks(device, record=False)
    host = Host(device, dtype, choices, pad_batch, max_batch, threads, networks)
    if manifest.channels not in (1, 3, 4):
        raise UnsupportedModel(f"{_place(checkpoint)}: need 1, 3 or 4 channels, got {manifest.channels}")
    autoencoding = read_autoencoding(checkpoint)
    chain = _chain_of(checkpoint)
    config_path = denoiser_config_path(checkpoint.path)
    if device.type == "cpu" and dtype in (None, torch.float32):
        compile_ahead(read_json(checkpoint.path / config_path, _place(checkpoint)))
    parts = text_parts_of(checkpoint)
    readers = open_readers(checkpoint, parts, device)
    denoiser = config_path.partition("/")[0]
    stored = read_network(checkpoint, denoiser, autoencoding.shape, readers, host)
    num_classes = stored.inputs.values_of(CLASS_LABELS)
    _check_classes(num_classes, manifest, _place(checkpoint))
    multiple = size_multiple(checkpoint.path, _place(checkpoint))
    factor = autoencoding.vae.factor if autoencoding.vae else 1
    ready = make_ready(stored, host)
    refiner: Refiner | None = None
    enlarging: Enlarging | None = None
    try:
        refiner = open_refiner(checkpoint, autoencoding.shape, chain, factor, host, ready)
        enlarging = open_super_resolution(checkpoint, host, ready)
        execution = ready.execution if refiner is None else refiner.execution_beside(ready.execution)
        execution = execution if enlarging is None else enlarging.execution_beside(execution)
        number_format = "float32" if execution.dtype == "tf32" else execution.dtype
        codec = open_codec(checkpoint, autoencoding, device, getattr(torch, number_format), threads, tile_above_pixels)
        shared = encoder_bytes(checkpoint, parts, readers)
        if isinstance(codec, KlAutoencoder):
            shared[manifest.components["vae"].sha256] = codec.weight_bytes
        checker = open_safety_checker(checkpoint, device) if safety_checker else None
        if checker is not None:
            shared[manifest.components[SAFETY_CHECKER].sha256] = checker.weight_bytes
        conditioner, kept_bytes = _conditioner(checkpoint, stored, ready, readers, device)
        weight_bytes = bytes_of(ready.network) + kept_bytes
        if refiner is not None:
            conditioner = EachLeg((conditioner, refiner.conditioner))
            shared |= refiner.shared_bytes
            weight_bytes += refiner.weight_bytes
        if enlarging is not None:
            conditioner = EachLeg((conditioner, Unguided()))
            weight_bytes += bytes_of(enlarging.ready.network)
        model = LoadedModel(
            name=checkpoint.model,
            version=checkpoint.version,
            weights_sha256=manifest.weights_sha256,
            denoise=ready.denoise,
            chain=chain,
            shape=autoencoding.shape,
            codec=codec,
            conditioner=conditioner,
            named_of_size=sizes_named(stored.inputs, factor, device),
            picture_input=MASKED_PICTURE if stored.inputs.has(MASKED_PICTURE) else None,
            decoded_shape=(manifest.channels, manifest.height, manifest.width),
            later_legs=tuple(later.leg for later in (refiner, enlarging) if later is not None),
            upscale=None if enlarging is None else enlarging.defaults,
            components={name: component.sha256 for name, component in manifest.components.items()},
            labels=tuple(manifest.labels),
            num_classes=num_classes,
            null_label=manifest.null_label,
            device=device,
            execution=execution,
            warm_up=ready.warm_up,
            end_step=choose_end_step(device),
            weight_bytes=weight_bytes + sum(shared.values()),
            shared_bytes=shared,
            checker=checker,
            sizes=None if multiple is None else Sizes(multiple, factor, ready.other_sizes),
            loras=tuple(
                LoraUse(name=laid.lora.manifest.name, scale=laid.scale, sha256=laid.lora.manifest.sha256)
                for laid in checkpoint.loras
            ),
            reuse=ready.reuse,
            step=manifest.step,
            created_at=manifest.created_at,
            metrics=dict(manifest.metrics),
            on_evict=partial(_give_back, ready, refiner, enlarging),
        )
        if manifest.golden is not None and not checkpoint.loras:
            check_golden(model, manifest.golden, partial(stored.open_plain, device))
        if enlarging is not None:
            enlarging.check_golden(device, execution.dtype, f"{_place(checkpoint)}: the second leg")
    except BrokenModel:
        _give_back(ready, refiner, enlarging)
        raise
    return model


def _give_back(ready: ReadyNetwork, refiner: Refiner | None, enlarging: Enlarging | None) -> None:
    ready.give_back()
    for later in (refiner, enlarging):
        if later is not None:
            later.ready.give_back()


def _place(checkpoint: Checkpoint) -> str:
    return f"{checkpoint.model}/{checkpoint.version}"


def _chain_of(checkpoint: Checkpoint) -> ChainConfig:
    where = _place(checkpoint)
    config = read_json(checkpoint.path / NOISE_CONFIG_PATH, where)
    return read_chain_config(config, where, latent_pipeline_class(checkpoint.path))


def _conditioner(
    checkpoint: Checkpoint,
    stored: StoredNetwork,
    ready: ReadyNetwork,
    readers: Sequence[TextReader],
    device: torch.device,
) -> tuple[Conditioner, int]:
    """And the memory that what it keeps takes at most."""
    model, manifest = checkpoint.model, checkpoint.manifest
    if readers:
        zeros = read_index(checkpoint.path, model).flags.get(ZEROS_FLAG, True)
        return text_conditioner(model, readers, stored.inputs, ready.network, zero_if_absent=zeros)
    num_classes = stored.inputs.values_of(CLASS_LABELS)
    if num_classes == 0:
        return Unconditional(model), 0
    labels = len(manifest.labels) or num_classes
    return Labels(model, CLASS_LABELS, labels, manifest.null_label, device), 0


def _check_classes(num_classes: int, manifest: Manifest, where: str) -> None:
    """The manifest's labels must go with the rows of the class embedding."""
    if len(manifest.labels) > num_classes:
        raise BrokenModel(f"{where}: {len(manifest.labels)} labels, but the network knows {num_classes} classes")
    if manifest.null_label is not None and manifest.null_label >= num_classes:
        raise BrokenModel(f"{where}: null_label {manifest.null_label}, but the network knows {num_classes} classes")
    if num_classes and not manifest.labels and manifest.null_label is None:
        raise BrokenModel(f"{where}: a model with {num_classes} classes needs labels or a null_label in its manifest")

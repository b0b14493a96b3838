"""From a checkpoint's folder to a model in memory: diffusers builds the network, this checks it and makes it ready."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worker.codecs.kl_autoencoder import KlAutoencoder
from worker.codecs.pixels import Pixels
from worker.conditioning.conditioning import Conditioner
from worker.conditioning.labels import Labels, Unconditional
from worker.conditioning.text import Text, TextReader
from worker.contract import LoraUse
from worker.diffusion.noise import Shape
from worker.models.autoencoder import open_codec, read_autoencoding
from worker.models.chain_config import read_chain_config
from worker.models.errors import BrokenModel, UnsupportedModel
from worker.models.golden import check_golden
from worker.models.loaded_model import Execution, LoadedModel, Sizes, WarmUp
from worker.models.lora_merge import laid_upon, merge, merged_sha256
from worker.models.safety_checker import open_safety_checker
from worker.models.text_parts import open_readers
from worker.models.weights import check_finite, open_diffusers
from worker.networks.architecture import Architecture, NetworkSource, TextShape
from worker.networks.batch_form import InexactNetworkError
from worker.networks.cpu.form_choice import choice_key, prepare_in_chosen_form
from worker.networks.cpu.team import cpu_threads
from worker.networks.cuda.fused_step import choose_end_step
from worker.networks.cuda.networks import GpuNetworks, bytes_of, gpu_networks
from worker.networks.deep_features import FeatureReuse, feature_reuse
from worker.networks.denoiser import Denoiser
from worker.networks.device import dtype_name
from worker.networks.exactness import gives_numbers
from worker.networks.form import Form
from worker.networks.image_sizes import OtherSizes
from worker.networks.network_input import InputSpec
from worker.networks.padded import PadBatch, PaddedDenoiser, padded
from worker.networks.registry import ARCHITECTURES
from worker.networks.shared_choices import LocalChoices, SharedChoices
from worker.networks.text_projections import (
    TEXT_PROJECTIONS,
    TextProjector,
    projections_of,
    split_text,
    without_text,
)
from worker.networks.unet2d import CLASS_LABELS
from worker.networks.unet2d_condition import MASKED_PICTURE, TEXT_EMBEDS, TEXT_STATES, TIME_IDS
from worker.store.component_rules import SAFETY_CHECKER, TEXT_PARTS
from worker.store.denoiser_config import feature_channels
from worker.store.errors import BadCheckpoint
from worker.store.inspection import denoiser_config_path, size_multiple
from worker.store.manifest import NOISE_CONFIG_PATH, Manifest
from worker.store.model_store import Checkpoint
from worker.store.pipeline_index import ZEROS_FLAG, latent_pipeline_class, read_index

log = logging.getLogger(__name__)

OWN_CHOICES = LocalChoices()
"""Of a process that shares them with no other: what it loads again computes as before."""


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
    where = f"{checkpoint.model}/{checkpoint.version}"
    manifest = checkpoint.manifest
    autoencoding = read_autoencoding(checkpoint)
    chain = read_chain_config(
        _read_json(checkpoint.path / NOISE_CONFIG_PATH, where), where, latent_pipeline_class(checkpoint.path)
    )
    config_path = denoiser_config_path(checkpoint.path)
    config = _read_json(checkpoint.path / config_path, where)
    shape = autoencoding.shape
    architecture = _architecture(config, where)
    if manifest.channels not in (1, 3, 4):
        raise UnsupportedModel(f"{where}: need 1, 3 or 4 channels, got {manifest.channels}")
    readers = open_readers(checkpoint, device)
    inputs = _input_spec(architecture, config, shape, readers, where)
    if device.type == "cpu" and networks is None:  # a GPU's recording of each size would hold a copy for all its rows
        inputs = without_text(architecture, config, inputs, TEXT_STATES)
    factor = autoencoding.vae.factor if autoencoding.vae else 1
    multiple = size_multiple(checkpoint.path, where)
    num_classes = inputs.values_of(CLASS_LABELS)
    _check_classes(num_classes, manifest, where)
    threads = cpu_threads(threads)

    def open_network(dtype: torch.dtype) -> nn.Module:
        folder = (checkpoint.path / config_path).parent
        if laid_upon(checkpoint, "unet"):
            network = open_diffusers(architecture.model_class(), folder, torch.float32, where)
            merge(checkpoint, "unet", network)
            nn.Module.to(network, dtype)  # diffusers' own warns of what there is none of here
        else:
            network = open_diffusers(architecture.model_class(), folder, dtype, where)
        if dtype is not torch.float16:  # whose range large weights leave: seen by what the network says
            check_finite(network, where)
        if inputs.has(TEXT_PROJECTIONS):
            split_text(network, readers[0].tokenizer.length)
        return network

    def source_in(dtype: torch.dtype) -> NetworkSource:
        what = [config, str(inputs), str(dtype), threads, pad_batch, max_batch]
        return NetworkSource(
            architecture=architecture,
            open=partial(open_network, dtype),
            inputs=inputs,
            dtype=dtype,
            kind=json.dumps(what, sort_keys=True),
            where=where,
        )

    def open_plain() -> Denoiser:
        return architecture.denoiser(open_network(torch.float32).to(device), torch.float32)

    def reuse_of(
        network: nn.Module, dtype: torch.dtype, around: Callable[[Denoiser], Denoiser], *, is_exact: bool
    ) -> FeatureReuse | None:
        if (channels := feature_channels(config)) is None:
            return None
        denoiser = partial(architecture.denoiser, dtype=dtype)
        return feature_reuse(network, channels, denoiser, around, inputs, device, dtype, is_exact=is_exact)

    def checked(
        network: nn.Module,
        denoise: Denoiser,
        execution: Execution,
        other_sizes: OtherSizes,
        reuse: FeatureReuse | None,
        on_evict: Callable[[], None] = lambda: None,
        warm_up: WarmUp | None = None,
    ) -> LoadedModel:
        number_format = "float32" if execution.dtype == "tf32" else execution.dtype
        codec = open_codec(checkpoint, autoencoding, device, getattr(torch, number_format), threads, tile_above_pixels)
        shared = _shared_bytes(checkpoint, readers, codec)
        checker = open_safety_checker(checkpoint, device) if safety_checker else None
        if checker is not None:
            shared[manifest.components[SAFETY_CHECKER].sha256] = checker.weight_bytes
        projections = projections_of(network)
        projector = None if projections is None else TextProjector(projections)
        model = LoadedModel(
            name=checkpoint.model,
            version=checkpoint.version,
            weights_sha256=manifest.weights_sha256,
            denoise=denoise,
            chain=chain,
            shape=shape,
            codec=codec,
            conditioner=_conditioner(num_classes, readers, inputs, checkpoint, device, projector),
            named_of_size=partial(_time_ids, factor, device) if inputs.has(TIME_IDS) else lambda shape: {},
            picture_input=MASKED_PICTURE if inputs.has(MASKED_PICTURE) else None,
            decoded_shape=(manifest.channels, manifest.height, manifest.width),
            components={name: component.sha256 for name, component in manifest.components.items()},
            labels=tuple(manifest.labels),
            num_classes=num_classes,
            null_label=manifest.null_label,
            device=device,
            execution=execution,
            warm_up=warm_up,
            end_step=choose_end_step(device),
            weight_bytes=bytes_of(network) + sum(shared.values()) + (projector.most_bytes if projector else 0),
            shared_bytes=shared,
            checker=checker,
            sizes=None if multiple is None else Sizes(multiple, factor, other_sizes),
            loras=tuple(
                LoraUse(name=laid.lora.manifest.name, scale=laid.scale, sha256=laid.lora.manifest.sha256)
                for laid in checkpoint.loras
            ),
            reuse=reuse,
            step=manifest.step,
            created_at=manifest.created_at,
            metrics=dict(manifest.metrics),
            on_evict=on_evict,
        )
        if manifest.golden is not None and not checkpoint.loras:
            check_golden(model, manifest.golden, open_plain)
        return model

    if device.type == "cpu" and networks is None:
        dtypes = (torch.float32, torch.bfloat16) if dtype is None else (dtype,)
        key = choice_key(config, shape, dtypes)
        prepared = prepare_in_chosen_form(source_in, dtypes, threads, max_batch, key, choices or OWN_CHOICES)
        execution = Execution(dtype_name(prepared.dtype), exact=True, form=prepared.form)
        denoise = padded(prepared.denoise, pad_batch, max_batch, device)
        is_exact = prepared.form is Form.ONE_BY_ONE
        weight_bytes = partial(bytes_of, prepared.network)
        other_sizes = OtherSizes(denoise, inputs.of_shape, device, is_exact=is_exact, weight_bytes=weight_bytes)

        def around(inner: Denoiser) -> Denoiser:
            return padded(prepared.around(inner), pad_batch, max_batch, device)

        reuse = reuse_of(prepared.network, prepared.dtype, around, is_exact=is_exact)
        return checked(prepared.network, denoise, execution, other_sizes, reuse)
    if dtype is None:
        raise ValueError(f"need a dtype on {device}, it is chosen by measuring on a CPU only")
    networks = networks or gpu_networks(device, record=False)
    prepare = partial(networks.prepare, device=device, pad_batch=pad_batch, max_batch=max_batch, choices=choices)
    try:
        network = prepare(source_in(dtype))
        if dtype is torch.float16 and not gives_numbers(network.denoise, inputs, device):
            log.warning("%s: its numbers leave the range of float16, it runs in float32", where)
            dtype = torch.float32
            network = prepare(source_in(dtype))
    except InexactNetworkError as error:
        raise UnsupportedModel(f"{where}: REVERIE_EXACT=require, and {error} on {device}") from error
    execution = Execution(
        "tf32" if networks.tf32 else dtype_name(dtype),
        exact=network.form.exact,
        form=Form.GRAPHS if network.recorded else Form.KERNELS,
        batch_sizes=network.form.sizes,
        exact_cost=network.form.cost,
    )
    # A recording does again what was chosen when it was made.
    warm_up = None if network.recorded else WarmUp(inputs, network.form.sizes)

    # Kernel by kernel: recordings are of one size.
    def in_sizes(inner: Denoiser) -> Denoiser:
        return PaddedDenoiser(inner, network.form.sizes) if network.form.sizes else inner

    other_sizes = OtherSizes(in_sizes(network.plain), inputs.of_shape, device, is_exact=not network.form.exact)
    reuse = reuse_of(network.unet, dtype, in_sizes, is_exact=not network.form.exact)
    try:
        on_evict = partial(networks.give_back, network)
        return checked(network.unet, network.denoise, execution, other_sizes, reuse, on_evict, warm_up)
    except BrokenModel:
        networks.give_back(network)
        raise


def _read_json(path: Path, where: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BrokenModel(f"{where}: can't read {path.name}: {error}") from error
    if not isinstance(value, dict):
        raise BrokenModel(f"{where}: {path.name} is not a JSON object")
    return value


def _conditioner(
    num_classes: int,
    readers: Sequence[TextReader],
    inputs: InputSpec,
    checkpoint: Checkpoint,
    device: torch.device,
    projector: TextProjector | None,
) -> Conditioner:
    model, manifest = checkpoint.model, checkpoint.manifest
    states_name = TEXT_STATES if projector is None else TEXT_PROJECTIONS
    if readers and inputs.has(TEXT_EMBEDS):  # Stable Diffusion XL
        zeros = read_index(checkpoint.path, model).flags.get(ZEROS_FLAG, True)
        return Text(
            model,
            tuple(readers),
            states_name,
            TEXT_EMBEDS,
            penultimate=True,
            zero_if_absent=zeros,
            project=projector,
        )
    if readers:
        return Text(model, tuple(readers), states_name, project=projector)
    if num_classes == 0:
        return Unconditional(model)
    return Labels(model, CLASS_LABELS, len(manifest.labels) or num_classes, manifest.null_label, device)


def _shared_bytes(
    checkpoint: Checkpoint, readers: Sequence[TextReader], codec: Pixels | KlAutoencoder
) -> dict[str, int]:
    """Of the components that other models may use too, by hash."""
    names = [encoder for encoder, _ in TEXT_PARTS if encoder in checkpoint.manifest.components]
    sizes = {name: reader.encoder.weight_bytes for name, reader in zip(names, readers, strict=True)}
    if isinstance(codec, KlAutoencoder):
        sizes["vae"] = codec.weight_bytes
    return {merged_sha256(checkpoint, name): size for name, size in sizes.items()}


def _time_ids(factor: int, device: torch.device, shape: Shape) -> Mapping[str, Tensor]:
    """Of an image that was never cropped nor resized."""
    height, width = factor * shape[1], factor * shape[2]
    return {TIME_IDS: torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32).to(device)}


def _architecture(config: Mapping[str, Any], where: str) -> Architecture:
    name = config.get("_class_name", "UNet2DModel")
    if name not in ARCHITECTURES:
        raise UnsupportedModel(f"{where}: need a _class_name of {', '.join(ARCHITECTURES)}, got {name!r}")
    return ARCHITECTURES[name]


def _input_spec(
    architecture: Architecture, config: Mapping[str, Any], shape: Shape, readers: Sequence[TextReader], where: str
) -> InputSpec:
    """What the network takes, once it is seen to be one that can be called."""
    text_shape = None
    if readers:
        lengths = {reader.tokenizer.length for reader in readers}
        if len(lengths) > 1:
            raise UnsupportedModel(f"{where}: need tokenizers of one length, got {sorted(lengths)}")
        width = sum(reader.encoder.width for reader in readers)
        text_shape = TextShape(lengths.pop(), width, readers[-1].encoder.pooled_width)
    try:
        return architecture.input_spec(config, shape, text_shape)
    except BadCheckpoint as error:
        raise UnsupportedModel(f"{where}: {error}") from error


def _check_classes(num_classes: int, manifest: Manifest, where: str) -> None:
    """The manifest's labels must go with the rows of the class embedding."""
    if len(manifest.labels) > num_classes:
        raise BrokenModel(f"{where}: {len(manifest.labels)} labels, but the network knows {num_classes} classes")
    if manifest.null_label is not None and manifest.null_label >= num_classes:
        raise BrokenModel(f"{where}: null_label {manifest.null_label}, but the network knows {num_classes} classes")
    if num_classes and not manifest.labels and manifest.null_label is None:
        raise BrokenModel(f"{where}: a model with {num_classes} classes needs labels or a null_label in its manifest")

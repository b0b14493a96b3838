"""A network of a checkpoint: opened and checked, and prepared for the device that it runs on."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worker.conditioning.text import TextReader
from worker.diffusion.noise import Shape
from worker.models.errors import BrokenModel, UnsupportedModel
from worker.models.loaded_model import Execution, WarmUp
from worker.models.lora_merge import laid_upon, merge
from worker.models.weights import check_finite, open_diffusers
from worker.networks.architecture import Architecture, NetworkSource, TextShape
from worker.networks.batch_form import InexactNetworkError
from worker.networks.cpu.form_choice import choice_key, prepare_beside, prepare_in_chosen_form
from worker.networks.cuda.networks import GpuNetworks, bytes_of
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
from worker.networks.text_projections import TEXT_PROJECTIONS, split_text, without_text
from worker.networks.unet2d_condition import SCORED_TIME_ID_COUNT, TEXT_STATES, TIME_IDS
from worker.store.denoiser_config import feature_channels
from worker.store.errors import BadCheckpoint
from worker.store.model_store import Checkpoint

log = logging.getLogger(__name__)

OWN_CHOICES = LocalChoices()
"""Of a process that shares them with no other: what it loads again computes as before."""


@dataclass(frozen=True, slots=True)
class Host:
    """What networks run on, and how a worker prepares them; see `load_checkpoint` for the fields.

    Attributes:
        networks: None on a CPU.
    """

    device: torch.device
    dtype: torch.dtype | None
    choices: SharedChoices | None
    pad_batch: PadBatch
    max_batch: int
    threads: int
    networks: GpuNetworks | None


@dataclass(frozen=True, eq=False, slots=True)
class StoredNetwork:
    """A network of a checkpoint, on disk.

    Attributes:
        component: its name.
        inputs: what it takes once it is opened.
        tokens: of a text, where it reads one; else 0.
    """

    checkpoint: Checkpoint
    component: str
    architecture: Architecture
    config: Mapping[str, Any]
    inputs: InputSpec
    tokens: int

    @property
    def where(self) -> str:
        return f"{self.checkpoint.model}/{self.checkpoint.version}"

    def open(self, dtype: torch.dtype) -> nn.Module:
        """Raises BrokenModel."""
        model_class, folder = self.architecture.model_class(), self.checkpoint.path / self.component
        if laid_upon(self.checkpoint, self.component):
            network = open_diffusers(model_class, folder, torch.float32, self.where)
            merge(self.checkpoint, self.component, network)
            nn.Module.to(network, dtype)  # diffusers' own warns of what there is none of here
        else:
            network = open_diffusers(model_class, folder, dtype, self.where)
        if dtype is not torch.float16:  # whose range large weights leave: seen by what the network says
            check_finite(network, self.where)
        if self.inputs.has(TEXT_PROJECTIONS):
            split_text(network, self.tokens)
        return network

    def open_plain(self, device: torch.device) -> Denoiser:
        """In float32, in diffusers' own modules."""
        return self.architecture.denoiser(self.open(torch.float32).to(device), torch.float32)

    def source(self, dtype: torch.dtype, host: Host) -> NetworkSource:
        what = [self.config, str(self.inputs), str(dtype), host.threads, host.pad_batch, host.max_batch]
        return NetworkSource(
            architecture=self.architecture,
            open=partial(self.open, dtype),
            inputs=self.inputs,
            dtype=dtype,
            kind=json.dumps(what, sort_keys=True),
            where=self.where,
        )

    def reuse(
        self,
        network: nn.Module,
        dtype: torch.dtype,
        around: Callable[[Denoiser], Denoiser],
        device: torch.device,
        *,
        is_exact: bool,
    ) -> FeatureReuse | None:
        """See `feature_reuse`; None where it can't be divided."""
        if (channels := feature_channels(self.config)) is None:
            return None
        denoiser = partial(self.architecture.denoiser, dtype=dtype)
        return feature_reuse(network, channels, denoiser, around, self.inputs, device, dtype, is_exact=is_exact)


def read_network(
    checkpoint: Checkpoint, component: str, shape: Shape, readers: Sequence[TextReader], host: Host
) -> StoredNetwork:
    """Look at a network's configuration.

    Args:
        shape: (C, H, W) of the state that it denoises.
        readers: of the text that it reads.

    Raises:
        UnsupportedModel: it can't be called.
        BrokenModel: the configuration can't be read.
    """
    where = f"{checkpoint.model}/{checkpoint.version}"
    config = read_json(checkpoint.path / component / "config.json", where)
    name = config.get("_class_name", "UNet2DModel")
    if name not in ARCHITECTURES:
        raise UnsupportedModel(f"{where}: need a _class_name of {', '.join(ARCHITECTURES)}, got {name!r}")
    architecture, tokens, text_shape = ARCHITECTURES[name], 0, None
    if readers:
        lengths = {reader.tokenizer.length for reader in readers}
        if len(lengths) > 1:
            raise UnsupportedModel(f"{where}: need tokenizers of one length, got {sorted(lengths)}")
        tokens = lengths.pop()
        width = sum(reader.encoder.width for reader in readers)
        text_shape = TextShape(tokens, width, readers[-1].encoder.pooled_width)
    try:
        inputs = architecture.input_spec(config, shape, text_shape)
    except BadCheckpoint as error:
        raise UnsupportedModel(f"{where}: {component}: {error}") from error
    if host.networks is None:  # a GPU's recording of each size would hold a copy for all its rows
        inputs = without_text(architecture, config, inputs, TEXT_STATES)
    return StoredNetwork(checkpoint, component, architecture, config, inputs, tokens)


def sizes_named(inputs: InputSpec, factor: int, device: torch.device) -> Callable[[Shape], Mapping[str, Tensor]]:
    """What a network reads of its images' sizes, by the shape of its state: of images never cropped nor resized.

    Args:
        factor: pixels of an image to a value of its state, along each side.
    """
    time_ids = next((declared for declared in inputs.named if declared.name == TIME_IDS), None)
    if time_ids is None:
        return lambda shape: {}
    is_scored = time_ids.shape == (SCORED_TIME_ID_COUNT,)

    def named(shape: Shape) -> Mapping[str, Tensor]:
        size = [factor * shape[1], factor * shape[2]]
        numbers = [*size, 0, 0] if is_scored else [*size, 0, 0, *size]
        return {TIME_IDS: torch.tensor(numbers, dtype=torch.float32).to(device)}

    return named


def read_json(path: Path, where: str) -> dict[str, Any]:
    """Raises BrokenModel."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BrokenModel(f"{where}: can't read {path.name}: {error}") from error
    if not isinstance(value, dict):
        raise BrokenModel(f"{where}: {path.name} is not a JSON object")
    return value


@dataclass(frozen=True, eq=False, slots=True)
class ReadyNetwork:
    """A network that serves; `LoadedModel` and `LaterLeg` say what the fields are.

    Attributes:
        dtype: that it computes in.
        give_back: nothing runs on it any more.
    """

    network: nn.Module
    dtype: torch.dtype
    denoise: Denoiser
    execution: Execution
    other_sizes: OtherSizes
    reuse: FeatureReuse | None
    warm_up: WarmUp | None = None
    give_back: Callable[[], None] = lambda: None


def make_ready(stored: StoredNetwork, host: Host, beside: ReadyNetwork | None = None) -> ReadyNetwork:
    """Open and prepare a network.

    Args:
        beside: an earlier one of the same model: this one computes as that does, so that one dtype and form tell of
            both.

    Raises:
        UnsupportedModel, BrokenModel, OSError: as `load_checkpoint`.
    """
    if beside is not None:
        host = replace(host, dtype=beside.dtype)
    if host.networks is None:
        return _on_cpu(stored, host, beside)
    return _on_gpu(stored, host, host.networks)


def _on_cpu(stored: StoredNetwork, host: Host, beside: ReadyNetwork | None) -> ReadyNetwork:
    def source_in(dtype: torch.dtype) -> NetworkSource:
        return stored.source(dtype, host)

    if beside is None:
        dtypes = (torch.float32, torch.bfloat16) if host.dtype is None else (host.dtype,)
        key = choice_key(stored.config, stored.inputs.shape, dtypes)
        choices = host.choices or OWN_CHOICES
        prepared = prepare_in_chosen_form(source_in, dtypes, host.threads, host.max_batch, key, choices)
    else:
        prepared = prepare_beside(beside.execution.form, source_in(beside.dtype), host.threads)
    execution = Execution(dtype_name(prepared.dtype), exact=True, form=prepared.form)
    device, is_exact = host.device, prepared.form is Form.ONE_BY_ONE

    def around(inner: Denoiser) -> Denoiser:
        return padded(prepared.around(inner), host.pad_batch, host.max_batch, device)

    denoise = padded(prepared.denoise, host.pad_batch, host.max_batch, device)
    weight_bytes = partial(bytes_of, prepared.network)
    other_sizes = OtherSizes(denoise, stored.inputs.of_shape, device, is_exact=is_exact, weight_bytes=weight_bytes)
    reuse = stored.reuse(prepared.network, prepared.dtype, around, device, is_exact=is_exact)
    return ReadyNetwork(prepared.network, prepared.dtype, denoise, execution, other_sizes, reuse)


def _on_gpu(stored: StoredNetwork, host: Host, networks: GpuNetworks) -> ReadyNetwork:
    device, dtype, where = host.device, host.dtype, stored.where
    if dtype is None:
        raise ValueError(f"need a dtype on {device}, it is chosen by measuring on a CPU only")
    prepare = partial(
        networks.prepare, device=device, pad_batch=host.pad_batch, max_batch=host.max_batch, choices=host.choices
    )
    try:
        network = prepare(stored.source(dtype, host))
        if dtype is torch.float16 and not gives_numbers(network.denoise, stored.inputs, device):
            log.warning("%s: its numbers leave the range of float16, it runs in float32", where)
            dtype = torch.float32
            network = prepare(stored.source(dtype, host))
    except InexactNetworkError as error:
        raise UnsupportedModel(f"{where}: REVERIE_EXACT=require, and {error} on {device}") from error
    form = network.form
    execution = Execution(
        "tf32" if networks.tf32 else dtype_name(dtype),
        exact=form.exact,
        form=Form.GRAPHS if network.recorded else Form.KERNELS,
        batch_sizes=form.sizes,
        exact_cost=form.cost,
    )

    # Kernel by kernel: recordings are of one size.
    def in_sizes(inner: Denoiser) -> Denoiser:
        return PaddedDenoiser(inner, form.sizes) if form.sizes else inner

    return ReadyNetwork(
        network.unet,
        dtype,
        network.denoise,
        execution,
        OtherSizes(in_sizes(network.plain), stored.inputs.of_shape, device, is_exact=not form.exact),
        stored.reuse(network.unet, dtype, in_sizes, device, is_exact=not form.exact),
        # A recording does again what was chosen when it was made.
        warm_up=None if network.recorded else WarmUp(stored.inputs, form.sizes),
        give_back=partial(networks.give_back, network),
    )

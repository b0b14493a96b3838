"""Networks on a GPU: their calls recorded as CUDA graphs, and new weights written where the old ones lay."""

import contextlib
import itertools
import logging
import math
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256

import torch
from torch import nn

from worker.networks.architecture import NetworkSource
from worker.networks.batch_form import (
    BatchForm,
    ExactMode,
    InexactNetworkError,
    Sizes,
    Stopwatch,
    agreeing_sizes,
    choose_form,
    seconds_by_size,
    stopwatch,
)
from worker.networks.cuda.forms import prepare_on_cuda
from worker.networks.cuda.graph_capture import Capture, CudaGraphs, GraphCapture
from worker.networks.cuda.graphed import GraphedDenoiser
from worker.networks.cuda.group_norm import KernelFor, kernel_for, replace_norms, settle_norms
from worker.networks.cuda.kernel_choice import REPRODUCIBLE, REPRODUCIBLE_TF32
from worker.networks.cuda.workspaces import THREADS_AND_STREAMS, workspace_bytes
from worker.networks.denoiser import Denoiser
from worker.networks.device import choose_memory_format
from worker.networks.exactness import is_batch_invariant
from worker.networks.memory_errors import out_of_memory
from worker.networks.padded import PadBatch, PaddedDenoiser, sizes_of
from worker.networks.shared_choices import LocalChoices, SharedChoices

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Network:
    """A network in its place on the device.

    Attributes:
        kind: networks of one kind differ in their weights alone.
        plain: evaluates it kernel by kernel, with images and batches of any size.
        form: the sizes of batches that it is evaluated with.
        recorded: whether `denoise` runs recordings.
    """

    kind: str
    unet: nn.Module
    denoise: Denoiser
    plain: Denoiser
    form: BatchForm
    recorded: bool


class GpuNetworks:
    """Prepares networks, and keeps one of each kind that nothing runs on any more, with its recordings, as a spare.

    Rows in flight end on the old weights while the new ones already serve, so two networks of a kind take turns: the
    first reload records once more, the later ones write into the spare and record nothing. Safe from any thread.

    Args:
        capture: records networks; None records none and keeps no spares.
        stream: where weights are copied, beside the engine's own; None for a device that has no streams.
        tf32: whether products of float32 are rounded to it.
        exact: what is done about sizes of batches that round in different ways.
        measure: times a size of batch; None: by a clock.
        norm_kernel: finds a kernel for a network's group norms.
        workspace_bytes: what CUDA's libraries keep for all threads and streams that evaluate networks.
    """

    def __init__(
        self,
        capture: Capture | None,
        stream: torch.cuda.Stream | None = None,
        *,
        tf32: bool = False,
        exact: ExactMode = ExactMode.OFF,
        measure: Stopwatch | None = None,
        norm_kernel: KernelFor = kernel_for,
        workspace_bytes: int = 0,
    ) -> None:
        self.tf32 = tf32
        self.workspace_bytes = workspace_bytes
        self._norm_kernel = norm_kernel
        self._norms: dict[str, str] = {}  # by kind: which kernel
        self._capture = capture
        self._stream = stream
        self._exact = exact
        self._measure = measure
        self._lock = threading.Lock()
        self._recording = threading.Lock()
        self._spares: dict[str, Network] = {}  # by kind
        self._forms: dict[str, BatchForm] = {}  # by kind
        self._unrecordable: set[str] = set()
        self._recording_bytes = 0

    def prepare(
        self,
        source: NetworkSource,
        device: torch.device,
        *,
        pad_batch: PadBatch,
        max_batch: int,
        choices: SharedChoices | None = None,
    ) -> Network:
        """A network with the source's weights, which are checked first: a spare is not touched before they are good.

        Args:
            choices: keeps the form of each kind for all workers with such a card; None: nobody else's matter.

        Raises:
            InexactNetworkError: exactness is required, and no sizes of batches agree.
        """
        module = source.open()
        spare = self._take(source.kind)
        if spare is not None:
            with self._aside():
                spare.unet.load_state_dict(module.state_dict())  # in place
            return spare
        choices = choices or LocalChoices()
        kind = sha256(source.kind.encode()).hexdigest()[:16]
        key = f"batches of {kind}, exact {self._exact}, on {card_kind(device)}"
        chosen = choices.get(key)
        known = self._forms.get(source.kind) or (None if chosen is None else BatchForm.from_text(chosen))
        memory_format = choose_memory_format(source.dtype, device)
        sizes = sizes_of(pad_batch, max_batch, device) if known is None else known.sizes
        with self._aside():
            module = prepare_on_cuda(module.to(device), max_batch, memory_format)
            plain = source.denoiser(module, memory_format)
            norms = replace_norms(module) if memory_format is torch.channels_last else []
            kernel = self._norm_kernel(norms, device)

        if norms:
            known_norms = self._norms.get(source.kind)
            seconds = partial(self._seconds_of_full_batch, source, plain, sizes, max_batch, device)
            self._norms[source.kind] = settle_norms(
                norms, kernel, seconds, choices, f"group norms of {kind}, on {card_kind(device)}", known_norms
            )
        with self._aside():
            recorded = None if sizes is None else self._record(source, plain, sizes, device)
        denoise = recorded or (plain if sizes is None else PaddedDenoiser(plain, sizes))
        # On the stream of the engine's steps, where all replays must be.
        form = known or BatchForm.from_text(
            choices.settle(key, self._form_of(denoise, source, sizes, device).to_text())
        )
        self._forms[source.kind] = form
        if recorded is not None:
            recorded.keep(form.sizes)
        elif sizes is not None:
            denoise = PaddedDenoiser(plain, form.sizes)
        return Network(source.kind, module, denoise, plain, form, recorded=recorded is not None)

    def _record(
        self, source: NetworkSource, plain: Denoiser, sizes: Sizes, device: torch.device
    ) -> GraphedDenoiser | None:
        """The network's calls, if that is wanted and can be done."""
        if self._capture is None or source.kind in self._unrecordable:
            return None
        with self._recording:
            for last_try in (False, True):
                try:
                    recorded = GraphedDenoiser(plain, self._capture, sizes, source.inputs, device)
                    self._recording_bytes = self._capture.memory_bytes()
                    return recorded
                except RuntimeError as error:
                    full = out_of_memory(error)
                    if full and not last_try:
                        log.warning("%s: no memory to record its calls, giving back what is free", source.where)
                        self.drop_spares()
                        self._capture.make_room()
                        continue
                    if not full:  # that may pass
                        self._unrecordable.add(source.kind)
                    log.warning("a network's calls can't be recorded as CUDA graphs, it runs without: %s", error)
                    return None
        return None

    def _seconds_of_full_batch(
        self, source: NetworkSource, plain: Denoiser, sizes: Sizes | None, max_batch: int, device: torch.device
    ) -> float:
        """As it would be served; infinitely many where it can't be recorded and should be."""
        most = (max_batch if sizes is None else sizes[-1],)
        measure = self._measure or stopwatch(device)
        if self._capture is None or sizes is None or source.kind in self._unrecordable:
            return seconds_by_size(plain, source.inputs, most, device, measure)[most[0]]
        with self._aside():
            recorded = self._record(source, plain, most, device)
        if recorded is None:
            self._unrecordable.discard(source.kind)  # with other norms it may be
            return math.inf
        return seconds_by_size(recorded, source.inputs, most, device, measure)[most[0]]

    def _form_of(
        self, denoise: Denoiser, source: NetworkSource, sizes: Sizes | None, device: torch.device
    ) -> BatchForm:
        """By asking the network, in batches of all the sizes that it may serve with."""
        if sizes is None:
            exact = is_batch_invariant(denoise, source.inputs, device)
            if not exact and self._exact is ExactMode.REQUIRE:
                raise InexactNetworkError("a row's bits depend on its batch, and batches have any size")
            return BatchForm((), exact, 0.0 if exact else None)
        groups = agreeing_sizes(denoise, source.inputs, sizes, device)
        measure = self._measure or stopwatch(device)
        seconds = {} if sizes in groups else seconds_by_size(denoise, source.inputs, sizes, device, measure)
        form = choose_form(self._exact, groups, sizes, seconds)
        log.log(
            logging.INFO if form.exact else logging.WARNING, "%s: %s", source.where, _described(form, sizes, groups)
        )
        return form

    def give_back(self, network: Network) -> None:
        """Nothing runs on the network any more; its weights may be overwritten."""
        if network.recorded:
            with self._lock:
                self._spares.setdefault(network.kind, network)

    def spare_bytes(self) -> int:
        """Memory of the spares' weights."""
        with self._lock:
            return sum(bytes_of(network.unet) for network in self._spares.values())

    def recording_bytes(self) -> int:
        """Memory of all recordings, beside the weights that they read."""
        return self._recording_bytes

    def wait_for_recording(self) -> bool:
        """While calls are recorded the allocator can free nothing: wait for the end. False when none is recorded."""
        if not self._recording.locked():
            return False
        with self._recording:
            return True

    def drop_spares(self) -> bool:
        """Give the spares' memory back; False when there are none."""
        with self._lock:
            had_some = bool(self._spares)
            self._spares.clear()
        return had_some

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """On a stream of its own: no copy of it waits for the engine's steps, and no step for it."""
        if self._stream is None:
            yield
            return
        with torch.cuda.device(self._stream.device), torch.cuda.stream(self._stream):
            try:
                yield
            finally:
                self._stream.synchronize()

    def _take(self, kind: str) -> Network | None:
        with self._lock:
            return self._spares.pop(kind, None)


def gpu_networks(
    device: torch.device, *, record: bool, tf32: bool = False, exact: ExactMode = ExactMode.PREFER
) -> GpuNetworks:
    """As a worker uses them on this device. Settles which kernels CUDA's libraries take, in the whole process."""
    if device.type != "cuda":
        return GpuNetworks(None, exact=exact)
    (REPRODUCIBLE_TF32 if tf32 else REPRODUCIBLE).apply()
    with torch.cuda.device(device):
        loading, recording = (torch.cuda.Stream(device) for _ in range(2))  # type: ignore[no-untyped-call]  # torch's
        workspaces = THREADS_AND_STREAMS * workspace_bytes(torch.cuda.get_device_capability(device), os.environ)
        return GpuNetworks(
            GraphCapture(CudaGraphs(recording)) if record else None,
            loading,
            tf32=tf32,
            exact=exact,
            workspace_bytes=workspaces,
        )


def card_kind(device: torch.device) -> str:
    """The same for devices on which the same libraries take the same kernels."""
    if device.type != "cuda":
        return device.type
    libraries = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"  # type: ignore[no-untyped-call]
    return f"{torch.cuda.get_device_name(device)} with torch {torch.__version__}, {libraries}"


def _described(form: BatchForm, sizes: Sizes, groups: Sequence[Sizes]) -> str:
    if form.exact and form.sizes == sizes:
        return "an image does not depend on its batch, in batches of any size"
    found = " | ".join(",".join(map(str, group)) for group in groups) or "none"
    cost = "" if form.cost is None else f"; exact batches take up to {form.cost:.0%} longer"
    what = f"runs in batches of {form.sizes}" if form.exact else "an image's last bits depend on its batch"
    return f"{what}: sizes that agree: {found}{cost}"


def bytes_of(module: nn.Module) -> int:
    """Memory of its weights."""
    return sum(t.numel() * t.element_size() for t in itertools.chain(module.parameters(), module.buffers()))

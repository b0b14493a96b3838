"""Networks on a GPU: their calls recorded as CUDA graphs, and new weights written where the old ones lay."""

import contextlib
import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from worker.networks.architecture import NetworkSource
from worker.networks.cuda.graph_capture import Capture, CudaGraphCapture
from worker.networks.cuda.graphed import GraphedDenoiser
from worker.networks.cuda.kernel_choice import REPRODUCIBLE, REPRODUCIBLE_TF32
from worker.networks.denoiser import Denoiser
from worker.networks.memory_errors import out_of_memory
from worker.networks.padded import PadBatch, PaddedDenoiser, sizes_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Network:
    """A U-Net in its place on the device.

    Attributes:
        kind: networks of one kind differ in their weights alone.
        recorded: whether `denoise` runs recordings.
    """

    kind: str
    unet: nn.Module
    denoise: Denoiser
    recorded: bool


class GpuNetworks:
    """Prepares networks, and keeps one of each kind that nothing runs on any more, with its recordings, as a spare.

    Rows in flight end on the old weights while the new ones already serve, so two networks of a kind take turns: the
    first reload records once more, the later ones write into the spare and record nothing. Safe from any thread.

    Args:
        begin_capture: makes what records a network; None records none and keeps no spares.
        stream: where weights are copied, beside the engine's own; None for a device that has no streams.
    """

    def __init__(self, begin_capture: Callable[[], Capture] | None, stream: torch.cuda.Stream | None = None) -> None:
        self._begin_capture = begin_capture
        self._stream = stream
        self._lock = threading.Lock()
        self._spares: dict[str, Network] = {}  # by kind
        self._unrecordable: set[str] = set()

    def prepare(
        self,
        source: NetworkSource,
        device: torch.device,
        *,
        pad_batch: PadBatch,
        max_batch: int,
    ) -> Network:
        """A network with the source's weights, which are checked first: a spare is not touched before they are good."""
        unet = source.open()
        spare = self._take(source.kind)
        with self._aside():
            if spare is None:
                return self._place(unet, source, device, sizes_of(pad_batch, max_batch, device))
            spare.unet.load_state_dict(unet.state_dict())  # in place
            return spare

    def _place(
        self,
        unet: nn.Module,
        source: NetworkSource,
        device: torch.device,
        sizes: tuple[int, ...] | None,
    ) -> Network:
        """A new network, recorded if that is wanted and can be done."""
        unet = _in_channels_last(unet.to(device))
        plain, kind = source.denoiser(unet), source.kind
        if self._begin_capture is not None and sizes is not None and kind not in self._unrecordable:
            try:
                recorded = GraphedDenoiser(plain, self._begin_capture(), sizes, source.inputs, device)
                return Network(kind, unet, recorded, recorded=True)
            except RuntimeError as error:
                if not out_of_memory(error):  # that may pass
                    self._unrecordable.add(kind)
                log.warning("a network's calls can't be recorded as CUDA graphs, it runs without: %s", error)
        return Network(kind, unet, plain if sizes is None else PaddedDenoiser(plain, sizes), recorded=False)

    def give_back(self, network: Network) -> None:
        """Nothing runs on the network any more; its weights may be overwritten."""
        if network.recorded:
            with self._lock:
                self._spares.setdefault(network.kind, network)

    def spare_bytes(self) -> int:
        """Memory of the spares' weights."""
        with self._lock:
            return sum(bytes_of(network.unet) for network in self._spares.values())

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


def gpu_networks(device: torch.device, *, record: bool, tf32: bool = False) -> GpuNetworks:
    """As a worker uses them on this device. Settles which kernels CUDA's libraries take, in the whole process."""
    if device.type != "cuda":
        return GpuNetworks(None)
    (REPRODUCIBLE_TF32 if tf32 else REPRODUCIBLE).apply()
    loading, recording = (torch.cuda.Stream(device) for _ in range(2))  # type: ignore[no-untyped-call]  # torch's
    return GpuNetworks((lambda: CudaGraphCapture(recording)) if record else None, loading)


def bytes_of(unet: nn.Module) -> int:
    """Memory of its weights."""
    return sum(t.numel() * t.element_size() for t in itertools.chain(unet.parameters(), unet.buffers()))


def _in_channels_last(unet: nn.Module) -> nn.Module:
    for weight in unet.parameters():
        if weight.dim() == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return unet

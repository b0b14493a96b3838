"""What goes into the engine and what comes out of it, as plain data: the seam between it and the RQ worker.

The engine's thread never touches Redis and the RQ side never touches torch; these messages are all they share.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from worker.contract import EngineCounters, SamplingRequest
from worker.contract.receipts import Provenance

if TYPE_CHECKING:
    from queue import SimpleQueue

    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class SavedImage:
    """One image between two of its steps; the noise of the steps to come is a function of its seed.

    Attributes:
        step: steps of its leg behind it.
        x_t: [C, H, W] float32; the leg's result when all its steps are behind it, None before the first.
        x_0_previous: [C, H, W] float32, the last step's x_0; None where the next step does not read it.
        leg: which one it walks, from 0.
        entry: [C, H, W] float32, the result of the leg before; None in the first.
        earlier_outputs: [C, H, W] float32 each, the network's outputs of earlier steps, the newest first, as far as
            it is read again.
        full_x_t: [C, H, W] float32, see `worker.engine.save_point`.
        frames: by the steps behind it, [h, w, C] of the moments that its request asked for.
    """

    step: int
    x_t: "NDArray[np.float32] | None"
    x_0_previous: "NDArray[np.float32] | None"
    leg: int = 0
    entry: "NDArray[np.float32] | None" = None
    earlier_outputs: "tuple[NDArray[np.float32], ...]" = ()
    frames: "Mapping[int, NDArray[np.uint8]]" = field(default_factory=dict)
    full_x_t: "NDArray[np.float32] | None" = None


@dataclass(frozen=True, slots=True)
class SavedChain:
    """A request between two steps: all that another engine needs to go on to the same pixels. Images in order."""

    model: str
    version: str
    weights_sha256: str
    dtype: str
    """In which the network computed; resumed in another one, the chain would end on other pixels."""
    images: tuple[SavedImage, ...]


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """A claimed job, ready to be sampled."""

    job_id: str
    request: SamplingRequest
    resume: SavedChain | None = None
    """The state that an earlier engine left; ignored, with a log line, if it does not fit this request and model."""
    pictures: "Mapping[str, NDArray[np.uint8]]" = field(default_factory=dict)
    """By name of the upload, those that the request names: [H, W] or [H, W, C] with C = 3 or 4."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """The request is bound to this version and will end on it."""

    job_id: str
    model: str
    version: str
    weights_sha256: str


@dataclass(frozen=True, slots=True)
class Progressed:
    """`step` of `steps` are behind the request's slowest image."""

    job_id: str
    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class Previewed:
    """What some images of a watched request are going to be, as their last step predicts it."""

    job_id: str
    images: "dict[int, tuple[int, NDArray[np.uint8]]]"
    """By the image's index: the steps behind it, and [h, w, C], small."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A recent state of a long request, kept for the worker that may have to take the job over."""

    job_id: str
    chain: SavedChain


@dataclass(frozen=True, slots=True)
class Succeeded:
    """All images of the request, in order; each uint8 [H, W, C] with C = 1 or 3, or 4."""

    job_id: str
    model: str
    version: str
    weights_sha256: str
    dtype: str
    images: "tuple[NDArray[np.uint8], ...]"
    warnings: tuple[str, ...] = ()
    """Deviations from the request, for example a prompt that was cut."""
    exact: bool = True
    """Whether the pixels are bitwise independent of the batch."""
    provenance: Provenance | None = None
    """What their receipt says; None: they have none."""
    frames: "tuple[tuple[NDArray[np.uint8], ...], ...]" = ()
    """Of each image, moments on its way, uint8 [h, w, C]; none where the request asked for none."""
    flagged: tuple[bool, ...] = ()
    """Of each image, whether the safety checker objected to it; none where it was not asked."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The request ended without images. If not `retryable`, it would fail in the same way again."""

    job_id: str
    code: str
    detail: str
    retryable: bool


@dataclass(frozen=True, slots=True)
class Canceled:
    """The request left at a step boundary because `cancel` asked for it."""

    job_id: str


EngineEvent = Admitted | Progressed | Previewed | Saved | Succeeded | Failed | Canceled


class EnginePort(Protocol):
    """The engine as the RQ worker sees it. Thread-safe."""

    outbox: "SimpleQueue[EngineEvent]"

    @property
    def max_batch(self) -> int:
        """Most network rows of one batch now; fewer than configured for a while after memory ran out."""

    def submit(self, request: EngineRequest) -> None:
        """Take a request. Everything after that, errors included, is reported in the outbox: each request gets any
        number of `Admitted`, `Progressed`, `Previewed` and `Saved`, then exactly one of `Succeeded`, `Failed` and
        `Canceled`."""

    def cancel(self, job_id: str) -> None:
        """Drop the request at the next step boundary; unknown or ended ids are ignored."""

    def watch(self, job_ids: "Collection[str]") -> None:
        """Preview these requests from now on, as long as they are here, and no other."""

    def counters(self) -> EngineCounters:
        """What the engine has done so far."""

    def last_step_at(self) -> float:
        """Clock reading (monotonic seconds) when the engine last finished a step or was found idle."""

    def row_step_s(self) -> Mapping[str, float]:
        """Seconds that one network row of one step costs, by model; a model that has not run yet is missing."""

    def ran_s(self) -> Mapping[str, float]:
        """Seconds of the steps that each admitted request had rows in, by job id; 0 before its first step."""

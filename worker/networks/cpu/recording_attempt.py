"""Evaluations that become recordings on the way."""

import logging
import time
from collections.abc import Callable

import torch
from torch import Tensor

from worker.networks.cpu.recording import NotRecordable, Plan, Recording, noted, recorded
from worker.networks.denoiser import Denoiser
from worker.networks.network_input import NetworkInput

log = logging.getLogger(__name__)

DIFFERENT = "played again it gives other bits"


class RecordingAttempt:
    """Evaluates, and records that on the way: a part of the work at each call, so that none takes longer than two
    evaluations, and plays the recording once it is there.

    Args:
        denoise: a function of its inputs alone, on the calling thread.
        most_s: an evaluation that takes longer is not recorded, and neither is one that can't be played again bit by
            bit.
    """

    def __init__(self, denoise: Denoiser, most_s: float) -> None:
        self._denoise, self._most_s = denoise, most_s
        self._next: Callable[[NetworkInput], Tensor] = self._time
        self._plan = Plan()
        self._recording: Recording | None = None
        self._others: tuple[NetworkInput, Tensor] | None = None
        self.is_refused = False

    def __call__(self, inputs: NetworkInput) -> Tensor:
        """The network's output; every call with as many rows."""
        try:
            return self._next(inputs)
        except (NotRecordable, RuntimeError, TypeError) as error:  # torch's: of an operation that can't be done so
            if self.is_refused:
                raise
            return self._refuse(str(error))(inputs)

    @property
    def nbytes(self) -> int:
        """Of what is kept."""
        return 0 if self._recording is None else self._recording.nbytes

    @property
    def is_played(self) -> bool:
        return self._next == self._recording

    def _refuse(self, why: str) -> Denoiser:
        log.debug("not recorded: %s", why)
        self.is_refused, self._recording, self._next = True, None, self._denoise
        return self._denoise

    def _time(self, inputs: NetworkInput) -> Tensor:
        began = time.thread_time()
        output = self._denoise(inputs)
        self._next = self._note
        if time.thread_time() - began > self._most_s:
            self._refuse("it takes too long")
        return output

    def _note(self, inputs: NetworkInput) -> Tensor:
        output, self._plan = noted(self._denoise, inputs)
        self._next = self._record
        return output

    def _record(self, inputs: NetworkInput) -> Tensor:
        self._recording = recorded(self._denoise, inputs, self._plan)
        self._plan, self._next = Plan(), self._foresee
        return self._recording.output.clone()

    def _foresee(self, inputs: NetworkInput) -> Tensor:
        """With other numbers than it was recorded with: what did not come from the inputs is seen so."""
        others = NetworkInput(inputs.x.flip(-1), inputs.t + 1, {name: v.flip(0) for name, v in inputs.named.items()})
        self._others, self._next = (others, self._denoise(others)), self._compare_others
        return self._denoise(inputs)

    def _compare_others(self, inputs: NetworkInput) -> Tensor:
        assert self._recording is not None
        assert self._others is not None
        others, expected = self._others
        self._others, self._next = None, self._compare
        if not _same_bits(self._recording(others), expected):
            self._refuse(DIFFERENT)
        return self._denoise(inputs)

    def _compare(self, inputs: NetworkInput) -> Tensor:
        assert self._recording is not None
        expected = self._denoise(inputs)
        if _same_bits(self._recording(inputs), expected):
            self._next = self._recording
        else:
            self._refuse(DIFFERENT)
        return expected


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.int32), other.view(torch.int32))

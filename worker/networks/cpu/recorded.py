"""A network that plays recordings of what it is asked again and again."""

import threading
from collections import OrderedDict

from torch import Tensor

from worker.networks.cpu.recording_attempt import RecordingAttempt
from worker.networks.denoiser import Denoiser
from worker.networks.network_input import NetworkInput

CALLS_BEFORE = 2
"""Evaluations of a size on a thread until it is recorded: sizes that come once are not worth it."""
WORTH_S = 0.2
"""Of an evaluation: one that takes longer spends its time in its operations, and takes long to record."""
MOST_BYTES = 2**26
"""Of a thread's recordings; those that were not used for longest make room."""


class _Known(threading.local):
    """A thread's recordings: threads compute in memory of their own."""

    def __init__(self) -> None:
        self.calls: dict[object, int] = {}
        self.refused: set[object] = set()
        self.attempts: OrderedDict[object, RecordingAttempt] = OrderedDict()


class RecordedDenoiser:
    """
    Args:
        inner: a function of its inputs alone, on the calling thread.
    """

    def __init__(self, inner: Denoiser) -> None:
        self.inner = inner
        self._known = _Known()

    def __call__(self, inputs: NetworkInput) -> Tensor:
        known = self._known
        key = (inputs.x.shape, inputs.t.dtype, *((name, v.shape) for name, v in inputs.named.items()))
        attempt = known.attempts.get(key)
        if attempt is None:
            calls = known.calls[key] = known.calls.get(key, 0) + 1
            if calls <= CALLS_BEFORE or key in known.refused:
                return self.inner(inputs)
            attempt = known.attempts[key] = RecordingAttempt(self.inner, WORTH_S)
        known.attempts.move_to_end(key)
        nbytes = attempt.nbytes
        output = attempt(inputs)
        if attempt.is_refused or attempt.nbytes > MOST_BYTES:
            known.refused.add(key)
            del known.attempts[key]
        elif attempt.nbytes > nbytes:
            self._make_room(known)
        return output

    def _make_room(self, known: _Known) -> None:
        while sum(attempt.nbytes for attempt in known.attempts.values()) > MOST_BYTES:
            oldest, _ = known.attempts.popitem(last=False)
            known.calls[oldest] = 0

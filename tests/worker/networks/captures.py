"""A stand-in for CUDA graphs on the CPU: runs again what it was given, on the same tensors and into the same ones."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class RunAgain:
    """As unforgiving as graphs that share memory: an answer is gone when the next one is made, of any network.

    Attributes:
        recorded: rows of each recording, in order.
        refuses: which sizes can't be recorded, and fail with `error`.
        rooms_made: how often what was free was given back.
    """

    recorded: list[int] = field(default_factory=list)
    refuses: Callable[[int], bool] = lambda size: False
    error: Exception = field(default_factory=lambda: RuntimeError("operation not permitted when stream is capturing"))
    rooms_made: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    _answers: list[Tensor] = field(default_factory=list)

    def __call__(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        answer = run().clone()
        if self.refuses(len(answer)):
            raise self.error
        self.recorded.append(len(answer))
        self._answers.append(answer)

        def replay() -> Tensor:
            for other in self._answers:
                other.fill_(torch.nan)
            return answer.copy_(run())

        return replay

    def make_room(self) -> None:
        self.rooms_made += 1

    def memory_bytes(self) -> int:
        return sum(answer.nbytes for answer in self._answers)

"""First evaluations of networks on the engine's thread, made before an image waits for one."""

import logging
from collections import deque
from collections.abc import Iterable
from weakref import ReferenceType, WeakSet, ref

import torch

from worker.models.loaded_model import LoadedModel
from worker.networks.device import end_if_lost
from worker.networks.network_input import InputSpec

log = logging.getLogger(__name__)


class WarmUps:
    """The sizes of batches that a network is still to be evaluated with once. Owned by the engine's thread.

    CUDA's libraries choose how to compute a convolution anew in each thread, so that what the loading thread has
    evaluated is of no use here. It keeps no model in memory.
    """

    def __init__(self) -> None:
        self._known: WeakSet[LoadedModel] = WeakSet()
        self._waiting: deque[tuple[ReferenceType[LoadedModel], int, InputSpec, int]] = deque()
        """Model, leg, inputs and rows."""

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, models: Iterable[LoadedModel]) -> None:
        """Those that are new wait for their turn."""
        for model in models:
            if model in self._known:
                continue
            self._known.add(model)
            for number, warm_up in enumerate([model.warm_up, *(leg.warm_up for leg in model.later_legs)]):
                if warm_up is not None:
                    self._waiting.extend((ref(model), number, warm_up.inputs, size) for size in warm_up.sizes)

    def run_next(self) -> bool:
        """Evaluate one network with one size; False when none is left.

        Raises:
            DeviceLost: nothing can be computed in this process any more.
        """
        while self._waiting:
            of_model, number, inputs, size = self._waiting.popleft()
            if (model := of_model()) is None:
                continue  # it was evicted
            try:
                with torch.inference_mode():  # here, and not around a turn that has nothing to do
                    (model, *model.later_legs)[number].denoise(inputs.zeros(size, model.device))
            except Exception as error:  # no memory, say: if that lasts, the requests fail by it
                log.warning("%s/%s: not warmed up for %d rows: %s", model.name, model.version, size, error)
                end_if_lost(model.device, error)
            return True
        return False

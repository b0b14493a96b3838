"""The models in memory: who runs on them, and which leave when there is no room."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from worker.models.loaded_model import LoadedModel
from worker.models.retirement import Key

FETCH_WITHIN_S = 10.0
"""A version loaded on demand is dropped when nobody has come for it so long after."""


class Spares(Protocol):
    """Networks kept for the weights of versions to come; safe from any thread."""

    def spare_bytes(self) -> int:
        """Memory of their weights."""

    def drop_spares(self) -> bool:
        """Give it back; False when there are none."""


@dataclass(slots=True)
class _Resident:
    """A model in memory."""

    model: LoadedModel
    loaded_at: float
    pins: int = 0
    used_at: float = float("-inf")
    """When it was last pinned."""


class Residents:
    """Models in memory and their pins. Not safe from several threads; the pool's lock guards it.

    Args:
        budget_bytes: of weights, spares included; None: no limit.
        spares: what is kept of models that were let go; the first to leave.
    """

    def __init__(self, budget_bytes: int | None, spares: Spares | None) -> None:
        self._budget = budget_bytes
        self._spares = spares
        self._residents: dict[Key, _Resident] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._residents

    def __iter__(self) -> Iterator[Key]:
        return iter(self._residents)

    @property
    def have_room(self) -> bool:
        """Whether models are loaded before anybody asks for them."""
        return self._budget is None or not self._residents

    def add(self, model: LoadedModel, now: float) -> None:
        self._residents[model.name, model.version] = _Resident(model, loaded_at=now)

    def pin(self, key: Key, now: float) -> LoadedModel:
        """For one request; a model that is not here is an error."""
        resident = self._residents[key]
        resident.pins += 1
        resident.used_at = now
        return resident.model

    def unpin(self, key: Key) -> None:
        """Undo one `pin`."""
        resident = self._residents[key]
        if resident.pins < 1:
            raise ValueError(f"{key[0]}/{key[1]} is released more often than it was acquired")
        resident.pins -= 1

    def pinned(self) -> set[Key]:
        """What rows run on."""
        return {key for key, resident in self._residents.items() if resident.pins}

    def drop_spares(self) -> bool:
        """Give back memory that no model needs; False when there is none."""
        return self._spares is not None and self._spares.drop_spares()

    def drop_the_unneeded(self, serving: Mapping[str, str], now: float) -> None:
        """Let go of what nobody runs on or comes for, then of spares and what was used longest ago until all fits.

        Args:
            serving: version by model; these go only for want of room.
        """
        for key, resident in list(self._residents.items()):
            never_fetched = resident.used_at < resident.loaded_at
            patience = FETCH_WITHIN_S if never_fetched else 0.0
            if resident.pins == 0 and serving.get(key[0]) != key[1] and now >= resident.loaded_at + patience:
                self._drop(key)
        if self._fits():
            return
        newest = max(self._residents.values(), key=lambda resident: resident.loaded_at, default=None)
        for key, resident in sorted(self._residents.items(), key=lambda item: item[1].used_at):
            if resident.pins == 0 and resident is not newest:
                self._drop(key)
                if self._fits():
                    return

    def _drop(self, key: Key) -> None:
        self._residents.pop(key).model.let_go()

    def _fits(self) -> bool:
        """Whether the weights keep to the budget, if need be without spares."""
        if self._budget is None:
            return True
        used = sum(resident.model.weight_bytes for resident in self._residents.values())
        if self._spares is not None and used + self._spares.spare_bytes() > self._budget:
            self._spares.drop_spares()
        return used <= self._budget

"""The models in memory: who runs on them, and which leave when there is no room."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Protocol

from worker.contract import MemoryUse
from worker.models.loaded_model import LoadedModel, ModelKey

FETCH_WITHIN_S = 10.0
"""How long a version that was loaded for a request is kept for it, in case that it was canceled meanwhile."""

MERGED_KEPT = 4
"""Models with LoRAs that stay although nothing runs on them: each takes as much memory as the one without."""


class Spares(Protocol):
    """Networks kept for the weights of versions to come, and what all networks of a device share. Thread-safe."""

    @property
    def workspace_bytes(self) -> int:
        """Memory that the device's libraries keep, however many networks there are."""

    def spare_bytes(self) -> int:
        """Memory of their weights."""

    def drop_spares(self) -> bool:
        """Free it; False when there are none."""

    def recording_bytes(self) -> int:
        """Memory of all networks' recordings, which stays."""

    def wait_for_recording(self) -> bool:
        """Wait until the allocator can free memory; False when it could all the time."""


@dataclass(slots=True)
class _Resident:
    """A model in memory.

    Attributes:
        expected_until: a request that it was loaded for may come until then.
        used_at: when it was last pinned.
    """

    model: LoadedModel
    loaded_at: float
    expected_until: float
    pins: int = 0
    used_at: float = -math.inf

    def is_idle(self, now: float) -> bool:
        """Whether nothing runs on it and no request is about to."""
        expected = self.used_at < self.loaded_at and now < self.expected_until
        return self.pins == 0 and not expected


class Residents:
    """Models in memory and their pins. Not thread-safe: the pool's lock guards it.

    Args:
        budget_bytes: of weights, spares, recordings, the libraries' workspaces and images' deep features; None: no
            limit.
        spares: what is kept of evicted models; the first to leave.
    """

    def __init__(self, budget_bytes: int | None, spares: Spares | None) -> None:
        self._budget = math.inf if budget_bytes is None else budget_bytes
        self._spares = spares
        self._residents: dict[ModelKey, _Resident] = {}
        self.feature_bytes = 0
        """Of deep features that images carry from step to step."""

    def __contains__(self, key: ModelKey) -> bool:
        return key in self._residents

    def __iter__(self) -> Iterator[ModelKey]:
        return iter(self._residents)

    def __len__(self) -> int:
        return len(self._residents)

    @property
    def free_bytes(self) -> float:
        """What the budget leaves for another model; spares leave when they must."""
        return self._budget - self._used_bytes()

    def models(self) -> list[LoadedModel]:
        return [resident.model for resident in self._residents.values()]

    def bytes_by_model(self) -> Counter[str]:
        """Of the weights of each model's versions; what several models share counts for each of them."""
        held: Counter[str] = Counter()
        shared: dict[str, dict[str, int]] = {}
        for key, resident in self._residents.items():
            held[key.model] += resident.model.own_bytes
            shared.setdefault(key.model, {}).update(resident.model.shared_bytes)
        for model, parts in shared.items():
            held[model] += sum(parts.values())
        return held

    def shared_bytes(self) -> dict[str, int]:
        """Of components that several models may use, by hash; each lies in memory once."""
        return {part: size for each in self.models() for part, size in each.shared_bytes.items()}

    def _weight_bytes(self) -> int:
        return sum(each.own_bytes for each in self.models()) + sum(self.shared_bytes().values())

    def _bytes_of(self, key: ModelKey, kept: AbstractSet[str]) -> int:
        """What would be free without this model.

        Args:
            kept: hashes of components that stay for another.
        """
        model = self._residents[key].model
        others = {part for other, each in self._residents.items() if other != key for part in each.model.shared_bytes}
        return model.own_bytes + sum(n for part, n in model.shared_bytes.items() if part not in others | kept)

    def memory(self) -> MemoryUse:
        """All that is in the budget, and the spares."""
        spares = self._spares
        return MemoryUse(
            weight_bytes=self._weight_bytes(),
            spare_bytes=spares.spare_bytes() if spares else 0,
            recording_bytes=spares.recording_bytes() if spares else 0,
            workspace_bytes=spares.workspace_bytes if spares else 0,
            feature_bytes=self.feature_bytes,
        )

    def add(self, model: LoadedModel, now: float, *, demanded: bool) -> None:
        """`demanded`: a request waits for it and comes in a moment."""
        expected_until = now + FETCH_WITHIN_S if demanded else -math.inf
        self._residents[model.key] = _Resident(model, now, expected_until)

    def pin(self, key: ModelKey, now: float) -> LoadedModel:
        """For one request; a model that is not here is an error."""
        resident = self._residents[key]
        resident.pins += 1
        resident.used_at = now
        return resident.model

    def unpin(self, key: ModelKey) -> None:
        """Undo one `pin`."""
        resident = self._residents[key]
        if resident.pins < 1:
            raise ValueError(f"{key.model}/{key.version} is released more often than it was acquired")
        resident.pins -= 1

    def pinned(self) -> set[ModelKey]:
        """What rows run on."""
        return {key for key, resident in self._residents.items() if resident.pins}

    def drop_spares(self) -> bool:
        """Free memory that no model needs; False when there is none."""
        return self._spares is not None and self._spares.drop_spares()

    def make_room(
        self, incoming_bytes: int, replaced: ModelKey | None, now: float, components: AbstractSet[str] = frozenset()
    ) -> None:
        """Evict before a load what it would push out in any case; see `ModelPool` for the rule.

        Args:
            incoming_bytes: expected size of the model, without the components that are in memory.
            replaced: the version of the same model that leaves when the new one serves, if it is in memory.
            components: hashes of the model's components.
        """
        if replaced is not None:
            incoming_bytes -= self._bytes_of(replaced, components)
        self._evict_until_it_fits([key for key in self._idle(now) if key != replaced], incoming_bytes)

    def free_memory(self, replaced: ModelKey | None, now: float) -> bool:
        """A load ran out of memory: free the spares, else the idle model used longest ago, `replaced` last.

        False when there is nothing left to free.
        """
        if self.drop_spares():
            return True
        idle = sorted(self._idle(now), key=lambda key: key == replaced)
        if idle:
            self._evict(idle[0])
            self.drop_spares()  # it may have become one
        return bool(idle)

    def drop_unneeded(self, serving: Mapping[str, str], now: float) -> None:
        """Evict idle models that do not serve, then spares, then those used longest ago until the rest fits.

        Of those with LoRAs the ones used last stay, `MERGED_KEPT` of them.

        Args:
            serving: version by model; these leave only for want of room, the one loaded last not even then.
        """
        idle = self._idle(now)
        merged = [key for key in idle if key.loras]
        too_many = set(merged[: max(0, len(merged) - MERGED_KEPT)])
        for key in idle:
            if serving.get(key.model) != key.version or key in too_many:
                self._evict(key)
        newest = max(self._residents, key=lambda key: self._residents[key].loaded_at, default=None)
        self._evict_until_it_fits([key for key in self._idle(now) if key != newest])

    def _idle(self, now: float) -> list[ModelKey]:
        """Least recently used first."""
        idle = [key for key, resident in self._residents.items() if resident.is_idle(now)]
        return sorted(idle, key=lambda key: self._residents[key].used_at)

    def _evict_until_it_fits(self, keys: Iterable[ModelKey], incoming_bytes: int = 0) -> None:
        candidates = iter(keys)
        while not self._fits(incoming_bytes) and (key := next(candidates, None)) is not None:
            self._evict(key)

    def _evict(self, key: ModelKey) -> None:
        self._residents.pop(key).model.on_evict()

    def _fits(self, incoming_bytes: int) -> bool:
        """Whether the weights keep to the budget, if need be without spares."""
        needed = self._used_bytes() + incoming_bytes
        if self._spares is not None and needed + self._spares.spare_bytes() > self._budget:
            self._spares.drop_spares()
        return needed <= self._budget

    def _used_bytes(self) -> int:
        spares = self._spares
        shared = spares.recording_bytes() + spares.workspace_bytes if spares else 0
        return shared + self._weight_bytes() + self.feature_bytes

"""Which models are in memory: loads aside, pins what rows run on, follows each model's current version."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from worker.contract import ModelInfo
from worker.models.catalogue import Catalogue
from worker.models.errors import BrokenModel, ModelError, ModelUnavailable
from worker.models.loaded_model import LoadedModel
from worker.store.errors import ModelNotFound, StoreError, StoreNotFound, VersionNotFound
from worker.store.model_store import Checkpoint, ModelStore

log = logging.getLogger(__name__)

Key = tuple[str, str]
"""(model, version)"""

Wish = tuple[str, str | None]
"""(model, version), or the model's current version."""

FETCH_WITHIN_S = 10.0
"""A version loaded on demand is dropped when nobody has come for it so long after."""


@dataclass(slots=True)
class _Resident:
    """A model in memory."""

    model: LoadedModel
    loaded_at: float
    pins: int = 0
    used_at: float = float("-inf")
    """When it was last acquired."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a wish was not granted, and when."""

    error: ModelError
    version: str | None
    """Which version could not be loaded; None when it was not even known which."""
    at: float


class ModelPool:
    """Models in memory. All methods are safe from any thread; only `work` and `run` read the disk or load.

    A request that names no version gets the one that serves when it asks: the last current version that loaded
    whole. A bad version leaves the older one serving and is told in `describe`. A version is dropped when nothing
    runs on it and it does not serve any more, and, least recently used first, when the budget is exceeded. Never one
    that rows run on: with those alone the budget may be exceeded until they are done.

    Args:
        store: where the checkpoints are.
        load: makes a model of a checkpoint whose files were verified; raises ModelError.
        memory_budget_bytes: of weights; None: all that the store holds.
        poll_interval_s: how often `current` is looked at.
        retry_after_s: a load that failed is not tried again before.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        store: ModelStore,
        load: Callable[[Checkpoint], LoadedModel],
        *,
        memory_budget_bytes: int | None = None,
        poll_interval_s: float = 1.0,
        retry_after_s: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._load = load
        self._budget = memory_budget_bytes
        self._poll_interval_s = poll_interval_s
        self._retry_after_s = retry_after_s
        self._clock = clock
        self._changed = threading.Condition()
        self._residents: dict[Key, _Resident] = {}
        self._serving: dict[str, str] = {}
        self._wishes: list[Wish] = []
        self._failures: dict[Wish, _Failure] = {}
        self._listeners: list[Callable[[], None]] = []
        self._catalogue = Catalogue(store)

    def acquire(self, model: str, version: str | None = None) -> LoadedModel | None:
        """Pin a model for one request; call `release` when it is done.

        Never waits: None means that it is being loaded, and the listeners are called when that has ended.

        Raises:
            ModelError: it can't be had.
        """
        wish: Wish = (model, version)
        with self._changed:
            resolved = self._serving.get(model) if version is None else version
            resident = self._residents.get((model, resolved)) if resolved is not None else None
            if resident is not None:
                resident.pins += 1
                resident.used_at = self._clock()
                return resident.model
            failure = self._failures.get(wish)
            if wish not in self._wishes:
                if failure is not None and self._clock() < failure.at + self._retry_after_s:
                    raise failure.error
                self._wishes.append(wish)
                self._changed.notify_all()
            return None

    def release(self, model: LoadedModel) -> None:
        """Undo one `acquire`."""
        with self._changed:
            resident = self._residents[model.name, model.version]
            if resident.pins < 1:
                raise ValueError(f"{model.name}/{model.version} is released more often than it was acquired")
            resident.pins -= 1
            self._drop_the_unneeded()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Have `listener` called, on the loading thread, whenever a load has succeeded or failed."""
        with self._changed:
            self._listeners.append(listener)

    def describe(self) -> list[ModelInfo]:
        """Every model of the store, as this worker sees it; reads memory only, as of the last poll."""
        with self._changed:
            serving = dict(self._serving)
            errors = {wish[0]: str(failure.error) for wish, failure in self._failures.items() if wish[1] is None}
        return self._catalogue.describe(serving, errors)

    def resident(self) -> list[Key]:
        """(model, version) of what is in memory."""
        with self._changed:
            return list(self._residents)

    def pinned(self) -> set[Key]:
        """(model, version) of what rows run on."""
        with self._changed:
            return {key for key, resident in self._residents.items() if resident.pins}

    def run(self, stop: threading.Event) -> None:
        """The loading thread's loop, until `stop` is set and `wake` is called."""
        due = self._clock()
        while not stop.is_set():
            if self._clock() >= due:
                self.poll()
                due = self._clock() + self._poll_interval_s
            self.load_wishes()
            with self._changed:
                if not self._wishes and not stop.is_set():
                    self._changed.wait(timeout=max(0.0, due - self._clock()))

    def wake(self) -> None:
        """Let `run` look at its stop event now."""
        with self._changed:
            self._changed.notify_all()

    def poll(self) -> None:
        """Look at the store once and put models whose current version is not the serving one on the list."""
        try:
            currents = self._catalogue.refresh()
        except StoreError as error:
            log.error("can't read the store: %s", error)
            return
        now = self._clock()
        with self._changed:
            for model, current in currents.items():
                wish: Wish = (model, None)
                failure = self._failures.get(wish)
                if isinstance(current, StoreError):
                    self._failures[wish] = _Failure(BrokenModel(str(current)), None, now)
                elif self._serving.get(model) == current:
                    self._failures.pop(wish, None)  # somebody set `current` back to what serves
                elif failure is not None and failure.version == current and now < failure.at + self._retry_after_s:
                    pass  # the same bad version, tried a moment ago
                elif wish not in self._wishes and (model in self._serving or self._has_room()):
                    self._wishes.append(wish)
            for wish, failure in list(self._failures.items()):
                of_the_store = wish[1] is None and wish[0] in currents
                if not of_the_store and now >= failure.at + self._retry_after_s:
                    del self._failures[wish]
            self._drop_the_unneeded()

    def load_wishes(self) -> None:
        """Load what was asked for, one after the other."""
        while True:
            with self._changed:
                if not self._wishes:
                    return
                wish = self._wishes[0]
            failure = self._grant(wish)
            with self._changed:
                self._wishes.remove(wish)
                if failure is None:
                    self._failures.pop(wish, None)
                else:
                    self._failures[wish] = failure
                self._drop_the_unneeded()
                listeners = list(self._listeners)
            for listener in listeners:
                listener()

    def _grant(self, wish: Wish) -> _Failure | None:
        """Load one checkpoint aside; what serves is not touched before the new one is whole."""
        model, version = wish
        resolved = version
        try:
            checkpoint = self._store.checkpoint(model, version)
            resolved = checkpoint.version
            self._make_resident(checkpoint)
        except (ModelNotFound, StoreNotFound):  # their texts name a folder, which is nobody's business outside
            failure = _Failure(ModelUnavailable(f"there is no model {model}"), resolved, self._clock())
        except VersionNotFound as error:
            failure = _Failure(ModelUnavailable(str(error)), resolved, self._clock())
        except StoreError as error:
            failure = _Failure(BrokenModel(str(error)), resolved, self._clock())
        except ModelError as error:
            failure = _Failure(error, resolved, self._clock())
        except Exception as error:  # whatever a strange file makes a library raise: it must not end the thread
            log.exception("loading %s/%s", model, resolved)
            reason = BrokenModel(f"{model}/{resolved}: {type(error).__name__}: {error}")
            failure = _Failure(reason, resolved, self._clock())
        else:
            if version is None:
                with self._changed:
                    self._serving[model] = checkpoint.version
            return None
        log.error("can't load a model: %s", failure.error)
        if version is None:
            self._bring_back_what_served(model)
        return failure

    def _make_resident(self, checkpoint: Checkpoint) -> None:
        key = (checkpoint.model, checkpoint.version)
        with self._changed:
            if key in self._residents:
                return
        self._store.verify(*key)
        loaded = self._load(checkpoint)
        with self._changed:
            self._residents[key] = _Resident(loaded, loaded_at=self._clock())
        log.info("loaded %s/%s", *key)

    def _bring_back_what_served(self, model: str) -> None:
        """The current version is bad and the one that served was dropped for room: load that one again."""
        with self._changed:
            version = self._serving.get(model)
        if version is None:
            return
        try:
            self._make_resident(self._store.checkpoint(model, version))
        except (StoreError, ModelError) as error:
            log.error("can't load %s/%s again: %s", model, version, error)
            with self._changed:
                del self._serving[model]

    def _has_room(self) -> bool:
        """Whether models are loaded before anybody asks for them. Called with the lock held."""
        return self._budget is None or not self._residents

    def _drop_the_unneeded(self) -> None:
        """Called with the lock held."""
        now = self._clock()
        for key, resident in list(self._residents.items()):
            never_fetched = resident.used_at < resident.loaded_at
            patience = FETCH_WITHIN_S if never_fetched else 0.0
            if resident.pins == 0 and self._serving.get(key[0]) != key[1] and now >= resident.loaded_at + patience:
                del self._residents[key]
        if self._budget is None:
            return
        newest = max(self._residents.values(), key=lambda resident: resident.loaded_at, default=None)
        for key, resident in sorted(self._residents.items(), key=lambda item: item[1].used_at):
            if sum(r.model.weight_bytes for r in self._residents.values()) <= self._budget:
                return
            if resident.pins == 0 and resident is not newest:
                del self._residents[key]

"""Which models are in memory: loads aside, pins what rows run on, follows each model's current version."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import replace

from worker.contract import ModelInfo
from worker.models.catalogue import Catalogue
from worker.models.errors import BrokenModel
from worker.models.failures import Failure, may_pass, reason_of
from worker.models.loaded_model import LoadedModel
from worker.models.residents import Residents, Spares
from worker.models.retirement import Key, Retirement
from worker.store.errors import StoreError
from worker.store.model_store import Checkpoint, ModelStore

log = logging.getLogger(__name__)

Wish = tuple[str, str | None]
"""(model, version), or the model's current version."""


class ModelPool:
    """Models in memory. All methods are safe from any thread; only `work` and `run` read the disk or load.

    A request that names no version gets the one that serves when it asks: the last current version that loaded
    whole. A bad version leaves the older one serving, is told in `describe`, and is tried again when its files change.
    A version is dropped from memory when nothing runs on it and it does not serve any more, and, least recently used
    first, when the budget is exceeded. Never one that rows run on: with those alone the budget may be exceeded until
    they are done.

    Args:
        store: where the checkpoints are.
        load: makes a model of a checkpoint whose files were verified; raises ModelError.
        memory_budget_bytes: of weights; None: all that the store holds.
        spares: what `load` keeps of models that were let go; counted in the budget, and the first to leave.
        check_device: told of each failed load; raises DeviceLost when it was more than that.
        keep_versions: of each model, offer these many newest versions and delete the rest, see `prune`; None: all.
        poll_interval_s: how often `current` is looked at.
        retry_after_s: a load that failed for want of memory or of the file system is tried again after so long.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        store: ModelStore,
        load: Callable[[Checkpoint], LoadedModel],
        *,
        memory_budget_bytes: int | None = None,
        spares: Spares | None = None,
        check_device: Callable[[Exception], None] = lambda error: None,
        keep_versions: int | None = None,
        poll_interval_s: float = 1.0,
        retry_after_s: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._load = load
        self._check_device = check_device
        self._poll_interval_s = poll_interval_s
        self._retry_after_s = retry_after_s
        self._clock = clock
        self._changed = threading.Condition()
        self._residents = Residents(memory_budget_bytes, spares)
        self._serving: dict[str, str] = {}
        self._wishes: list[Wish] = []
        self._failures: dict[Wish, Failure] = {}
        self._failure_counts: Counter[str] = Counter()
        self._retirement = Retirement(keep_versions, clock)
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
            if resolved is not None and (model, resolved) in self._residents:
                return self._residents.pin((model, resolved), self._clock())
            failure = self._failures.get(wish)
            if wish not in self._wishes:
                if failure is not None and not self._is_over(failure):
                    raise failure.error
                self._wishes.append(wish)
                self._changed.notify_all()
            return None

    def release(self, model: LoadedModel) -> None:
        """Undo one `acquire`."""
        with self._changed:
            self._residents.unpin((model.name, model.version))
            self._drop_the_unneeded()

    def drop_spares(self) -> bool:
        """Give back memory that no model needs; False when there is none."""
        return self._residents.drop_spares()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Have `listener` called, on the loading thread, whenever a load has succeeded or failed."""
        with self._changed:
            self._listeners.append(listener)

    def describe(self) -> list[ModelInfo]:
        """Every model of the store, as this worker sees it; reads memory only, as of the last poll."""
        with self._changed:
            serving, counts = dict(self._serving), dict(self._failure_counts)
            errors = {wish[0]: str(failure.error) for wish, failure in self._failures.items() if wish[1] is None}
            retired = self._retirement.retired()
        return self._catalogue.describe(serving, errors, counts, retired)

    def resident(self) -> list[Key]:
        """(model, version) of what is in memory."""
        with self._changed:
            return list(self._residents)

    def pinned(self) -> set[Key]:
        """(model, version) of what rows run on."""
        with self._changed:
            return self._residents.pinned()

    def has_versions_to_prune(self) -> bool:
        """Whether `prune` would look for something to delete."""
        with self._changed:
            return bool(self._retirement.due())

    def prune(self, named: AbstractSet[Key]) -> list[Key]:
        """Delete versions that have not been offered for a while, none that is `named` and none that rows run on.

        Args:
            named: every (model, version) that a job in the queue or on any worker is bound to.

        Raises:
            StoreError: the store can't be written.
        """
        with self._changed:
            due = self._retirement.due()
            spared = named | self._residents.pinned()
        doomed, removed = due - spared, []
        for model in sorted({model for model, _ in doomed}):
            stay = {version for version in self._store.versions(model) if (model, version) not in doomed}
            removed += [(model, version) for version in self._store.prune(model, self._retirement.keep or 0, stay)]
        return removed

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
        self._forget_what_changed()
        now = self._clock()
        with self._changed:
            for model, current in currents.items():
                wish: Wish = (model, None)
                failure = self._failures.get(wish)
                if isinstance(current, StoreError):
                    self._note(wish, Failure(BrokenModel(str(current)), None, None, now))
                elif self._serving.get(model) == current:
                    self._failures.pop(wish, None)  # somebody set `current` back to what serves
                elif failure is not None and failure.version == current and not self._is_over(failure):
                    pass  # the same bad version
                elif wish not in self._wishes and (model in self._serving or self._residents.have_room):
                    self._wishes.append(wish)
            for wish, failure in list(self._failures.items()):
                of_the_store = wish[1] is None and wish[0] in currents
                if not of_the_store and self._is_over(failure):
                    del self._failures[wish]
            serving = {(model, current) for model, current in currents.items() if isinstance(current, str)}
            self._retirement.update(self._catalogue.versions(), serving | set(self._serving.items()))
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
                    self._note(wish, failure)
                self._drop_the_unneeded()
                listeners = list(self._listeners)
            for listener in listeners:
                listener()

    def _grant(self, wish: Wish) -> Failure | None:
        """Load one checkpoint aside; what serves is not touched before the new one is whole."""
        model, version = wish
        resolved, files = version, None
        try:
            resolved = self._store.current(model) if version is None else version
            # Before the first look inside: what changes during the load is a change.
            files = self._store.fingerprint(model, resolved)
            self._make_resident(self._store.checkpoint(model, resolved))
        except Exception as error:  # whatever a strange file makes a library raise: it must not end the thread
            self._check_device(error)
            reason = reason_of(error, model, resolved)
            failure = Failure(reason, resolved, files, self._clock(), may_pass(error))
        else:
            if version is None:
                with self._changed:
                    self._serving[model] = resolved
            return None
        if version is None:
            self._bring_back_what_served(model)
        return failure

    def _note(self, wish: Wish, failure: Failure) -> None:
        """Keep a failure; what is not known yet is logged and counted. Called with the lock held."""
        known = self._failures.get(wish)
        self._failures[wish] = failure
        if failure.version is None and known is not None and str(known.error) == str(failure.error):
            return  # `current` is as unreadable as it was at the last poll
        self._failure_counts[wish[0]] += 1
        log.error("can't load a model: %s", failure.error)

    def _is_over(self, failure: Failure) -> bool:
        """Whether a load may be tried again although no file has changed."""
        return not failure.depends_on_files and self._clock() >= failure.at + self._retry_after_s

    def _forget_what_changed(self) -> None:
        """Forget failures of versions whose files are not what they were: `poll` and requests try them again."""
        with self._changed:
            failures = {wish: failure for wish, failure in self._failures.items() if failure.version is not None}
        for wish, failure in failures.items():
            if self._store.fingerprint(wish[0], str(failure.version)) != failure.files:
                with self._changed:
                    if self._failures.get(wish) is failure:
                        self._failures[wish] = replace(failure, files=None, at=float("-inf"))

    def _make_resident(self, checkpoint: Checkpoint) -> None:
        key = (checkpoint.model, checkpoint.version)
        with self._changed:
            if key in self._residents:
                return
        self._store.verify(*key)
        try:
            loaded = self._load(checkpoint)
        except Exception as error:
            if not (may_pass(error) and self.drop_spares()):
                raise
            log.warning("can't load %s/%s, giving back networks that nothing runs on: %s", *key, error)
            loaded = self._load(checkpoint)
        with self._changed:
            self._residents.add(loaded, self._clock())
        log.info("loaded %s/%s", *key)

    def _bring_back_what_served(self, model: str) -> None:
        """The current version is bad and the one that served was dropped for room: load that one again."""
        with self._changed:
            version = self._serving.get(model)
        if version is None:
            return
        try:
            self._make_resident(self._store.checkpoint(model, version))
        except Exception as error:  # as above
            self._check_device(error)
            log.error("can't load %s/%s again: %s", model, version, error)
            with self._changed:
                del self._serving[model]

    def _drop_the_unneeded(self) -> None:
        """Called with the lock held."""
        self._residents.drop_the_unneeded(self._serving, self._clock())

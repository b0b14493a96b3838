"""Which models are in memory: loads beside the engine, pins what rows run on, follows each model's current version."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import replace

from worker.contract import LoraSet, MemoryUse, ModelInfo
from worker.models.catalogue import Catalogue
from worker.models.errors import BrokenModel
from worker.models.failures import Failure, lacks_memory, reason_of
from worker.models.load_queue import LoadQueue, LoadRequest
from worker.models.loaded_model import Execution, LoadedModel, ModelKey
from worker.models.priority import yield_to_others
from worker.models.residents import Residents, Spares
from worker.models.retirement import Key, Retirement
from worker.store.errors import StoreError
from worker.store.lora_store import LaidLora, LoraStore
from worker.store.manifest import Manifest
from worker.store.model_store import Checkpoint, ModelStore
from worker.store.verified_files import VerifiedFiles

log = logging.getLogger(__name__)


class ModelPool:
    """Models in memory. Thread-safe; only `poll`, `load_pending`, `prune` and `run` read the disk or load.

    **Which version.** A request that names none gets the one that serves: the last current version that loaded whole.
    A bad version leaves the older one serving, loaded again if it had been evicted; it is reported by `describe` and
    tried again when its files change. A load that failed for want of memory or of the file system is tried again after
    `retry_after_s`, a few times while requests wait for it.

    **Which models.** Without a budget, all. With one, as many as fit are loaded ahead, and the rest when a request asks
    for them; all are offered.

    **LoRAs.** A set of them laid upon a version is a model of its own, loaded when a request asks for it. Its weights
    are read anew and never changed afterwards: nothing is ever subtracted from what others draw with. What such a set
    does not change, an autoencoder say, is shared.

    **Who leaves.** At once: what nothing runs on and does not serve. For want of room: models that nothing runs on,
    least recently used first, *before* another is loaded. A new version is loaded beside the one that it replaces: that
    one serves until the new one is whole, and no other model leaves for it, so the budget is exceeded by one version
    for the time of the load. Rows keep their weights in memory, whatever the budget. When a load that somebody waits
    for runs out of memory, all that is idle may leave, the replaced version last, and comes back when it is asked for.

    Args:
        store: where the checkpoints are.
        load: makes a model of a checkpoint whose files were verified; raises ModelError.
        load_first: name of a model that is loaded ahead of all others; they follow by name.
        memory_budget_bytes: of weights; None: all that the store holds.
        spares: what `load` keeps of evicted models; counted in the budget, and the first to leave.
        check_device: called with the error of each failed load; raises DeviceLost when it was more than that.
        device_memory: bytes in use and in all on a GPU; (0, 0) on a CPU.
        keep_versions: of each model, offer these many newest versions and delete the rest, see `prune`; None: all.
        not_run: components that versions bring and that this worker does not run, to be named.
        poll_interval_s: how often `current` is looked at.
        retry_after_s: a load that failed for a temporary reason is tried again after so long.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        store: ModelStore,
        load: Callable[[Checkpoint], LoadedModel],
        *,
        load_first: str | None = None,
        memory_budget_bytes: int | None = None,
        spares: Spares | None = None,
        check_device: Callable[[Exception], None] = lambda error: None,
        device_memory: Callable[[], tuple[int, int]] = lambda: (0, 0),
        keep_versions: int | None = None,
        not_run: AbstractSet[str] = frozenset(),
        poll_interval_s: float = 1.0,
        retry_after_s: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._loras = LoraStore(store.root)
        self._load = load
        self._check_device = check_device
        self._device_memory = device_memory
        self._load_first = load_first
        self._spares = spares
        self._poll_interval_s = poll_interval_s
        self._clock = clock
        self._changed = threading.Condition()
        self._residents = Residents(memory_budget_bytes, spares)
        self._loads = LoadQueue(retry_after_s, clock)
        self._serving: dict[str, str] = {}
        self._measured_bytes: dict[str, int] = {}  # by model: what its last version took in memory
        self._executions: dict[str, Execution] = {}  # by model: how its last version ran
        self._load_counts: Counter[str] = Counter()
        self._bytes_per_file_byte = 1.0  # of the last load: another dtype takes another part
        self._retirement = Retirement(keep_versions, clock)
        self._listeners: list[Callable[[], None]] = []
        self._catalogue = Catalogue(store, not_run)
        self._verified = VerifiedFiles()

    def acquire(self, model: str, version: str | None = None, loras: LoraSet = ()) -> LoadedModel | None:
        """Pin a model for one request; call `release` when it is done.

        Never waits: None means that it is being loaded, and the listeners are called when that has ended.

        Raises:
            ModelError: it can't be had.
        """
        loras = self._catalogue.resolved(loras)
        with self._changed:
            serving = self._serving.get(model)
            resolved = serving if version is None else version
            if resolved is not None and (key := ModelKey(model, resolved, loras)) in self._residents:
                return self._residents.pin(key, self._clock())
            request = LoadRequest(model, version)
            if version is None and serving is not None and self._loads.failure_on_demand(request) is not None:
                request = LoadRequest(model, serving)  # it had been evicted, and the current version is bad
            if loras and resolved is not None and (version is not None or self._is_offered(model, resolved)):
                request = LoadRequest(model, resolved, loras)
            self._loads.demand(request)
            self._changed.notify_all()
            return None

    def release(self, model: LoadedModel) -> None:
        """Undo one `acquire`."""
        with self._changed:
            self._residents.unpin(model.key)
            self._drop_unneeded()

    def drop_spares(self) -> bool:
        """Free memory that no model needs, or wait until it can be freed; False when neither would help."""
        if self._spares is not None and self._spares.wait_for_recording():
            return True
        return self._residents.drop_spares()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Have `listener` called, on the loading thread, whenever a load has succeeded or failed."""
        with self._changed:
            self._listeners.append(listener)

    def describe(self) -> list[ModelInfo]:
        """Every model of the store, as this worker sees it; reads memory only, as of the last poll."""
        currents = self._catalogue.currents()
        with self._changed:
            offered = {model: self._offered(model, current) for model, current in currents.items()}
            errors, failures = self._loads.reload_errors(), dict(self._loads.failure_counts)
            loads = dict(self._load_counts)
            executions, retired = dict(self._executions), self._retirement.retired()
            held = self._residents.bytes_by_model()
        return self._catalogue.describe(offered, executions, errors, failures, loads, held, retired)

    def count_features(self, feature_bytes: int) -> None:
        """What the deep features of all images take now."""
        with self._changed:
            self._residents.feature_bytes = feature_bytes

    def memory(self) -> MemoryUse:
        """What the models take on the device, now."""
        used_bytes, total_bytes = self._device_memory()
        with self._changed:
            models = self._residents.memory()
        return models.model_copy(update={"device_used_bytes": used_bytes, "device_total_bytes": total_bytes})

    def loaded(self) -> list[LoadedModel]:
        """The models in memory; they may leave at any time."""
        with self._changed:
            return self._residents.models()

    def resident(self) -> list[Key]:
        """(model, version) of what is in memory."""
        with self._changed:
            return [(key.model, key.version) for key in self._residents]

    def pinned(self) -> set[Key]:
        """(model, version) of what rows run on."""
        with self._changed:
            return self._pinned()

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
            spared = named | self._pinned()
        doomed, removed = due - spared, []
        for model in sorted({model for model, _ in doomed}):
            stay = {version for version in self._store.versions(model) if (model, version) not in doomed}
            removed += [(model, version) for version in self._store.prune(model, self._retirement.keep or 0, stay)]
        return removed

    def run(self, stop: threading.Event) -> None:
        """The loading thread's loop, until `stop` is set and `wake` is called."""
        yield_to_others()
        next_poll = self._clock()
        while not stop.is_set():
            if self._clock() >= next_poll:
                self.poll()
                next_poll = self._clock() + self._poll_interval_s
            self.load_pending()
            with self._changed:
                until = min(next_poll, self._loads.next_due())
                if not stop.is_set() and (wait_s := until - self._clock()) > 0:
                    self._changed.wait(wait_s)

    def wake(self) -> None:
        """Let `run` look at its stop event now."""
        with self._changed:
            self._changed.notify_all()

    def poll(self) -> None:
        """Look at the store once and ask for the versions that are to be loaded before a request needs them."""
        try:
            currents = self._catalogue.refresh()
        except StoreError as error:
            log.error("can't read the store: %s", error)
            return
        self._retry_changed()
        now = self._clock()
        with self._changed:
            free_bytes, has_any = self._residents.free_bytes, len(self._residents) > 0
            for model, current in sorted(currents.items(), key=lambda each: each[0] != self._load_first):
                request = LoadRequest(model)
                failure = self._loads.failure(request)
                serving = self._serving.get(model)
                if isinstance(current, StoreError):
                    self._loads.note(request, Failure(BrokenModel(str(current)), None, None, now))
                    continue
                if failure is not None and (serving == current or failure.version != current):
                    self._loads.forget(request)  # `current` names another version than the one that failed
                if serving == current or self._loads.standing_failure(request) is not None:
                    continue
                if serving is not None:
                    if ModelKey(model, serving) in self._residents:
                        self._loads.add(request)
                elif (size := self._size(model, self._catalogue.manifest(model, current))) <= free_bytes or not has_any:
                    self._loads.add(request)
                    free_bytes, has_any = free_bytes - size, True
            self._loads.forget_expired(currents)
            wanted = {(model, current) for model, current in currents.items() if isinstance(current, str)}
            self._retirement.update(self._catalogue.versions(), wanted | set(self._serving.items()))
            self._drop_unneeded()

    def load_one(self) -> None:
        """Load what is due until a model is in memory."""
        while not self.resident() and self._load_next():
            pass

    def load_pending(self) -> None:
        """Load what is due, one after the other."""
        while self._load_next():
            pass

    def _load_next(self) -> bool:
        """False when nothing is due."""
        with self._changed:
            request = self._loads.next_load()
        if request is None:
            return False
        failure = self._load_one(request)
        with self._changed:
            if failure is None:
                self._loads.succeeded(request)
            else:
                self._loads.failed(request, failure)
            self._drop_unneeded()
            listeners = list(self._listeners)
        for listener in listeners:
            listener()
        return True

    def _offered(self, model: str, current: str | StoreError) -> str | None:
        """The version that a request gets which names none. Called with the lock held."""
        serving = self._serving.get(model)
        if serving is not None and ModelKey(model, serving) in self._residents:
            return serving
        if isinstance(current, str) and self._loads.failure_on_demand(LoadRequest(model)) is None:
            return current
        return serving

    def _is_offered(self, model: str, serving: str) -> bool:
        """Whether a request that names no version is drawn by the one that serves, in memory or not. Called with the
        lock held."""
        return self._offered(model, self._catalogue.currents().get(model, serving)) == serving

    def _pinned(self) -> set[Key]:
        """Called with the lock held."""
        return {(key.model, key.version) for key in self._residents.pinned()}

    def _load_one(self, request: LoadRequest) -> Failure | None:
        model, version = request.model, request.version
        resolved, files = version, None
        try:
            resolved = self._store.current(model) if version is None else version
            # Before the first look inside: what changes during the load is a change.
            files = self._store.fingerprint(model, resolved)
            checkpoint = self._store.checkpoint(model, resolved)
            laid = tuple(LaidLora(self._loras.find(lora.name, lora.sha256), lora.scale) for lora in request.loras)
            self._make_resident(request, replace(checkpoint, loras=laid))
        except Exception as error:  # whatever a strange file makes a library raise: it must not end the thread
            self._check_device(error)
            return Failure(reason_of(error, model, resolved), resolved, files, self._clock())
        if version is None:
            with self._changed:
                self._serving[model] = resolved
        return None

    def _make_resident(self, request: LoadRequest, checkpoint: Checkpoint) -> None:
        model, version = checkpoint.model, checkpoint.version
        with self._changed:
            if ModelKey(model, version, request.loras) in self._residents:
                return
        changed = {name for laid in checkpoint.loras for name in laid.lora.manifest.components}
        parts = checkpoint.manifest.components
        components = {component.sha256 for name, component in parts.items() if name not in changed}
        with self._changed:
            here = {part: size for part, size in self._residents.shared_bytes().items() if part in components}
            # What another model has in memory is not read from this one's files, and stays, even if that one leaves.
            sharing = [each for each in self._residents.models() if each.shared_bytes.keys() & here.keys()]
            kept_until_loaded = [(each.codec, each.conditioner) for each in sharing]
            del sharing
        self._store.verify(model, version, self._verified, in_memory=frozenset(here))
        with self._changed:
            size = self._size(model, checkpoint.manifest) - sum(here.values())
            self._residents.make_room(size, self._replaced_by(request), self._clock(), components)
        loaded = self._load_freeing_memory(request, checkpoint)
        with self._changed:
            self._measured_bytes[model] = loaded.weight_bytes
            self._executions[model] = loaded.execution
            self._load_counts[model] += not request.loras
            self._bytes_per_file_byte = loaded.weight_bytes / max(1, weight_file_bytes(checkpoint.manifest))
            self._residents.add(loaded, self._clock(), demanded=self._loads.is_demanded(request))
        del kept_until_loaded
        merged = f" with {', '.join(lora.name for lora in request.loras)}" if request.loras else ""
        log.info("loaded %s/%s%s", model, version, merged)

    def _load_freeing_memory(self, request: LoadRequest, checkpoint: Checkpoint) -> LoadedModel:
        """Load; when memory runs out, again as often as something can be freed."""
        while True:
            try:
                return self._load(checkpoint)
            except Exception as error:
                if not (lacks_memory(error) and self._free_memory(request)):
                    raise
                log.warning("no memory for %s/%s, trying with more: %s", checkpoint.model, checkpoint.version, error)

    def _free_memory(self, request: LoadRequest) -> bool:
        with self._changed:
            replaced = self._replaced_by(request)
            if replaced is None and not self._loads.is_demanded(request):
                return self._residents.drop_spares()  # nobody waits: no other model leaves for it
            return self._residents.free_memory(replaced, self._clock())

    def _replaced_by(self, request: LoadRequest) -> ModelKey | None:
        """The version in memory that leaves when this load has succeeded. Called with the lock held."""
        served = ModelKey(request.model, self._serving.get(request.model, ""))
        return served if request.version is None and served in self._residents else None

    def _retry_changed(self) -> None:
        """Let versions be loaded again whose files are not what they were when a load of them failed."""
        with self._changed:
            failures = self._loads.failures()
        for request, failure in failures:
            version = failure.version
            if version is not None and self._store.fingerprint(request.model, version) != failure.files:
                with self._changed:
                    self._loads.retry_now(request, failure)

    def _size(self, model: str, manifest: Manifest | None) -> int:
        """Expected bytes of a version in memory: those of the model's last one, else in proportion to its files."""
        if (measured := self._measured_bytes.get(model)) is not None:
            return measured
        return round(self._bytes_per_file_byte * weight_file_bytes(manifest)) if manifest is not None else 0

    def _drop_unneeded(self) -> None:
        """Called with the lock held."""
        self._residents.drop_unneeded(self._serving, self._clock())


def weight_file_bytes(manifest: Manifest) -> int:
    return sum(record.size_bytes for path, record in manifest.files.items() if path.endswith(".safetensors"))

"""Which LoRAs the store holds and which models they fit, read once per poll."""

import logging
import threading
from dataclasses import dataclass

from worker.contract import LoraInfo, LoraSet
from worker.models.errors import ModelUnavailable
from worker.store.errors import BadLora, StoreError
from worker.store.lora_file import LoraTarget, read_pairs
from worker.store.lora_store import Lora, LoraStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Known:
    """A name, as of one look."""

    current: Lora
    earlier: tuple[str, ...]


class LoraCatalogue:
    """A snapshot of the LoRAs. Only `refresh` lists the disk; it is called by one thread, the rest by any."""

    def __init__(self, store: LoraStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}
        self._fits: dict[tuple[str, str], tuple[LoraTarget, bool]] = {}
        """By model and hash: for its weights as they were when that was looked up."""

    def refresh(self) -> bool:
        """Look at the store; True when it holds others than before."""
        known: dict[str, _Known] = {}
        try:
            for name in self._store.names():
                lora = self._store.find(name)
                others = [sha256 for sha256 in self._store.hashes(name) if sha256 != lora.manifest.sha256]
                known[name] = _Known(lora, tuple(others))
        except (StoreError, OSError) as error:
            log.error("can't read the store's LoRAs: %s", error)
            return False
        with self._lock:
            changed = known != self._known
            self._known = known
        return changed

    def resolved(self, loras: LoraSet) -> LoraSet:
        """See `Catalogue.resolved`. Of a hash that is named here, too, the load says whether it is there."""
        if all(lora.sha256 is not None for lora in loras):
            return loras
        with self._lock:
            known = self._known
        found = []
        for lora in loras:
            if lora.sha256 is None and lora.name not in known:
                raise ModelUnavailable(f"there is no LoRA {lora.name}")
            sha256 = lora.sha256 or known[lora.name].current.manifest.sha256
            found.append(lora.model_copy(update={"sha256": sha256}))
        return tuple(found)

    def fitting(self, model: str, target: LoraTarget | None) -> list[LoraInfo]:
        """Those that a model can be asked for.

        Args:
            target: its weights; None: they can't be read.
        """
        with self._lock:
            known = self._known
        return [
            LoraInfo(name=name, sha256=each.current.manifest.sha256, earlier=list(each.earlier))
            for name, each in known.items()
            if target is not None
            and each.current.manifest.made_for in (None, model)
            and self._fits_model(each.current, model, target)
        ]

    def _fits_model(self, lora: Lora, model: str, target: LoraTarget) -> bool:
        key = (model, lora.manifest.sha256)
        known = self._fits.get(key)
        if known is None or known[0] is not target:
            known = self._fits[key] = target, _fits(lora, target)
        return known[1]


def _fits(lora: Lora, target: LoraTarget) -> bool:
    try:
        read_pairs(lora.file, target, lora.manifest.name, "the model")
    except BadLora:
        return False
    return True

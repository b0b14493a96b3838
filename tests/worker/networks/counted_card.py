"""A worker's networks as on a GPU, run on the CPU with its recordings replaced and counted."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from tests.worker.engine.harness import CPU, HandClock, ask, draw
from tests.worker.networks.captures import RunAgain
from tests.worker.tiny_models import TINY, publish_tiny
from worker.models.loaded_model import LoadedModel
from worker.models.loading import load_checkpoint
from worker.models.pool import ModelPool
from worker.networks.cuda.networks import GpuNetworks
from worker.networks.padded import PadBatch
from worker.store.manifest import GoldenSample
from worker.store.model_store import Checkpoint, ModelStore

SIZES = (1, 2, 4)
REQUEST = ask(seed=3, steps=4, batch=3, class_label=1)


@dataclass
class Card:
    """A worker's networks as on a GPU, with every recording counted."""

    store: ModelStore
    capture: RunAgain = field(default_factory=RunAgain)
    workspace_bytes: int = 0

    def __post_init__(self) -> None:
        self.networks = GpuNetworks(self.capture, workspace_bytes=self.workspace_bytes)
        self.clock = HandClock()
        self.pool = self.pool_with(self.load)
        self.poll()

    def pool_with(self, load: Callable[[Checkpoint], LoadedModel], memory_budget_bytes: int | None = None) -> ModelPool:
        return ModelPool(
            self.store, load, memory_budget_bytes=memory_budget_bytes, spares=self.networks, clock=self.clock
        )

    def load(self, checkpoint: Checkpoint) -> LoadedModel:
        return load_checkpoint(
            checkpoint, CPU, torch.float32, pad_batch=PadBatch.SIZES, max_batch=SIZES[-1], networks=self.networks
        )

    def poll(self) -> None:
        """Take up what is new and let go of what nobody has come for."""
        self.pool.poll()
        self.pool.load_pending()
        self.clock.now += 60
        self.pool.poll()

    @property
    def recordings(self) -> int:
        return len(self.capture.recorded)

    @property
    def serving(self) -> str:
        (info,) = self.pool.describe()
        assert info.version is not None
        return info.version


def publish(store: ModelStore, number: int, golden: GoldenSample | None = None) -> Checkpoint:
    checkpoint = publish_tiny(store, weights_seed=number, step=number + 1, make_current=golden is None)
    if golden is not None:
        path = checkpoint.path / "manifest.json"
        path.write_text(checkpoint.manifest.model_copy(update={"golden": golden}).model_dump_json())
        store.promote(TINY, checkpoint.version)
    return checkpoint


def fresh(store: ModelStore) -> tuple[NDArray[np.uint8], ...]:
    """What a worker that has just started draws."""
    return draw(Card(store).pool, REQUEST)

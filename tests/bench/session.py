"""What all parts of one run share: the device, the number formats, how long they may take, and a temporary store."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tests.bench import networks
from tests.bench.engine_plan import batches
from tests.bench.machine import has_native_bfloat16
from tests.bench.own_loop import Loader, filled_pool, loader
from tests.bench.peers.forms import PipelineForm, forms, has_compiler
from worker.models.pool import ModelPool
from worker.networks.device import choose_dtype, dtype_name
from worker.store.model_store import Checkpoint, ModelStore


@dataclass
class Session:
    """One run of the benchmark.

    Attributes:
        quick: the smallest sizes: to see that everything works, not to measure.
        folder: temporary.
    """

    quick: bool
    device: torch.device
    folder: Path
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)
    _checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    _pools: dict[str, ModelPool] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """What Reverie chooses by itself, or bfloat16 where it measures; servers are compared in the same."""
        return choose_dtype("auto", self.device) or torch.bfloat16

    @property
    def dtype_name(self) -> str:
        return dtype_name(self.dtype)

    @property
    def serving_model(self) -> str:
        """The network that is served: small enough on a CPU that a trace of many requests ends."""
        return self.served_models[0]

    @property
    def served_models(self) -> list[str]:
        """The small one first: it keeps a CPU busy at any batch size; the last one gains much by batching."""
        if self.quick:
            return [networks.DIGITS]
        return [networks.CIFAR_10] if self.on_gpu else [networks.QUARTER, networks.CIFAR_10, networks.DIGITS]

    @property
    def compared_models(self) -> list[str]:
        """Whose network is compared with the pipeline's, the small one first."""
        return [networks.DIGITS] if self.quick else [networks.QUARTER, networks.CIFAR_10]

    @property
    def text_model(self) -> str:
        """That draws by a prompt."""
        return networks.PROMPTS_QUICK if self.quick else networks.PROMPTS

    @property
    def large_model(self) -> str:
        return networks.DIGITS if self.quick else networks.CIFAR_10

    @property
    def peer_forms(self) -> tuple[PipelineForm, ...]:
        """In which a user of this machine may run a pipeline."""
        return forms(
            on_gpu=self.on_gpu,
            native_bfloat16=has_native_bfloat16(self.device),
            compiler=has_compiler(self.device),
        )

    @property
    def max_batch(self) -> int:
        return 64 if self.on_gpu else 16

    def store(self, model: str) -> ModelStore:
        """A store that holds this model alone."""
        self.checkpoint(model)
        return ModelStore(self.folder / "stores" / model)

    def checkpoint(self, model: str) -> Checkpoint:
        """The published version of `model`, made when first asked for."""
        if model not in self._checkpoints:
            self.say(f"  publishing {networks.TITLES[model]}")
            self._checkpoints[model] = networks.publish(ModelStore(self.folder / "stores" / model), model)
        return self._checkpoints[model]

    def pool(self, model: str) -> ModelPool:
        """`model` in memory, as the worker loads it."""
        if model not in self._pools:
            load = self.loader()
            self._pools[model] = filled_pool(self.store(model), load, model, load.networks)
        return self._pools[model]

    def loader(self, max_batch: int | None = None) -> Loader:
        """As the worker loads, for batches of that many at most; without a number, for all that are measured."""
        return loader(self.device, self.dtype, max_batch or max(batches(on_gpu=self.on_gpu, quick=self.quick)))

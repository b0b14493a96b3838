"""Which kernel a GPU's networks take for their group norms, with a stand-in for it on the CPU."""

from dataclasses import dataclass, field
from itertools import chain, repeat
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.worker.networks.captures import RunAgain
from tests.worker.networks.prepared import tiny_inputs
from tests.worker.tiny_models import publish_tiny
from worker.models.loaded_model import LoadedModel
from worker.models.loading import load_checkpoint
from worker.networks.cuda.group_norm import torchs_norm
from worker.networks.cuda.networks import GpuNetworks
from worker.networks.padded import PadBatch
from worker.networks.shared_choices import LocalChoices
from worker.store.model_store import Checkpoint, ModelStore

CPU = torch.device("cpu")


@dataclass
class Worker:
    """One that measures these seconds, first with torch's norms."""

    seconds: tuple[float, ...]
    choices: LocalChoices
    calls: int = 0
    capture: RunAgain = field(default_factory=RunAgain)

    def __post_init__(self) -> None:
        clock = chain(self.seconds, repeat(1.0))
        self.networks = GpuNetworks(
            self.capture, measure=lambda call: next(clock), norm_kernel=lambda norms, device: self.kernel
        )

    def kernel(self, x: Tensor, norm: nn.GroupNorm, *, silu: bool) -> Tensor:
        self.calls += 1
        return torchs_norm(x, norm, silu=silu) * (1 + 2**-12)

    def load(self, checkpoint: Checkpoint) -> LoadedModel:
        return load_checkpoint(
            checkpoint,
            CPU,
            torch.float32,
            pad_batch=PadBatch.SIZES,
            max_batch=2,
            networks=self.networks,
            choices=self.choices,
        )

    def runs_the_kernel(self, checkpoint: Checkpoint) -> bool:
        model = self.load(checkpoint)
        before = self.calls
        model.denoise(tiny_inputs(2))
        return self.calls > before


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return publish_tiny(ModelStore(tmp_path))


@torch.inference_mode()
def test_the_first_worker_measures_whole_batches_and_the_others_keep_to_its_choice(checkpoint: Checkpoint) -> None:
    choices = LocalChoices()
    first, second = Worker((2.0, 1.0), choices), Worker((1.0, 2.0), choices)
    assert first.runs_the_kernel(checkpoint)
    assert first.capture.recorded == [2, 2, 2, 1], "a full batch with each, and then what serves"
    assert second.runs_the_kernel(checkpoint)
    assert second.capture.recorded == [2, 1]
    assert torch.equal(first.load(checkpoint).denoise(tiny_inputs(2)), second.load(checkpoint).denoise(tiny_inputs(2)))


@torch.inference_mode()
def test_a_kernel_that_is_slower_or_cannot_be_recorded_is_not_taken(checkpoint: Checkpoint) -> None:
    assert not Worker((1.0, 2.0), LocalChoices()).runs_the_kernel(checkpoint)
    worker = Worker((), LocalChoices())
    refuses = iter([False, True])
    worker.capture.refuses = lambda size: next(refuses, False)
    assert not worker.runs_the_kernel(checkpoint)
    assert worker.capture.recorded == [2, 2, 1], "with torch's operations it is recorded"

"""What a step launches on a GPU beside the network's replay: each launch costs microseconds of the CPU.

Counted on the CPU in torch's own dispatcher, with the recording and the fused kernel stood in for.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.gpu_check.step import MOST_LAUNCHES, launches
from tests.worker.engine.harness import CPU, ask, filled_pool, trajectories
from tests.worker.networks.captures import RunAgain
from tests.worker.tiny_models import TINY
from worker.contract import SamplerName
from worker.diffusion.step_end import StepEnd, Stepped, end_step
from worker.diffusion.update import Clip
from worker.engine.readback import side_by_side
from worker.engine.runner import run_step
from worker.models.loaded_model import LoadedModel
from worker.models.loading import load_checkpoint
from worker.networks.cuda.networks import GpuNetworks
from worker.networks.padded import PadBatch
from worker.store.model_store import Checkpoint, ModelStore

ROWS = 4
ALLOCATIONS = {torch.ops.aten.empty.memory_format, torch.ops.aten.empty_like.default}


def is_launch(operation: Any) -> bool:
    """Whether the operation sets a GPU to work: neither an allocation nor another view of the same memory does."""
    return not operation.is_view and operation not in ALLOCATIONS


@dataclass
class Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types there
    """What a step launches, by name."""

    counted: list[str] = field(default_factory=list)
    inside: str | None = None
    """The one launch that stands for all operations now."""

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if self.inside is None and is_launch(func):
            self.counted.append(str(func))
        return func(*args, **(kwargs or {}))

    def one(self, name: str, run: Callable[[], Any]) -> Any:
        self.counted.append(name)
        self.inside = name
        try:
            return run()
        finally:
            self.inside = None


@dataclass
class CountedCapture(RunAgain):
    """Replays that count as one launch each."""

    launches: Launches = field(default_factory=Launches)

    def __call__(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        replay = super().__call__(run)
        return lambda: self.launches.one("replay", replay)


def fused(launches: Launches, end: StepEnd, clip: Clip) -> Stepped:
    """As `FusedEndStep`: one kernel, and what goes to the host side by side."""

    def run() -> Stepped:
        stepped = end_step(end, clip)
        pixels = stepped.pixels
        to_host = [] if pixels is None else [pixels.flatten()]
        memory = torch.cat([*to_host, stepped.finite.view(torch.uint8).flatten()])
        images = sum(map(len, to_host))
        finite = memory[images:].view(torch.bool).view(stepped.finite.shape)
        return replace(stepped, finite=finite, pixels=None if pixels is None else memory[:images].view(pixels.shape))

    stepped: Stepped = launches.one("fused end of the step", run)
    return stepped


def steps_of(store: ModelStore, request: dict[str, Any]) -> list[list[str]]:
    """The launches of each step of a batch that stays together."""
    launches = Launches()
    networks = GpuNetworks(CountedCapture(launches=launches))

    def load(checkpoint: Checkpoint) -> LoadedModel:
        model = load_checkpoint(
            checkpoint, CPU, torch.float32, pad_batch=PadBatch.SIZES, max_batch=ROWS, networks=networks
        )
        return replace(model, end_step=lambda end, clip: fused(launches, end, clip))

    model = filled_pool(store, load).acquire(TINY)
    assert model is not None
    rows = trajectories("job", ask(**request), model)
    steps = []
    while not rows[0].finished:
        launches.counted = ["numbers of the rows"]  # one copy, which a CPU does not need
        with launches:
            result = run_step(rows, ROWS)
            to_host = [result.finite] if result.pixels is None else [result.finite, result.pixels]
            copies = 1 if len(to_host) == 1 or side_by_side(to_host) is not None else len(to_host)
        launches.counted += ["copy to the host"] * copies
        result.commit()
        steps.append(launches.counted)
    return steps


@pytest.mark.parametrize(
    ("request_", "most"),
    [
        ({"batch": ROWS, "steps": 6, "sampler": SamplerName.DDIM}, 4),
        ({"batch": ROWS, "steps": 6, "sampler": SamplerName.DDPM, "class_label": 1}, 4),
        ({"batch": ROWS, "steps": 6, "sampler": SamplerName.DPMPP_2M}, 4),
        ({"batch": ROWS // 2, "steps": 6, "sampler": SamplerName.DDPM, "class_label": 1, "guidance_scale": 2.5}, 5),
    ],
)
def test_a_step_launches_little_beside_the_replay(tiny_store: ModelStore, request_: dict[str, Any], most: int) -> None:
    assert most <= MOST_LAUNCHES
    first, *others = steps_of(tiny_store, request_)
    assert len(others) == 5
    for step in others:  # also the last, whose pixels go to the host
        assert step.count("replay") == 1
        assert len(step) - 1 <= most, step
    assert first.count("replay") == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_launches_no_more_than_that() -> None:
    """By the driver's own calls."""
    findings = list(launches(torch.device("cuda")))
    assert [finding for finding in findings if finding.ok is False] == []
    assert sum(finding.ok is True for finding in findings) == 5

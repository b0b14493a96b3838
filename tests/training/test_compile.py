"""Training with torch.compile: the same run, by other code."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.training.tiny import quick
from training.data.digits import load_digits
from training.errors import TrainingError
from training.loop import Budget, Trainer
from training.network import Denoiser
from training.state import StateFolder
from training.transformer import build_transformer

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for processors with g++"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),  # of torch's compiler itself
]


@pytest.fixture(autouse=True)
def _nothing_compiled_stays() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def trainer(*, compiled: bool) -> Trainer:
    """By SGD: Adam makes large steps of what is rounding alone. A small Transformer is compiled soonest."""
    configuration = quick(batch=8, optimizer="sgd", learning_rate=0.05, decay="constant", compile=compiled)
    denoiser = Denoiser(build_transformer((1, 8, 8), 10, width=32, depth=1, heads=2, patch=4, seed=0))
    return Trainer(denoiser, load_digits(), configuration.noise_schedule(), configuration)


def weights(of: Trainer) -> torch.Tensor:
    """The network's and the average's."""
    parameters = (*of.denoiser.parameters(), *of.ema.network.parameters())
    return torch.cat([parameter.flatten() for parameter in parameters])


@pytest.mark.slow
def test_a_compiled_run_takes_the_steps_of_a_plain_one_and_its_state_is_the_same_kind(tmp_path: Path) -> None:
    plain, compiled, stopped = trainer(compiled=False), trainer(compiled=True), trainer(compiled=True)
    before = weights(plain).clone()
    for run in (plain, compiled):
        run.run(Budget(steps=3))
    torch.testing.assert_close(weights(compiled), weights(plain), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(weights(plain), before, rtol=1e-3, atol=1e-4)

    # Compiled or not is no part of a run's identity: each goes on from the state of the other.
    stopped.run(Budget(steps=2))
    folder = StateFolder(tmp_path / "state")
    folder.save(stopped.state({}))
    for again in (True, False):
        following, state = trainer(compiled=again), folder.load()
        assert state is not None
        following.restore(state)
        following.run(Budget(steps=3))
        if again:
            assert torch.equal(weights(following), weights(compiled))
        torch.testing.assert_close(weights(following), weights(plain), rtol=1e-4, atol=1e-6)


def test_without_a_compiler_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # what was compiled before needs no compiler
    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(TrainingError, match=r"torch\.compile can't compile the network: .*C\+\+ compiler.*--compile"):
        trainer(compiled=True).run(Budget(steps=1))

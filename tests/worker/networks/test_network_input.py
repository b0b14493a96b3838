"""One value for all that a network is given; what it declares is what padding, recordings and the probe go by."""

import pytest
import torch
from torch import Tensor

from tests.worker.engine.harness import CPU
from tests.worker.networks.captures import RunAgain
from worker.networks.cuda.graphed import GraphedDenoiser
from worker.networks.exactness import OneByOne, is_batch_invariant
from worker.networks.network_input import InputSpec, NamedInput, NetworkInput
from worker.networks.padded import PaddedDenoiser
from worker.networks.registry import ARCHITECTURES
from worker.networks.unet2d import CLASS_LABELS

# As a text-to-image network's: states of the text, a pooled vector and a whole number.
SPEC = InputSpec(
    (2, 4, 4),
    (
        NamedInput("encoder_hidden_states", (3, 5), torch.float32),
        NamedInput("text_embeds", (7,), torch.float32),
        NamedInput("level", (), torch.int64, values=3),
    ),
)


def sums(inputs: NetworkInput) -> Tensor:
    """A network that reads everything; each row by itself."""
    named = [value.flatten(start_dim=1) if value.dim() > 1 else value[:, None] for value in inputs.named.values()]
    total = torch.cat([inputs.t[:, None], *named], dim=1).to(torch.float32).cumsum(1)[:, -1]
    return inputs.x + total.view(-1, 1, 1, 1)


def other_rows(inputs: NetworkInput) -> Tensor:
    """A network whose rows depend on their neighbours' named inputs."""
    return sums(inputs) + inputs.named["text_embeds"].mean()


def test_rows_are_cut_out_and_put_together_with_all_their_inputs() -> None:
    inputs = SPEC.probe(7)
    assert [len(part) for part in inputs.split(3)] == [3, 3, 1]
    assert torch.equal(torch.cat([sums(part) for part in inputs.split(3)]), sums(inputs))
    assert torch.equal(sums(inputs[[4, 0]]), sums(inputs)[[4, 0]])
    filled = inputs.filled_up(9)
    assert len(filled) == 9
    assert {len(value) for value in (filled.x, filled.t, *filled.named.values())} == {9}
    assert torch.equal(sums(filled), torch.cat([sums(inputs), sums(inputs)[-1:], sums(inputs)[-1:]]))
    assert inputs.filled_up(7) is inputs


def test_padding_and_recorded_calls_carry_every_declared_input() -> None:
    for denoise in (PaddedDenoiser(sums, (2, 4)), GraphedDenoiser(sums, RunAgain(), (2, 4), SPEC, CPU)):
        for rows in (1, 3, 4, 6):
            inputs = SPEC.probe(rows)
            assert torch.equal(denoise(inputs), sums(inputs)), rows


def test_a_timestep_between_two_others_reaches_the_network() -> None:
    """Also through a recorded call, beside whole ones of either dtype."""
    inputs = SPEC.probe(3)
    graphed = GraphedDenoiser(sums, RunAgain(), (4,), SPEC, CPU)
    for t in (torch.tensor([961.0, 921.625, 0.5]), torch.tensor([961, 921, 0])):
        asked = NetworkInput(inputs.x, t, inputs.named)
        assert torch.equal(graphed(asked), sums(asked))
        assert torch.equal(PaddedDenoiser(sums, (4,))(asked), sums(asked))


def test_the_probe_sees_what_depends_on_a_named_input() -> None:
    assert is_batch_invariant(sums, SPEC, CPU)
    assert not is_batch_invariant(other_rows, SPEC, CPU)
    assert is_batch_invariant(OneByOne(other_rows), SPEC, CPU)


def test_probe_rows_differ_in_every_input_and_keep_to_what_is_declared() -> None:
    probe = SPEC.probe(8)
    for declared in SPEC.named:
        value = probe.named[declared.name]
        assert (value.shape[1:], value.dtype) == (declared.shape, declared.dtype)
        assert not torch.equal(value[0], value[1])
    assert set(probe.named["level"].tolist()) == {0, 1, 2}
    assert SPEC.zeros(2).named.keys() == probe.named.keys()
    assert SPEC.values_of("level") == 3
    assert SPEC.values_of("absent") == 0


@pytest.mark.parametrize("classes", [None, 5])
def test_a_u_net_declares_its_labels(classes: int | None) -> None:
    config = {"in_channels": 1, "out_channels": 1, "num_class_embeds": classes}
    spec = ARCHITECTURES["UNet2DModel"].input_spec(config, (1, 8, 8))
    assert [named.name for named in spec.named] == ([CLASS_LABELS] if classes else [])
    assert spec.values_of(CLASS_LABELS) == (classes or 0)

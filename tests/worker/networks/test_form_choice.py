"""The fastest of the forms that are exact, chosen by the first worker and kept by all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from tests.worker.networks.prepared import TINY_SPEC
from tests.worker.tiny_models import tiny_unet
from worker.networks.architecture import NetworkSource
from worker.networks.cpu import forms
from worker.networks.cpu.form_choice import (
    CLEARLY_FASTER,
    CLEARLY_SLOWER,
    COMPILED,
    MEASURING_S,
    choice_key,
    choice_of,
    prepare_in_chosen_form,
    rows_per_s,
)
from worker.networks.cpu.jit.machine_code import registers
from worker.networks.denoiser import Denoiser
from worker.networks.form import Form, PreparedNetwork
from worker.networks.network_input import InputSpec, NetworkInput
from worker.networks.shared_choices import GivenChoice, LocalChoices, SharedChoices
from worker.networks.unet2d import UNet2D, UNet2DDenoiser

KEY = "form of a tiny network"
BOTH = (torch.float32, torch.bfloat16)
kinds = count()
needs_kernels = pytest.mark.skipif(registers() is None, reason="no kernels are made for this processor")


@pytest.fixture(autouse=True)
def _bfloat16_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on most processors: on others it has one form, row by row, and there is nothing to choose."""
    monkeypatch.setattr(forms, "cpu_computes_bfloat16", lambda: True)


@dataclass(frozen=True)
class NotExactIn(UNet2D):
    """A U-Net whose rows depend on their batch in some dtypes."""

    dtypes: tuple[torch.dtype, ...]

    def denoiser(
        self, network: nn.Module, dtype: torch.dtype, memory_format: torch.memory_format = torch.channels_last
    ) -> UNet2DDenoiser:
        if dtype not in self.dtypes:
            return super().denoiser(network, dtype, memory_format)
        return DependentOnBatch(network, dtype, memory_format)


class DependentOnBatch(UNet2DDenoiser):
    def __call__(self, inputs: NetworkInput) -> Tensor:
        return super().__call__(inputs) + 0.01 * len(inputs)


class Measure:
    """Says how fast the two are, and whether it was asked."""

    def __init__(self, float32: float, bfloat16: float) -> None:
        self.speeds = {"float32": float32, "bfloat16": bfloat16}
        self.asked: list[tuple[list[str], int, int]] = []

    def __call__(
        self, networks: Mapping[str, Denoiser], spec: InputSpec, most_rows: int, threads: int
    ) -> Mapping[str, float]:
        self.asked.append((list(networks), most_rows, threads))
        return self.speeds


def prepare(choices: LocalChoices, measure: Measure, not_exact_in: tuple[torch.dtype, ...] = ()) -> PreparedNetwork:
    kind = f"kind {next(kinds)}"

    def source_in(dtype: torch.dtype) -> NetworkSource:
        def open_unet() -> nn.Module:
            unet: nn.Module = tiny_unet().eval().to(dtype)
            return unet

        return NetworkSource(NotExactIn(not_exact_in), open_unet, TINY_SPEC, dtype, f"{kind} {dtype}", "tiny")

    return prepare_in_chosen_form(source_in, BOTH, 1, 16, KEY, choices, measure)


@pytest.mark.parametrize(
    ("bfloat16", "chosen"), [(2 * CLEARLY_FASTER, "bfloat16"), (CLEARLY_FASTER - 0.01, "float32"), (0.2, "float32")]
)
def test_bfloat16_is_chosen_where_it_is_clearly_faster(bfloat16: float, chosen: str) -> None:
    measure, choices = Measure(1.0, bfloat16), LocalChoices()
    prepared = prepare(choices, measure)
    assert measure.asked == [(["float32", "bfloat16"], 16, 1)]
    assert (prepared.dtype, choices.get(KEY)) == (getattr(torch, chosen), chosen)
    assert {weight.dtype for weight in prepared.network.parameters()} == {prepared.dtype}


def test_a_choice_is_kept_though_the_speeds_change() -> None:
    """By a worker that starts again, and by another of the same queue."""
    choices = LocalChoices()
    assert prepare(choices, Measure(1.0, 2.0)).dtype is torch.bfloat16
    late = Measure(2.0, 1.0)
    assert prepare(choices, late).dtype is torch.bfloat16
    assert late.asked == []


def test_of_two_workers_that_choose_at_a_time_the_first_to_say_so_wins() -> None:
    class Overtaken(LocalChoices):
        def get(self, key: str) -> str | None:
            return None

    choices = Overtaken()
    choices.settle(KEY, "float32")
    assert prepare(choices, Measure(1.0, 2.0)).dtype is torch.float32


@pytest.mark.parametrize(
    ("not_exact_in", "chosen", "form"),
    [
        ((torch.bfloat16,), torch.float32, Form.FAST),
        ((torch.float32,), torch.bfloat16, Form.FAST),
        ((torch.float32, torch.bfloat16), torch.float32, Form.ONE_BY_ONE),
    ],
)
def test_only_what_is_exact_in_batches_is_measured(
    not_exact_in: tuple[torch.dtype, ...], chosen: torch.dtype, form: Form
) -> None:
    measure = Measure(1.0, 2.0)
    prepared = prepare(LocalChoices(), measure, not_exact_in)
    assert (prepared.dtype, prepared.form, measure.asked) == (chosen, form, [])


def test_a_choice_is_kept_where_it_is_not_exact_in_batches() -> None:
    """One by one gives the pixels that the other workers give."""
    choices = LocalChoices()
    choices.settle(KEY, "bfloat16")
    prepared = prepare(choices, Measure(1.0, 1.0), (torch.bfloat16,))
    assert (prepared.dtype, prepared.form) == (torch.bfloat16, Form.ONE_BY_ONE)


SPEC = InputSpec((3, 8, 8))
FLOAT32 = (torch.float32,)


def prepare_large(choices: SharedChoices, speeds: Mapping[str, float], dtypes: Sequence[torch.dtype] = FLOAT32) -> Form:
    """A network with a convolution that kernels are compiled for."""

    def open_unet(dtype: torch.dtype) -> nn.Module:
        unet: nn.Module = UNet2DModel(
            sample_size=8,
            layers_per_block=1,
            block_out_channels=(64,),
            norm_num_groups=16,
            down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",),
            add_attention=False,
        )
        return unet.eval().to(dtype)

    def source_in(dtype: torch.dtype) -> NetworkSource:
        return NetworkSource(UNet2D(), partial(open_unet, dtype), SPEC, dtype, f"a large network in {dtype}", "large")

    def measure(networks: Mapping[str, Denoiser], spec: InputSpec, most_rows: int, threads: int) -> Mapping[str, float]:
        assert list(networks) == list(speeds)
        return speeds

    return prepare_in_chosen_form(source_in, dtypes, 1, 16, KEY, choices, measure).form


@needs_kernels
@pytest.mark.parametrize(
    ("speed", "form"),
    [(2.0, Form.COMPILED), (CLEARLY_SLOWER + 0.01, Form.COMPILED), (CLEARLY_SLOWER - 0.01, Form.FAST)],
)
def test_compiled_kernels_are_chosen_unless_they_are_clearly_slower(speed: float, form: Form) -> None:
    choices = LocalChoices()
    assert prepare_large(choices, {COMPILED: speed, "float32": 1.0}) is form
    assert prepare_large(choices, {}) is form  # kept, and not measured again
    assert choices.get(KEY) == (COMPILED if form is Form.COMPILED else "float32")


@needs_kernels
def test_bfloat16_is_measured_against_the_compiled_kernels() -> None:
    speeds = {COMPILED: 2.0, "float32": 1.0, "bfloat16": 1.9}
    assert prepare_large(LocalChoices(), speeds, BOTH) is Form.COMPILED


@needs_kernels
@pytest.mark.parametrize(("dtype", "form"), [("float32", "compiled"), ("float32", "fast")])
def test_what_a_receipt_names_is_drawn_again(dtype: str, form: str) -> None:
    assert prepare_large(GivenChoice(choice_of(dtype, form)), {}) == form


def test_a_worker_without_the_chosen_kernels_does_not_draw_other_pixels() -> None:
    """The tiny network has no convolution that kernels are compiled for."""
    choices = LocalChoices()
    choices.settle(KEY, COMPILED)
    with pytest.raises(ValueError, match="no kernels"):
        prepare(choices, Measure(1.0, 1.0))


def test_an_unknown_choice_is_not_overruled() -> None:
    choices = LocalChoices()
    choices.settle(KEY, "float8")
    with pytest.raises(ValueError, match="'float8'"):
        prepare(choices, Measure(1.0, 1.0))


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Timed:
    """A network of a given speed that notes the batches that it was given."""

    clock: Clock
    seconds_per_row: float
    batches: list[int]

    def __call__(self, inputs: NetworkInput) -> Tensor:
        self.batches.append(len(inputs))
        self.clock.now += self.seconds_per_row * len(inputs)
        return inputs.x


@pytest.mark.parametrize(
    ("seconds_per_row", "rows", "most_s"), [(1e-3, 16, MEASURING_S), (0.02, 6, 1.2 * MEASURING_S), (10.0, 2, 50.0)]
)
def test_the_batch_that_serves_is_measured_or_what_the_time_allows(
    seconds_per_row: float, rows: int, most_s: float
) -> None:
    """A network of 10 s a row is measured with two rows, one for each thread: it could not serve either."""
    clock = Clock()
    slow, fast = Timed(clock, seconds_per_row, []), Timed(clock, seconds_per_row / 4, [])
    speeds = rows_per_s({"slow": slow, "fast": fast}, InputSpec((1, 8, 8)), 16, 2, clock)
    assert speeds["slow"] == pytest.approx(1 / seconds_per_row)
    assert speeds["fast"] == pytest.approx(4 / seconds_per_row)
    assert max(slow.batches) == max(fast.batches) >= rows
    assert clock.now <= most_s


def test_the_key_names_what_computes_and_nothing_of_the_weights() -> None:
    config = {"_class_name": "UNet2DModel", "_diffusers_version": "0.1", "block_out_channels": [16, 32]}
    key = choice_key(config, (1, 8, 8), BOTH)
    assert key == choice_key({**config, "_diffusers_version": "0.2", "_name_or_path": "x"}, (1, 8, 8), BOTH)
    others = [
        choice_key({**config, "block_out_channels": [16, 64]}, (1, 8, 8), BOTH),
        choice_key({**config, "_class_name": "Other"}, (1, 8, 8), BOTH),
        choice_key(config, (1, 16, 16), BOTH),
        choice_key(config, (1, 8, 8), BOTH[:1]),
    ]
    assert len({key, *others}) == 5
    assert f"torch {torch.__version__}" in key

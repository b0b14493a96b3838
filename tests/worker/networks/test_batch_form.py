"""Every size that serves is compared, at the first and the last place, and what exactness costs is weighed."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.worker.engine.harness import CPU
from worker.networks.batch_form import (
    BatchForm,
    ExactMode,
    InexactNetworkError,
    agreeing_sizes,
    choose_form,
    cost_of,
    most_exact,
    seconds_with,
)
from worker.networks.denoiser import Denoiser
from worker.networks.network_input import InputSpec, NetworkInput
from worker.networks.padded import PaddedDenoiser

SPEC = InputSpec((1, 2, 2))
SIZES = (1, 2, 4, 8, 16)
EVEN = {size: 1.0 + size / 8 for size in SIZES}


def rounding_by(kernel: Callable[[int, int], float]) -> Denoiser:
    """A network whose result for a row is moved by `kernel(size of the batch, place in it)`."""

    def denoise(inputs: NetworkInput) -> Tensor:
        moved = torch.tensor([kernel(len(inputs), place) for place in range(len(inputs))])
        return inputs.x + inputs.t.view(-1, 1, 1, 1) + moved.view(-1, 1, 1, 1)

    return denoise


def groups_of(kernel: Callable[[int, int], float], sizes: tuple[int, ...] = SIZES) -> list[tuple[int, ...]]:
    return agreeing_sizes(rounding_by(kernel), SPEC, sizes, CPU)


def test_a_network_that_rounds_another_way_in_its_largest_batch_alone_is_found_out() -> None:
    assert groups_of(lambda size, place: 1.0 if size == 16 else 0.0) == [(1, 2, 4, 8), (16,)]
    assert groups_of(lambda size, place: 0.0) == [SIZES]


def test_a_network_that_rounds_the_last_place_another_way_is_found_out() -> None:
    """As a kernel does whose last tile is not full."""
    assert groups_of(lambda size, place: 1.0 if size == 8 and place == 7 else 0.0) == [(1, 2, 4, 16)]
    assert groups_of(lambda size, place: float(place == size - 1), (2, 4)) == []


def test_what_is_not_a_number_equals_itself() -> None:
    assert groups_of(lambda size, place: torch.nan) == [SIZES]


@given(
    kernels=st.lists(st.integers(0, 2), min_size=len(SIZES), max_size=len(SIZES)),
    rows=st.integers(1, 40),
    mode=st.sampled_from([ExactMode.REQUIRE, ExactMode.PREFER]),
)
def test_a_form_that_is_called_exact_is(kernels: list[int], rows: int, mode: ExactMode) -> None:
    denoise = rounding_by(lambda size, place: float(kernels[SIZES.index(size)]))
    form = choose_form(mode, agreeing_sizes(denoise, SPEC, SIZES, CPU), SIZES, EVEN)
    assert form.exact or mode is ExactMode.PREFER
    if form.exact:
        inputs = SPEC.probe(rows)
        evaluate = PaddedDenoiser(denoise, form.sizes)
        assert torch.equal(evaluate(inputs)[-1:], evaluate(inputs[[-1]]))


def test_exactness_is_free_where_all_sizes_agree() -> None:
    for mode in ExactMode:
        assert choose_form(mode, [SIZES], SIZES, EVEN) == BatchForm(SIZES, exact=True, cost=0.0)


def test_exactness_is_preferred_up_to_its_price_and_required_at_any() -> None:
    groups = [(1, 2, 4), (8, 16)]
    cheap = dict.fromkeys(SIZES, 1.0) | {8: 1.15, 16: 1.2}
    dear = cheap | {8: 1.16}
    for seconds, preferred in ((cheap, True), (dear, False)):
        assert choose_form(ExactMode.PREFER, groups, SIZES, seconds).exact is preferred
        assert choose_form(ExactMode.REQUIRE, groups, SIZES, seconds).sizes == (8, 16)
        off = choose_form(ExactMode.OFF, groups, SIZES, seconds)
        assert (off.sizes, off.exact) == (SIZES, False)
    form = choose_form(ExactMode.PREFER, groups, SIZES, dear)
    assert form.sizes == SIZES
    assert form.cost == pytest.approx(0.16), "what it would cost is reported"


def test_a_network_that_is_exact_in_no_size_is_not_served_where_exactness_is_required() -> None:
    with pytest.raises(InexactNetworkError):
        choose_form(ExactMode.REQUIRE, [], SIZES, EVEN)
    assert choose_form(ExactMode.PREFER, [], SIZES, EVEN) == BatchForm(SIZES, exact=False, cost=None)


def test_which_sizes_are_taken_does_not_depend_on_a_clock() -> None:
    """Two workers of one queue draw the same pixels."""
    groups = [(1, 2), (4, 8), (16,)]
    chosen = {
        choose_form(ExactMode.REQUIRE, groups, SIZES, seconds).sizes
        for seconds in (EVEN, {size: float(size) for size in SIZES}, {size: 1 / size for size in SIZES})
    }
    assert len(chosen) == 1
    assert most_exact([(1,), (2, 4, 8, 16)], SIZES) == (2, 4, 8, 16)


def test_the_cost_is_that_of_the_batch_that_suffers_most() -> None:
    seconds = {1: 1.0, 2: 1.1, 4: 1.3, 8: 2.0, 16: 4.0}
    assert seconds_with((4,), 16, seconds) == pytest.approx(4 * 1.3)
    assert seconds_with((2, 4), 6, seconds) == pytest.approx(1.3 + 1.1)
    assert cost_of((4, 8, 16), SIZES, seconds) == pytest.approx(0.3)
    assert cost_of((4,), SIZES, seconds) == pytest.approx(4 * 1.3 / 4.0 - 1)

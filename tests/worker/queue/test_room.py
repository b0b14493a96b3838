"""How much a worker may claim, from what it holds: plain arithmetic, no server."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.worker.queue.test_held_jobs import held
from worker.contract import SamplingRequest
from worker.queue.held_job import HeldJob
from worker.queue.offer import Offer
from worker.queue.room import AHEAD, AHEAD_S, room_for, room_to_pass, seconds_until_free

COSTS = {"digits": 0.01, "clouds": 0.1}
OFFER = Offer({}, COSTS)


def job(steps: int, batch: int = 1, model: str = "digits") -> HeldJob:
    return replace(held(), request=SamplingRequest(model=model, seed=1, steps=steps, batch=batch))


def test_a_batch_with_free_rows_is_filled_and_only_short_jobs_follow() -> None:
    room = room_for([job(1000, batch=10)], OFFER, 16)
    assert room is not None
    assert (room.jobs, room.rows, room.ahead_s, room.holds_jobs) == (AHEAD, 6, AHEAD_S, True)


@pytest.mark.parametrize(("steps", "claims"), [(100, False), (7, False), (6, True), (1, True)])
def test_a_full_batch_is_followed_by_a_job_only_shortly_before_a_place_is_free(steps: int, claims: bool) -> None:
    """16 rows at 10 ms each: a step takes 0.16 s."""
    assert (room_for([job(steps, batch=16)], OFFER, 16) is not None) == claims


def test_while_a_cost_is_not_known_nothing_is_held_ahead() -> None:
    assert room_for([job(1, batch=16, model="new")], OFFER, 16) is None
    assert room_for([], OFFER, 16) is not None


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(1, 8), st.sampled_from(sorted(COSTS))), min_size=1, max_size=10),
    st.integers(1, 16),
)
def test_a_place_is_never_said_to_be_free_later_than_when_all_is_done(
    jobs: list[tuple[int, int, str]], max_batch: int
) -> None:
    """And at once when rows are free; one batch after the other is the slowest way to do the work."""
    holds = [job(steps, batch, model) for steps, batch, model in jobs]
    rows = sum(batch for _, batch, _ in jobs)
    seconds = seconds_until_free(holds, COSTS, max_batch)
    if rows < max_batch:
        assert seconds == 0
    else:
        slowest = sum(steps * math.ceil(batch / max_batch) * max_batch * COSTS[model] for steps, batch, model in jobs)
        assert 0 < seconds <= slowest + 1e-9


def test_only_jobs_shorter_than_what_fills_the_batch_may_pass() -> None:
    room = room_to_pass([job(40, batch=8), job(90, batch=8), job(500, batch=8)], OFFER, 16)
    assert room is not None
    assert (room.most_work, room.rows) == (89, 16)
    assert room_to_pass([job(1, batch=16)], OFFER, 16) is None

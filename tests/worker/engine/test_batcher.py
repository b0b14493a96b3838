"""The laws of the batcher, on a random life of joining, stepping and leaving."""

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from worker.engine.batcher import TURN, Batcher


@dataclass(eq=False)
class FakeRow:
    remaining_steps: int
    whole_cost: int = 1
    network: str = "a"
    joined_at: int = 0
    steps: int = 0
    """What it asked for; `ran` must end there."""
    ran: int = 0
    fast: bool = False
    """Runs the whole network in every third step only, and is then no company for its own kind."""
    guided_to: int | None = None
    """From this step on it costs half, rounded up; None: never."""

    @property
    def batch_key(self) -> str:
        return f"{self.network}, shallow" if self.fast and self.ran % 3 else self.network

    @property
    def cost(self) -> int:
        return self.whole_cost if self.guided_to is None or self.ran < self.guided_to else -(-self.whole_cost // 2)


def row(steps: int, cost: int = 1, batch_key: str = "a", joined_at: int = 0) -> FakeRow:
    return FakeRow(steps, cost, batch_key, joined_at, steps)


class BatcherLife(RuleBasedStateMachine):
    """Rows join, step, finish and are canceled in any order; the model beside the batcher is a plain list."""

    max_batch = 4
    ageing_rate = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.batcher: Batcher[FakeRow] = Batcher(self.max_batch, ageing_rate=self.ageing_rate)
        self.alive: list[FakeRow] = []
        self.gone: list[FakeRow] = []
        self.batches = 0
        self.passed: dict[str, int] = {}
        self.rivals: dict[str, set[str]] = {}

    @rule(
        steps=st.integers(1, 12),
        network_rows=st.integers(1, 2),
        network=st.sampled_from("ab"),
        area=st.sampled_from([1, 2, 5]),
        images=st.integers(1, 6),
        fast=st.booleans(),
        guided_to=st.none() | st.integers(0, 6),
    )
    def join(
        self,
        steps: int,
        network_rows: int,
        network: str,
        area: int,
        images: int,
        fast: bool,
        guided_to: int | None,
    ) -> None:
        """Images of one network may be of several sizes, larger ones more costly than a whole batch."""
        for _ in range(images):
            newcomer = row(steps, network_rows * area, f"{network}, {area}", self.batches)
            newcomer.fast, newcomer.guided_to = fast, guided_to
            self.alive.append(newcomer)
            self.batcher.add(newcomer)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        victim = self.alive.pop(data.draw(st.integers(0, len(self.alive) - 1)))
        self.batcher.remove(victim)
        self.gone.append(victim)

    @rule()
    def step(self) -> None:
        batch = self.batcher.choose()
        assert bool(batch) == bool(self.alive), "a batch is empty only when nobody waits"
        assert len({id(r) for r in batch}) == len(batch), "a row is in a batch once"
        assert all(r in self.alive for r in batch), "only rows that joined and have not left run"
        assert len({r.batch_key for r in batch}) <= 1, "one batch, one network and shape"
        assert sum(r.cost for r in batch) <= self.max_batch or len(batch) == 1
        self.check_bounded_wait(batch)
        self.check_turns(batch)
        self.check_no_room_is_wasted(batch)
        self.batches += 1 if batch else 0
        for r in batch:
            r.ran += 1
            r.remaining_steps -= 1
            if r.remaining_steps == 0:
                assert r.ran == r.steps, "every row gets exactly its steps"
                self.batcher.remove(r)
                self.alive.remove(r)
                self.gone.append(r)

    def check_bounded_wait(self, batch: list[FakeRow]) -> None:
        """Of a network the most urgent row runs, never one that came R / rate batches after one that waits."""
        if not batch:
            return
        first = batch[0]
        for waiting in self.alive:
            if waiting not in batch and waiting.batch_key == first.batch_key:
                assert first.joined_at < waiting.joined_at + waiting.remaining_steps / self.ageing_rate or (
                    first.joined_at == waiting.joined_at
                )

    def check_turns(self, batch: list[FakeRow]) -> None:
        """Each network that has rows runs soon; while none waits long, the most urgent row of all runs."""
        if not batch:
            return
        waiting = {r.batch_key for r in self.alive}
        most_urgent = min(r.remaining_steps + self.ageing_rate * r.joined_at for r in self.alive)
        if max(self.passed.get(batch_key, 0) for batch_key in waiting) < TURN:
            assert batch[0].remaining_steps + self.ageing_rate * batch[0].joined_at == most_urgent
        ran = batch[0].batch_key
        self.passed = {batch_key: self.passed.get(batch_key, 0) + 1 for batch_key in waiting - {ran}}
        for batch_key, count in self.passed.items():
            self.rivals[batch_key] = self.rivals.get(batch_key, set()) | (waiting - {batch_key})
            assert count < TURN + 1 + len(self.rivals[batch_key])
        for batch_key in set(self.rivals) - set(self.passed):
            del self.rivals[batch_key]

    def check_no_room_is_wasted(self, batch: list[FakeRow]) -> None:
        room = self.max_batch - sum(r.cost for r in batch)
        waiting = [r for r in self.alive if r not in batch and r.batch_key == batch[0].batch_key] if batch else []
        assert all(r.cost > room for r in waiting)

    @invariant()
    def the_batcher_holds_exactly_the_living(self) -> None:
        assert {id(r) for r in self.batcher} == {id(r) for r in self.alive}
        assert len(self.batcher) == len(self.alive)

    def teardown(self) -> None:
        """Nothing starves: left to itself the batcher serves everybody, in at most one batch per step owed."""
        for _ in range(sum(r.remaining_steps for r in self.alive)):
            self.step()
        assert not self.alive


BatcherLife.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBatcherLife = BatcherLife.TestCase


def test_the_shortest_remaining_work_goes_first() -> None:
    batcher: Batcher[FakeRow] = Batcher(2)
    long, short, shorter = row(100), row(10), row(5)
    for r in (long, short, shorter):
        batcher.add(r)
    assert batcher.choose() == [shorter, short]


@pytest.mark.parametrize("rate", [0.5, 1.0, 4.0])
def test_a_long_row_is_passed_over_for_at_most_its_stated_bound(rate: float) -> None:
    batcher: Batcher[FakeRow] = Batcher(1, ageing_rate=rate)
    long = row(40)
    batcher.add(long)
    bound = int(40 / rate)
    for waited in range(bound + 1):  # noqa: B007
        batcher.add(row(1))  # a stream of the shortest work there is
        (chosen,) = batcher.choose()
        if chosen is long:
            break
        batcher.remove(chosen)
    else:
        pytest.fail(f"the long row still waits after {bound} batches")
    assert waited >= 40 / rate - 2, "ageing is a bound on waiting, not first come first served"


def test_a_batch_key_keeps_its_share_beside_a_stream_of_short_work_on_another() -> None:
    batcher: Batcher[FakeRow] = Batcher(4)
    batcher.add(lonely := row(1000, batch_key="long"))
    ran = 0
    for _ in range(100):
        batcher.add(row(1, batch_key="short"))
        batch = batcher.choose()
        for r in batch:
            if r is lonely:
                ran += 1
            else:
                batcher.remove(r)
    assert ran == 100 // (TURN + 1)


def test_shallow_steps_and_whole_ones_of_a_network_do_not_starve_one_another() -> None:
    """Beside a stream of short work of either kind a long row of the other kind moves on at the same share."""
    for fast in (True, False):
        batcher: Batcher[FakeRow] = Batcher(4)
        batcher.add(lonely := row(1000))
        lonely.fast = not fast
        for _ in range(150):
            short = row(3)
            short.fast, short.ran = fast, 1 if fast else 0
            batcher.add(short)
            for r in batcher.choose():
                r.ran += r is lonely
                if r is not lonely:
                    batcher.remove(r)
        # A whole step of the long one has company of its own kind only where the stream is whole.
        assert lonely.ran >= 150 // (TURN + 1), fast


def test_large_images_keep_their_share_beside_a_stream_of_small_ones_of_the_same_network() -> None:
    batcher: Batcher[FakeRow] = Batcher(4)
    batcher.add(large := row(1000, cost=8, batch_key="net, 64x64"))
    ran = 0
    for _ in range(100):
        batcher.add(row(1, batch_key="net, 32x32"))
        batch = batcher.choose()
        ran += large in batch
        for r in batch:
            if r is not large:
                batcher.remove(r)
    assert ran == 100 // (TURN + 1)


def test_a_request_of_many_images_is_split_over_batches() -> None:
    batcher: Batcher[FakeRow] = Batcher(4)
    images = [row(3) for _ in range(10)]
    for r in images:
        batcher.add(r)
    assert batcher.choose() == images[:4]


def test_guided_rows_cost_two_and_one_larger_than_the_batch_runs_alone() -> None:
    batcher: Batcher[FakeRow] = Batcher(3)
    guided = [row(2, cost=2) for _ in range(2)]
    plain = row(9)
    for r in (*guided, plain):
        batcher.add(r)
    assert batcher.choose() == [guided[0], plain]
    tiny: Batcher[FakeRow] = Batcher(1)
    tiny.add(guided[0])
    tiny.add(plain)
    assert tiny.choose() == [guided[0]]


def test_halving_starts_from_what_was_tried_and_stops_at_one() -> None:
    batcher: Batcher[FakeRow] = Batcher(64)
    assert (batcher.halve(5), batcher.max_batch) == (True, 2)
    assert (batcher.halve(64), batcher.max_batch) == (True, 2), "a larger try does not make batches larger again"
    assert (batcher.halve(2), batcher.max_batch) == (True, 1)
    assert (batcher.halve(1), batcher.max_batch) == (False, 1)


@pytest.mark.parametrize(
    ("max_batch", "rate", "text"), [(0, 1.0, "max_batch >= 1, got 0"), (1, 0.0, "ageing_rate > 0")]
)
def test_nonsense_settings_are_refused(max_batch: int, rate: float, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Batcher(max_batch, ageing_rate=rate)


def test_joining_twice_is_refused() -> None:
    batcher: Batcher[FakeRow] = Batcher(1)
    batcher.add(r := row(1))
    with pytest.raises(ValueError, match="already"):
        batcher.add(r)

"""What is asked for at the same moment is one call; what goes wrong with one question is that one's alone."""

import asyncio
from collections.abc import Sequence

import pytest

from service.shared_calls import SharedCalls


class Unreadable(Exception):
    pass


class Squares:
    """Answers with squares; a negative number is unreadable, and 13 breaks the whole call."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.called = asyncio.Event()
        self.shared: SharedCalls[int, int] = SharedCalls(self._call, 3, "squares")

    async def _call(self, numbers: Sequence[int]) -> list[int | Exception]:
        self.calls.append(list(numbers))
        self.called.set()
        await asyncio.sleep(0)
        if 13 in numbers:
            raise ConnectionError("away")
        return [Unreadable(str(number)) if number < 0 else number**2 for number in numbers if number != 14]

    def ask(self, *numbers: int) -> list[int | BaseException]:
        """All at the same moment."""

        async def asked() -> list[int | BaseException]:
            return await asyncio.gather(*map(self.shared.ask, numbers), return_exceptions=True)

        return asyncio.run(asked())


def test_questions_of_one_moment_are_few_calls_answered_in_their_order() -> None:
    squares = Squares()
    assert squares.ask(5, 4, 3, 2) == [25, 16, 9, 4]
    assert squares.calls == [[5, 4, 3], [2]]
    assert squares.ask(1) == [1]
    assert squares.calls[2:] == [[1]]


def test_an_unreadable_answer_is_raised_to_the_one_that_asked() -> None:
    squares = Squares()

    async def asked() -> list[int]:
        others = [asyncio.create_task(squares.shared.ask(number)) for number in (2, 3)]
        with pytest.raises(Unreadable, match="-7"):
            await squares.shared.ask(-7)
        return [await other for other in others]

    assert asyncio.run(asked()) == [4, 9]
    assert [sorted(call) for call in squares.calls] == [[-7, 2, 3]]


@pytest.mark.parametrize(("bad", "error"), [(13, ConnectionError), (14, ValueError)], ids=["raises", "one too few"])
def test_a_call_that_fails_is_raised_to_all_of_it_and_to_none_of_the_next(bad: int, error: type[Exception]) -> None:
    *failed, next_one = Squares().ask(1, bad, 2, 3)
    assert [type(each) for each in failed] == [error] * 3
    assert next_one == 9


def test_who_asks_no_more_takes_no_answer_from_others() -> None:
    squares = Squares()

    async def one_leaves() -> int:
        leaving = asyncio.create_task(squares.shared.ask(5))
        staying = asyncio.create_task(squares.shared.ask(6))
        await squares.called.wait()
        leaving.cancel()
        return await staying

    assert asyncio.run(one_leaves()) == 36
    assert squares.calls == [[5, 6]]

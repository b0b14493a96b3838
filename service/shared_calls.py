"""Makes one call of Redis of all that is asked for at the same moment.

A call costs the gateway far more than what one more question adds to it, and where there are many clients, many ask at
once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class SharedCalls(Generic[Question, Answer]):
    """
    Args:
        call: answers several questions, in their order; what is an exception is raised to the one that asked.
        most: questions of one call.
        name: of its tasks.
    """

    def __init__(
        self, call: Callable[[Sequence[Question]], Awaitable[Sequence[Answer | Exception]]], most: int, name: str
    ) -> None:
        self._call = call
        self._most = most
        self._name = name
        self._asked: list[tuple[Question, asyncio.Future[Answer]]] = []
        self._calls: set[asyncio.Task[None]] = set()

    async def ask(self, question: Question) -> Answer:
        """Raises what the call raises."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        if not self._asked:
            # Runs when all that is ready now has run, and has asked.
            loop.call_soon(self._begin)
        self._asked.append((question, answer))
        return await answer

    def _begin(self) -> None:
        asked, self._asked = self._asked, []
        for first in range(0, len(asked), self._most):
            call = asyncio.create_task(self._settle(asked[first : first + self._most]), name=self._name)
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _settle(self, asked: Sequence[tuple[Question, "asyncio.Future[Answer]"]]) -> None:
        futures = [future for _, future in asked]
        try:
            answers = await self._call([question for question, _ in asked])
            answered: list[tuple[asyncio.Future[Answer], Answer | Exception]] = list(zip(futures, answers, strict=True))
        # Whatever it is, a defect too: nobody looks at this task, and who asked would wait for ever.
        except Exception as error:
            answered = [(future, error) for future in futures]
        for future, answer in answered:
            if future.done():  # its request was canceled
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

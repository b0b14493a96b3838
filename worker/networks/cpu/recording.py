"""Evaluations of one size recorded call by call: played again, they need neither the network's Python nor its choices.

A small network spends more time between its operations than in them. What a recording calls, and in which order, is
what the network did, so that its bits are the same; before it serves it is compared with the network. It computes in
one piece of memory, in which results take the place of those that nothing reads any more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from worker.networks.cpu.foreign_calls import Call, watched
from worker.networks.denoiser import Denoiser
from worker.networks.network_input import NetworkInput

MOST_BYTES = 2**27
"""Of all results of one evaluation: a larger one spends its time in its operations."""
ALIGNMENT = 64
"""Of a result in memory: a line of the cache."""
COMPOSITE = "CompositeImplicitAutograd"
WITHOUT_VALUES = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
"""Operations whose results have no values yet."""


class NotRecordable(Exception):
    """An evaluation that looks at a number, say, or takes too much memory."""


@dataclass(slots=True)
class _Result:
    """What an operation makes.

    Attributes:
        nbytes: of its memory.
        made, read: numbers of the operation and of the last one that reads or changes it.
        place: its first byte in the recording's memory.
    """

    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    nbytes: int
    made: int
    read: int
    place: int = 0


@dataclass(slots=True)
class Plan:
    """The operations of an evaluation by their numbers, and what they make."""

    operations: list[Any] = field(default_factory=list)
    results: dict[int, _Result] = field(default_factory=dict)
    """By the number of the operation."""


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees each operation of torch that is no composition of others. Views don't count: their memory is another's."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), COMPOSITE):
            with self:  # torch's own composition: `decompose` would prefer one in Python
                return func._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **named)
        return self.done(func, args, named)

    def done(self, func: Any, args: Sequence[Any], named: dict[str, Any]) -> Any:
        raise NotImplementedError


class _Planner(_Operations):  # type: ignore[no-untyped-call]
    """Notes what is made, and until when it is read."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.plan = Plan()
        self._bytes = 0
        self._by_memory: dict[int, _Result] = {}
        self._alive: list[Tensor] = []  # so that no memory is another's before the end

    def done(self, func: Any, args: Sequence[Any], named: dict[str, Any]) -> Any:
        given = _memories([args, *named.values()])
        self._read(given, len(self.plan.operations))
        result = func(*args, **named)
        if func._schema.is_mutable:
            self.plan.operations.append(func)
        elif isinstance(result, Tensor):
            if not _memories(result) & given:
                self._made(result, len(self.plan.operations))
                self.plan.operations.append(func)
        elif not isinstance(result, tuple | list) or not _memories(result) <= given:
            raise NotRecordable(f"{func} gives {type(result).__name__}")
        return result

    def planned(self, output: Tensor) -> Plan:
        """What was noted; the output is read after all of it."""
        self._read(_memories(output), len(self.plan.operations))
        return self.plan

    def foreign(self, call: Call, tensors: Sequence[Tensor | None]) -> None:
        number = len(self.plan.operations)
        self.plan.operations.append(None)
        self._read(_memories(tensors), number)
        call()

    def _made(self, result: Tensor, number: int) -> None:
        if result.layout is not torch.strided:
            raise NotRecordable(f"a result is {result.layout}")
        nbytes = result.untyped_storage().nbytes()
        self._bytes += nbytes
        if self._bytes > MOST_BYTES:
            raise NotRecordable(f"its results have more than {MOST_BYTES} bytes")
        made = _Result(result.dtype, result.shape, result.stride(), nbytes, number, number)
        self.plan.results[number] = self._by_memory[result.untyped_storage().data_ptr()] = made
        self._alive.append(result)

    def _read(self, memories: set[int], number: int) -> None:
        for memory in memories:
            if memory in self._by_memory:
                self._by_memory[memory].read = number


class _Placer(_Operations):  # type: ignore[no-untyped-call]
    """Does the same again with each result in its place, and keeps what it does."""

    def __init__(self, plan: Plan, memory: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self._plan, self._memory, self._number = plan, memory, 0

    def done(self, func: Any, args: Sequence[Any], named: dict[str, Any]) -> Any:
        if not self._is_next(func):
            result = func(*args, **named)
            if func._schema.is_mutable or not _memories(result) <= _memories([args, *named.values()]):
                raise NotRecordable(f"{func} was not done before")
            return result
        planned = self._plan.results.get(self._number)
        self._number += 1
        if planned is None:
            self.calls.append(lambda: func(*args, **named))
            return func(*args, **named)
        bytes_ = self._memory[planned.place : planned.place + planned.nbytes]
        result = bytes_.view(planned.dtype).as_strided(planned.shape, planned.stride)
        if func.overloadpacket.__name__ in WITHOUT_VALUES:
            return result
        into = _into(func)

        def call() -> object:
            return result.copy_(func(*args, **named)) if into is None else into(*args, **named, out=result)

        call()
        self.calls.append(call)
        return result

    def foreign(self, call: Call, tensors: Sequence[Tensor | None]) -> None:
        if not self._is_next(None):
            raise NotRecordable("a kernel was not called before")
        self._number += 1
        call()
        self.calls.append(call)

    def _is_next(self, func: Any) -> bool:
        return self._number < len(self._plan.operations) and self._plan.operations[self._number] is func


def _into(func: Any) -> Any | None:
    """The operation's form that writes into a tensor which is there and takes no other arguments; None if none does."""
    wanted = [argument.name for argument in func._schema.arguments]
    for name in ("out", f"{func._overloadname}_out"):
        overload = getattr(func.overloadpacket, name, None)
        if overload is not None and [a.name for a in overload._schema.arguments if a.name != "out"] == wanted:
            return overload
    return None


def _memories(values: object) -> set[int]:
    """Of the tensors among these."""
    if isinstance(values, Tensor):
        return {values.untyped_storage().data_ptr()} if values.layout is torch.strided and values.numel() else set()
    if isinstance(values, tuple | list):
        return set().union(*map(_memories, values))
    return set()


def _place(results: Sequence[_Result]) -> int:
    """Give each result, in the order in which they are made, the first place that is free while it is needed.

    Returns the bytes of all.
    """
    needed: list[_Result] = []  # by place
    end = 0
    for result in results:
        needed = [other for other in needed if other.read >= result.made]
        place, before = 0, 0
        for other in needed:
            if place + result.nbytes <= other.place:
                break
            place = max(place, -(-(other.place + other.nbytes) // ALIGNMENT) * ALIGNMENT)
            before += 1
        result.place = place
        needed.insert(before, result)
        end = max(end, place + result.nbytes)
    return end


@dataclass(frozen=True, eq=False, slots=True)
class Recording:
    """One evaluation, whose inputs and output have their places."""

    inputs: NetworkInput
    output: Tensor
    calls: Sequence[Call]
    nbytes: int
    """Of the memory that it computes in."""

    def __call__(self, inputs: NetworkInput) -> Tensor:
        self.inputs.copy_(inputs)
        for call in self.calls:
            call()
        return self.output.clone()


def noted(denoise: Denoiser, inputs: NetworkInput) -> tuple[Tensor, Plan]:
    """Evaluate on the calling thread: the output, and what was done. Raises NotRecordable, and torch's errors."""
    planner = _Planner()
    with planner, watched(planner.foreign):
        output = denoise(inputs)
    return output, planner.planned(output)


def recorded(denoise: Denoiser, inputs: NetworkInput, plan: Plan) -> Recording:
    """Evaluate again, in memory of its own: the recording's `output` is that of these inputs. Raises as `noted`."""
    own = _copy_of(inputs)
    memory = torch.empty(_place(list(plan.results.values())), dtype=torch.uint8)
    placer = _Placer(plan, memory)
    with placer, watched(placer.foreign):
        output = denoise(own)
    return Recording(own, output, placer.calls, len(memory))


def _copy_of(inputs: NetworkInput) -> NetworkInput:
    return NetworkInput(inputs.x.clone(), inputs.t.clone(), {name: v.clone() for name, v in inputs.named.items()})

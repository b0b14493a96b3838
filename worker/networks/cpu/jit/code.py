"""Writes kernels as LLVM's instructions: loops, and vectors of float32."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

F32, I32, I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
POINTER = ir.PointerType()
BYTES = 4
"""Of a float32."""
Value = Any
"""Of LLVM, as llvmlite has it."""


def new_function(name: str, pointers: int, numbers: int = 0) -> ir.Function:
    """In a module of its own; takes so many addresses, then so many whole numbers."""
    kind = ir.FunctionType(ir.VoidType(), [POINTER] * pointers + [I64] * numbers)
    return ir.Function(ir.Module(name), kind, name)


def team_kernel(kernel: ir.Function) -> ir.Function:
    """Calls the kernel, in its module, as one of OpenMP's threads.

    Args:
        kernel: takes the address of its arguments, its number in the team and the number of threads.
    """
    module = kernel.module
    number = ir.FunctionType(I32, [])
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER]), f"{kernel.name}_of_team")
    builder = ir.IRBuilder(function.append_basic_block())
    thread, threads = (
        builder.sext(builder.call(ir.Function(module, number, name), []), I64)
        for name in ("omp_get_thread_num", "omp_get_num_threads")
    )
    builder.call(kernel, [function.args[0], thread, threads])
    builder.ret_void()
    return function


class Code:
    """The body of a function, written from its beginning to its end.

    Args:
        lanes: float32 values in a vector.
    """

    def __init__(self, function: ir.Function, lanes: int) -> None:
        self.function = function
        self.lanes = lanes
        self.vector = ir.VectorType(F32, lanes)
        self.whole = ir.VectorType(I32, lanes)
        self.b = ir.IRBuilder(function.append_basic_block())

    def end(self) -> ir.Function:
        self.b.ret_void()
        return self.function

    def number(self, value: Value) -> Value:
        return ir.Constant(I64, value) if isinstance(value, int) else value

    def add(self, *values: Value) -> Value:
        total = self.number(values[0])
        for value in values[1:]:
            total = self.b.add(total, self.number(value))
        return total

    def mul(self, one: Value, other: Value) -> Value:
        return self.b.mul(self.number(one), self.number(other))

    def least(self, one: Value, other: Value) -> Value:
        return self.b.select(self.b.icmp_signed("<", one, other), one, other)

    def rounded_up(self, value: Value, step: int) -> Value:
        """The next multiple of `step`."""
        return self.mul(self.b.sdiv(self.add(value, step - 1), self.number(step)), step)

    def constant(self, value: float) -> Value:
        return ir.Constant(self.vector, [value] * self.lanes)

    def argument(self, given: Value, place: int, *, pointer: bool) -> Value:
        """Of an array of addresses and whole numbers."""
        address = self.b.gep(given, [self.number(place)], source_etype=I64)
        return self.b.load(address, typ=POINTER if pointer else I64)

    def is_given(self, pointer: Value) -> Value:
        return self.b.icmp_unsigned("!=", self.b.ptrtoint(pointer, I64), self.number(0))

    def at(self, base: Value, index: Value) -> Value:
        """Address of the float32 `index` from `base`."""
        return self.b.gep(base, [self.number(index)], source_etype=F32)

    def load(self, base: Value, index: Value = 0) -> Value:
        return self.b.load(self.at(base, index), typ=self.vector, align=BYTES)

    def store(self, value: Value, base: Value, index: Value = 0) -> None:
        self.b.store(value, self.at(base, index), align=BYTES)

    def store_all(self, values: Sequence[Value], base: Value, index: Value = 0) -> None:
        """Vectors side by side."""
        for number, value in enumerate(values):
            self.store(value, base, self.add(index, self.lanes * number))

    def load_one(self, base: Value, index: Value = 0) -> Value:
        return self.b.load(self.at(base, index), typ=F32, align=BYTES)

    def spread(self, value: Value) -> Value:
        """One float32 in all lanes."""
        first = self.b.insert_element(ir.Constant(self.vector, ir.Undefined), value, ir.Constant(I32, 0))
        return self.b.shuffle_vector(
            first, ir.Constant(self.vector, ir.Undefined), ir.Constant(self.whole, [0] * self.lanes)
        )

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        return self._intrinsic("fma", a, b, c)

    def sqrt(self, x: Value) -> Value:
        return self._intrinsic("sqrt", x)

    def largest(self, x: Value, y: Value) -> Value:
        """Of two numbers or two vectors, by lane: one instruction, which gives y where either is no number."""
        return self.b.select(self.b.fcmp_ordered(">", x, y), x, y)

    def largest_of_lanes(self, x: Value) -> Value:
        """In all lanes."""
        distance = self.lanes // 2
        while distance:
            others = ir.Constant(self.whole, [(lane + distance) % self.lanes for lane in range(self.lanes)])
            x = self.largest(x, self.b.shuffle_vector(x, ir.Constant(self.vector, ir.Undefined), others))
            distance //= 2
        return x

    def folded(self, x: Value, join: Callable[[Value, Value], Value]) -> Value:
        """All lanes of a vector joined into one number, from the first to the last."""
        numbers = [self.b.extract_element(x, ir.Constant(I32, lane)) for lane in range(self.lanes)]
        total = numbers[0]
        for number in numbers[1:]:
            total = join(total, number)
        return total

    def _intrinsic(self, name: str, *arguments: Value) -> Value:
        """LLVM's, of vectors, which llvmlite has no names for."""
        module, full_name = self.function.module, f"llvm.{name}.v{self.lanes}f32"
        known = module.globals.get(full_name)
        if known is None:
            known = ir.Function(module, ir.FunctionType(self.vector, [self.vector] * len(arguments)), full_name)
        return self.b.call(known, arguments)

    @contextmanager
    def loop(self, end: Value, begin: Value = 0, step: Value = 1) -> Iterator[Value]:
        """Runs what is written in the block with `begin`, `begin + step`, … below `end`."""
        before = self.b.block
        head, body, after = (self.function.append_basic_block() for _ in range(3))
        begin, end = self.number(begin), self.number(end)
        self.b.branch(head)
        self.b.position_at_end(head)
        index = self.b.phi(I64)
        index.add_incoming(begin, before)
        self.b.cbranch(self.b.icmp_signed("<", index, end), body, after)
        self.b.position_at_end(body)
        yield index
        index.add_incoming(self.b.add(index, self.number(step)), self.b.block)
        self.b.branch(head)
        self.b.position_at_end(after)

    @contextmanager
    def summing(
        self, end: Value, sums: Sequence[Value], step: int = 1
    ) -> Iterator[tuple[Value, list[Value], list[Value]]]:
        """A loop that carries values: gives the index, the values so far, and a list that takes the next ones; after
        the block the list holds the last ones."""
        before = self.b.block
        head, body, after = (self.function.append_basic_block() for _ in range(3))
        self.b.branch(head)
        self.b.position_at_end(head)
        index = self.b.phi(I64)
        index.add_incoming(self.number(0), before)
        carried = [self.b.phi(value.type) for value in sums]
        for phi, value in zip(carried, sums, strict=True):
            phi.add_incoming(value, before)
        self.b.cbranch(self.b.icmp_signed("<", index, self.number(end)), body, after)
        self.b.position_at_end(body)
        following: list[Value] = []
        yield index, carried, following
        for phi, value in zip(carried, following, strict=True):
            phi.add_incoming(value, self.b.block)
        index.add_incoming(self.b.add(index, self.number(step)), self.b.block)
        self.b.branch(head)
        self.b.position_at_end(after)
        following[:] = carried

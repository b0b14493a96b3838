"""Rows of numbers times a panel of weights, kept in registers: what the kernels' matrix products are made of."""

from collections.abc import Callable, Sequence

from worker.networks.cpu.jit.code import Code, Value
from worker.networks.cpu.jit.machine_code import Registers

PANEL_VECTORS = 2
"""Vectors of output channels that a product computes at a time."""

Keep = Callable[[Value, Sequence[Value]], None]
"""(row, the panel's channels in vectors) → writes code that keeps them."""


def panel_channels(registers: Registers) -> int:
    """Output channels that lie side by side in the weights, a panel."""
    return PANEL_VECTORS * registers.lanes


def write_rows(
    code: Code,
    registers: Registers,
    a: Value,
    weights: Value,
    count: Value,
    length: Value,
    keep: Keep,
    *,
    row_step: Value | None = None,
    weights_step: Value | None = None,
    vectors: int = PANEL_VECTORS,
) -> None:
    """a [R, L] times the panel [L, p]: each row's sums run from the first number to the last, in any number of rows.

    Args:
        row_step: floats from a row to the next; L if not given.
        weights_step: floats from a row of the panel to the next; p if not given.
        vectors: of the panel.
    """
    b = code.b
    row_step = length if row_step is None else row_step
    weights_step = code.number(vectors * code.lanes) if weights_step is None else weights_step
    begin: Value = 0
    # Enough sums at a time that none waits for the one before it, and no more than there are registers for.
    for rows in (8, 4, 1) if registers.count >= 32 or vectors == 1 else (4, 1):
        end = b.mul(b.sdiv(count, code.number(rows)), code.number(rows))
        with code.loop(end, begin, rows) as first:
            starts = [code.at(a, code.mul(code.add(first, row), row_step)) for row in range(rows)]
            sums = _write_block(code, starts, weights, weights_step, length, vectors)
            for row in range(rows):
                keep(code.add(first, row), sums[vectors * row : vectors * (row + 1)])
        begin = end


def _write_block(
    code: Code, starts: Sequence[Value], weights: Value, weights_step: Value, length: Value, vectors: int
) -> list[Value]:
    zeros = [code.constant(0.0)] * (len(starts) * vectors)
    with code.summing(length, zeros) as (place, sums, following):
        panel = code.mul(place, weights_step)
        columns = [code.load(weights, code.add(panel, code.lanes * j)) for j in range(vectors)]
        for row, start in enumerate(starts):
            value = code.spread(code.load_one(start, place))
            following += [code.fma(value, column, sums[vectors * row + j]) for j, column in enumerate(columns)]
    return following

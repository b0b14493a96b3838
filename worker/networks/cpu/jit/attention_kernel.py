"""Attention of all rows to all: scores, softmax and the mean of the values, a few queries at a time."""

from collections.abc import Sequence
from functools import reduce

from llvmlite import ir

from worker.networks.cpu.jit.code import BYTES, F32, I32, Code, Value, new_function
from worker.networks.cpu.jit.functions import power_of_two
from worker.networks.cpu.jit.machine_code import Registers
from worker.networks.cpu.jit.products import PANEL_VECTORS, panel_channels, write_rows

POINTERS = 5
ARGUMENTS = (
    *("q", "k", "v", "y", "scratch"),
    *("N", "L", "M", "heads", "d", "scale", "scratch_step"),
    *("q_image", "q_row", "k_image", "k_row", "v_image", "v_row"),
)
"""Of `attention_kernel`, in an array of 64 bits each.

q [N, L, heads, d], k and v [N, M, heads, d], whose images and rows are so many floats apart; y [N, L, heads, d] without
gaps; scale: the bits of the float32 that scores are multiplied by; scratch: `scratch_step` floats for each thread.
"""
ROWS, KEYS = 32, 128
"""Queries and keys whose scores are there at a time: they stay in the first cache."""
AT_ONCE = 2
"""Vectors of scores: they share the numbers of the polynomial, which don't stay in registers."""
NEVER = -1e30
"""Score of what is no key: its share is 0."""
LOG2_E = 1.44269504088896341


def scratch_floats(keys: int, head_channels: int, registers: Registers) -> int:
    """Of one thread, as `_Scratch` divides it."""
    panel, lanes = panel_channels(registers), registers.lanes
    padded, wide = (-(-count // step) * step for count, step in ((keys, panel), (head_channels, lanes)))
    return padded * head_channels + keys * wide + ROWS * (head_channels + KEYS + wide + 1 + lanes)


class _Scratch:
    """A thread's memory.

    Of a head: its keys in panels, and its values where they don't fill whole vectors. Of some queries: themselves,
    their scores, the sums of the values so far, the largest scores and the sums of the shares.
    """

    def __init__(self, code: Code, begin: Value, padded: Value, count: Value, d: Value, wide: Value) -> None:
        self.keys = begin
        self.values = code.at(self.keys, code.mul(padded, d))
        self.queries = code.at(self.values, code.mul(count, wide))
        self.scores = code.at(self.queries, code.mul(ROWS, d))
        self.sums = code.at(self.scores, code.number(ROWS * KEYS))
        self.largest = code.at(self.sums, code.mul(ROWS, wide))
        self.totals = code.at(self.largest, code.number(ROWS))


def attention_kernel(registers: Registers) -> ir.Function:
    """One thread's share. Takes the address of its `ARGUMENTS`, its number in the team and the number of threads.

    The scores of some keys at a time: their shares are of the largest score so far, and what was summed before shrinks
    when a larger one comes (Milakov and Gimelshein 2018; Dao et al. 2022, algorithm 1).
    """
    function = new_function("attention", 1, 2)
    code = Code(function, registers.lanes)
    b = code.b
    given, thread, threads = function.args
    a = {name: code.argument(given, place, pointer=place < POINTERS) for place, name in enumerate(ARGUMENTS)}
    length, count_of_keys, d, panel = a["L"], a["M"], a["d"], panel_channels(registers)
    padded, wide = code.rounded_up(count_of_keys, panel), code.rounded_up(d, code.lanes)
    scratch = _Scratch(code, code.at(a["scratch"], code.mul(thread, a["scratch_step"])), padded, count_of_keys, d, wide)
    scale = b.bitcast(b.trunc(a["scale"], I32), F32)
    blocks = b.sdiv(code.add(length, ROWS - 1), code.number(ROWS))
    units = code.mul(code.mul(a["N"], a["heads"]), blocks)
    first_unit, end_unit = (b.sdiv(code.mul(units, code.add(thread, more)), threads) for more in (0, 1))
    channels = code.mul(a["heads"], d)
    with code.loop(end_unit, first_unit) as unit:
        head_of_all, block = b.sdiv(unit, blocks), b.srem(unit, blocks)
        image, head = b.sdiv(head_of_all, a["heads"]), b.srem(head_of_all, a["heads"])
        queries, keys, values = (
            code.at(a[name], code.add(code.mul(image, a[f"{name}_image"]), code.mul(head, d)))
            for name in ("q", "k", "v")
        )
        begins = b.or_(b.icmp_signed("==", unit, first_unit), b.icmp_signed("==", block, code.number(0)))
        with b.if_then(begins):
            _write_keys(code, keys, scratch.keys, count_of_keys, padded, d, a["k_row"], panel)
            _write_values(code, values, scratch.values, count_of_keys, d, wide, a["v_row"])
        row = code.mul(block, ROWS)
        count = code.least(code.number(ROWS), b.sub(length, row))
        first_query = code.at(queries, code.mul(row, a["q_row"]))
        _write_beginning(code, scratch, first_query, count, d, wide, a["q_row"], scale)
        with code.loop(count_of_keys, step=KEYS) as first_key:
            some = code.least(code.number(KEYS), b.sub(count_of_keys, first_key))
            with code.loop(some, step=panel) as k:

                def keep_scores(row: Value, values: Sequence[Value], k: Value = k) -> None:
                    code.store_all(values, scratch.scores, code.add(code.mul(row, KEYS), k))

                panel_keys = code.at(scratch.keys, code.mul(code.add(first_key, k), d))
                write_rows(code, registers, scratch.queries, panel_keys, count, d, keep_scores)
            with code.loop(count) as r:
                _write_shares(code, scratch, r, some, wide)
            whole = b.mul(b.sdiv(wide, code.number(panel)), code.number(panel))
            for vectors, begin, end in ((PANEL_VECTORS, code.number(0), whole), (1, whole, wide)):
                with code.loop(end, begin, vectors * code.lanes) as c:

                    def add_sums(row: Value, values: Sequence[Value], c: Value = c) -> None:
                        for number, value in enumerate(values):
                            place = code.add(code.mul(row, wide), c, code.lanes * number)
                            code.store(b.fadd(code.load(scratch.sums, place), value), scratch.sums, place)

                    some_values = code.at(scratch.values, code.add(code.mul(first_key, wide), c))
                    write_rows(
                        *(code, registers, scratch.scores, some_values, count, some, add_sums),
                        row_step=code.number(KEYS),
                        weights_step=wide,
                        vectors=vectors,
                    )
        with code.loop(count) as r:
            place = code.add(code.mul(code.add(code.mul(image, length), row, r), channels), code.mul(head, d))
            _write_mean(code, scratch, r, code.at(a["y"], place), d, wide)
    return code.end()


def _write_beginning(
    code: Code, scratch: _Scratch, source: Value, count: Value, d: Value, wide: Value, step: Value, scale: Value
) -> None:
    """Queries in a scale in which a share is 2^score, and sums of nothing."""
    b = code.b
    factor = b.fmul(scale, ir.Constant(F32, LOG2_E))
    with code.loop(count) as r:
        from_, to = code.at(source, code.mul(r, step)), code.at(scratch.queries, code.mul(r, d))
        vectors = b.mul(b.sdiv(d, code.number(code.lanes)), code.number(code.lanes))
        with code.loop(vectors, step=code.lanes) as c:
            code.store(b.fmul(code.load(from_, c), code.spread(factor)), to, c)
        with code.loop(d, vectors) as c:
            b.store(b.fmul(code.load_one(from_, c), factor), code.at(to, c), align=BYTES)
        sums = code.at(scratch.sums, code.mul(r, wide))
        with code.loop(wide, step=code.lanes) as c:
            code.store(code.constant(0.0), sums, c)
        b.store(ir.Constant(F32, NEVER), code.at(scratch.largest, r), align=BYTES)
        code.store(code.constant(0.0), scratch.totals, code.mul(r, code.lanes))


def _write_shares(code: Code, scratch: _Scratch, r: Value, some: Value, wide: Value) -> None:
    """Scores to shares, in the row and in the rest of its last vectors; what was summed before shrinks."""
    b = code.b
    row = code.at(scratch.scores, code.mul(r, KEYS))
    step = AT_ONCE * code.lanes
    places = [code.lanes * vector for vector in range(AT_ONCE)]
    with code.loop(code.rounded_up(some, step), some) as place:
        b.store(ir.Constant(F32, NEVER), code.at(row, place), align=BYTES)
    before = code.spread(code.load_one(scratch.largest, r))
    with code.summing(some, [before] * AT_ONCE, step) as (place, so_far, following):
        for more, value in zip(places, so_far, strict=True):
            following.append(code.largest(value, code.load(row, code.add(place, more))))
    largest = code.largest_of_lanes(reduce(code.largest, following))
    b.store(b.extract_element(largest, ir.Constant(I32, 0)), code.at(scratch.largest, r), align=BYTES)
    with code.summing(some, [code.constant(0.0)] * AT_ONCE, step) as (place, totals, following):
        for more, total in zip(places, totals, strict=True):
            share = power_of_two(code, b.fsub(code.load(row, code.add(place, more)), largest))
            code.store(share, row, code.add(place, more))
            following.append(b.fadd(total, share))
    shrunk = power_of_two(code, b.fsub(before, largest))
    place = code.mul(r, code.lanes)
    code.store(code.fma(code.load(scratch.totals, place), shrunk, reduce(b.fadd, following)), scratch.totals, place)
    sums = code.at(scratch.sums, code.mul(r, wide))
    with code.loop(wide, step=code.lanes) as c:
        code.store(b.fmul(code.load(sums, c), shrunk), sums, c)


def _write_mean(code: Code, scratch: _Scratch, r: Value, to: Value, d: Value, wide: Value) -> None:
    b = code.b
    total = code.folded(code.load(scratch.totals, code.mul(r, code.lanes)), b.fadd)
    share = b.fdiv(ir.Constant(F32, 1.0), total)
    sums = code.at(scratch.sums, code.mul(r, wide))
    vectors = b.mul(b.sdiv(d, code.number(code.lanes)), code.number(code.lanes))
    with code.loop(vectors, step=code.lanes) as c:
        code.store(b.fmul(code.load(sums, c), code.spread(share)), to, c)
    with code.loop(d, vectors) as c:
        b.store(b.fmul(code.load_one(sums, c), share), code.at(to, c), align=BYTES)


def _write_keys(
    code: Code, source: Value, keys: Value, count: Value, padded: Value, d: Value, step: Value, panel: int
) -> None:
    """[M, d] → [M' / p, d, p], M' being M filled up to whole panels with zeros."""
    b = code.b
    with code.loop(padded) as row:
        lane = b.srem(row, code.number(panel))
        to = code.at(keys, code.add(code.mul(b.sub(row, lane), d), lane))
        from_ = code.at(source, code.mul(row, step))
        with b.if_else(b.icmp_signed("<", row, count)) as (there, beyond):
            with there, code.loop(d) as c:
                b.store(code.load_one(from_, c), code.at(to, code.mul(c, panel)), align=BYTES)
            with beyond, code.loop(d) as c:
                b.store(ir.Constant(F32, 0.0), code.at(to, code.mul(c, panel)), align=BYTES)


def _write_values(code: Code, source: Value, values: Value, count: Value, d: Value, wide: Value, step: Value) -> None:
    """[M, d] → [M, d'], d' being d filled up to whole vectors with zeros."""
    b = code.b
    vectors = b.mul(b.sdiv(d, code.number(code.lanes)), code.number(code.lanes))
    with code.loop(count) as row:
        from_, to = code.at(source, code.mul(row, step)), code.at(values, code.mul(row, wide))
        with code.loop(vectors, step=code.lanes) as c:
            code.store(code.load(from_, c), to, c)
        with code.loop(wide, vectors, code.lanes) as c:
            code.store(code.constant(0.0), to, c)
        with code.loop(d, vectors) as c:
            b.store(code.load_one(from_, c), code.at(to, c), align=BYTES)

"""Attention of every pixel of an image to all: scores, softmax and the mean of the values, a few rows at a time."""

from llvmlite import ir

from worker.networks.cpu.jit.code import BYTES, F32, I32, Code, Value, new_function
from worker.networks.cpu.jit.machine_code import Registers
from worker.networks.cpu.jit.products import PANEL_VECTORS, panel_channels, write_rows

POINTERS = 3
ARGUMENTS = ("qkv", "y", "scratch", "N", "L", "heads", "d", "scale", "scratch_step")
"""Of `attention_kernel`, in an array of 64 bits each.

qkv [N, L, 3, heads, d], y [N, L, heads, d]; L and d multiples of a vector; scale: the bits of the float32 that scores
are multiplied by; scratch: `scratch_step` floats for each thread.
"""
ROWS = 32
"""Queries whose scores are there at a time."""


def scratch_floats(length: int, head_channels: int, registers: Registers) -> int:
    """Of one thread: the keys in panels, and the scores of `ROWS` queries."""
    panel = panel_channels(registers)
    padded = -(-length // panel) * panel
    return padded * (head_channels + ROWS)


def attention_kernel(registers: Registers) -> ir.Function:
    """One thread's share. Takes the address of its `ARGUMENTS`, its number in the team and the number of threads."""
    function = new_function("attention", 1, 2)
    code = Code(function, registers.lanes)
    b = code.b
    given, thread, threads = function.args
    a = {name: code.argument(given, place, pointer=place < POINTERS) for place, name in enumerate(ARGUMENTS)}
    length, d, panel = a["L"], a["d"], panel_channels(registers)
    padded = code.mul(b.sdiv(code.add(length, panel - 1), code.number(panel)), panel)
    keys = code.at(a["scratch"], code.mul(thread, a["scratch_step"]))
    scores = code.at(keys, code.mul(padded, d))
    scale = code.spread(b.bitcast(b.trunc(a["scale"], I32), F32))
    blocks = b.sdiv(code.add(length, ROWS - 1), code.number(ROWS))
    units = code.mul(code.mul(a["N"], a["heads"]), blocks)
    first_unit, end_unit = (b.sdiv(code.mul(units, code.add(thread, more)), threads) for more in (0, 1))
    channels = code.mul(a["heads"], d)
    step = code.mul(channels, 3)
    with code.loop(end_unit, first_unit) as unit:
        head_of_all, block = b.sdiv(unit, blocks), b.srem(unit, blocks)
        image, head = b.sdiv(head_of_all, a["heads"]), b.srem(head_of_all, a["heads"])
        queries = code.at(a["qkv"], code.add(code.mul(code.mul(image, length), step), code.mul(head, d)))
        begins = b.or_(b.icmp_signed("==", unit, first_unit), b.icmp_signed("==", block, code.number(0)))
        with b.if_then(begins):
            _write_keys(code, code.at(queries, channels), keys, length, padded, d, step, panel)
        row = code.mul(block, ROWS)
        count = code.least(code.number(ROWS), b.sub(length, row))
        with code.loop(padded, step=panel) as k:

            def keep_score(row: Value, lane: int, value: Value, k: Value = k) -> None:
                code.store(b.fmul(value, scale), scores, code.add(code.mul(row, padded), k, lane))

            panel_keys = code.at(keys, code.mul(k, d))
            write_rows(
                code, registers, code.at(queries, code.mul(row, step)), panel_keys, count, d, keep_score, row_step=step
            )
        with code.loop(count) as r:
            _write_softmax(code, code.at(scores, code.mul(r, padded)), length)
        values = code.at(queries, code.mul(channels, 2))
        out = code.at(a["y"], code.add(code.mul(code.add(code.mul(image, length), row), channels), code.mul(head, d)))
        whole = b.mul(b.sdiv(d, code.number(panel)), code.number(panel))
        for vectors, begin, end in ((PANEL_VECTORS, code.number(0), whole), (1, whole, d)):
            with code.loop(end, begin, vectors * code.lanes) as c:

                def keep_mean(row: Value, lane: int, value: Value, c: Value = c) -> None:
                    code.store(value, out, code.add(code.mul(row, channels), c, lane))

                write_rows(
                    *(code, registers, scores, code.at(values, c), count, length, keep_mean),
                    row_step=padded,
                    weights_step=step,
                    vectors=vectors,
                )
    return code.end()


def _write_keys(
    code: Code, source: Value, keys: Value, length: Value, padded: Value, d: Value, step: Value, panel: int
) -> None:
    """[L, d] → [L' / p, d, p], L' being L filled up to whole panels with zeros."""
    b = code.b
    with code.loop(padded) as row:
        lane = b.srem(row, code.number(panel))
        to = code.at(keys, code.add(code.mul(b.sub(row, lane), d), lane))
        from_ = code.at(source, code.mul(row, step))
        with b.if_else(b.icmp_signed("<", row, length)) as (there, beyond):
            with there, code.loop(d) as c:
                b.store(code.load_one(from_, c), code.at(to, code.mul(c, panel)), align=BYTES)
            with beyond, code.loop(d) as c:
                b.store(ir.Constant(F32, 0.0), code.at(to, code.mul(c, panel)), align=BYTES)


def _write_softmax(code: Code, row: Value, length: Value) -> None:
    """In place."""
    b = code.b
    with code.summing(length, [code.load(row)], code.lanes) as (place, (so_far,), following):
        following.append(code.largest(so_far, code.load(row, place)))
    largest = code.spread(code.folded(following[0], code.largest))
    with code.summing(length, [code.constant(0.0)], code.lanes) as (place, (total,), following):
        below = b.fsub(code.load(row, place), largest)
        # `exp` takes what is no number for a large one; it must stay none.
        power = code.fma(below, code.constant(0.0), code.exp(below))
        code.store(power, row, place)
        following.append(b.fadd(total, power))
    share = code.spread(b.fdiv(ir.Constant(F32, 1.0), code.folded(following[0], b.fadd)))
    with code.loop(length, step=code.lanes) as place:
        code.store(b.fmul(code.load(row, place), share), row, place)

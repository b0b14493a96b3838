"""Group norm, and the SiLU after it, of channels_last images: two passes for the sums, one that writes."""

from llvmlite import ir

from worker.networks.cpu.jit.code import F32, I64, Code, Value, new_function
from worker.networks.cpu.jit.functions import silu as silu_of

SUMS = 4
"""Pixels summed side by side."""


def norm_kernel(lanes: int, *, silu: bool) -> ir.Function:
    """x [N, P, C], y [N, P, C], norm [2 C + 1] as `packed_norm` has it, scratch [3 C]; N, P, C, groups."""
    function = new_function("norm", 4, 4)
    code = Code(function, lanes)
    x, y, norm, scratch, N, pixels, channels, groups = function.args
    image = code.mul(pixels, channels)
    with code.loop(N) as n:
        start = code.mul(n, image)
        x_n, y_n = code.at(x, start), code.at(y, start)
        write_coefficients(code, x_n, norm, scratch, pixels, channels, groups)
        offsets = code.at(scratch, channels)
        with code.loop(pixels) as p:
            row = code.mul(p, channels)
            with code.loop(channels, step=lanes) as c:
                place = code.add(row, c)
                code.store(normed(code, code.load(x_n, place), scratch, offsets, c, silu=silu), y_n, place)
    return code.end()


def normed(code: Code, x: Value, scales: Value, offsets: Value, channel: Value, *, silu: bool) -> Value:
    """A vector of one pixel's channels."""
    y = code.fma(x, code.load(scales, channel), code.load(offsets, channel))
    return silu_of(code, y) if silu else y


def write_coefficients(
    code: Code, x: Value, norm: Value, scratch: Value, pixels: Value, channels: Value, groups: Value
) -> None:
    """Of one image: leaves each channel's scale in scratch[: C] and its offset in scratch[C : 2 C]."""
    b = code.b
    group_channels = b.sdiv(channels, groups)
    count = b.sitofp(code.mul(group_channels, pixels), F32)
    eps = code.load_one(norm, code.mul(channels, 2))
    means, sums = code.at(scratch, channels), code.at(scratch, code.mul(channels, 2))
    with code.loop(channels, step=code.lanes) as c:
        code.store(_sum(code, x, c, pixels, channels, None), sums, c)
    _of_groups(code, sums, means, groups, group_channels, count)
    with code.loop(channels, step=code.lanes) as c:
        code.store(_sum(code, x, c, pixels, channels, code.load(means, c)), sums, c)
    _of_groups(code, sums, scratch, groups, group_channels, count)
    eps = code.spread(eps)
    one = code.constant(1.0)
    with code.loop(channels, step=code.lanes) as c:
        deviation = code.sqrt(b.fadd(code.load(scratch, c), eps))
        scale = b.fmul(code.load(norm, c), b.fdiv(one, deviation))
        bias = code.load(norm, code.add(channels, c))
        offset = code.fma(b.fneg(code.load(means, c)), scale, bias)
        code.store(scale, scratch, c)
        code.store(offset, means, c)


def _sum(code: Code, x: Value, channel: Value, pixels: Value, channels: Value, mean: Value | None) -> Value:
    """Over the pixels, of a vector of channels: of the values, or of the squares of their distance from `mean`."""
    b = code.b
    zero = code.constant(0.0)

    def added(total: Value, pixel: Value) -> Value:
        value = code.load(x, code.add(code.mul(pixel, channels), channel))
        if mean is None:
            return b.fadd(total, value)
        distance = b.fsub(value, mean)
        return code.fma(distance, distance, total)

    whole = b.mul(b.sdiv(pixels, ir.Constant(I64, SUMS)), ir.Constant(I64, SUMS))
    with code.summing(whole, [zero] * SUMS, SUMS) as (p, totals, following):
        following += [added(total, code.add(p, k)) for k, total in enumerate(totals)]
    total = b.fadd(b.fadd(following[0], following[1]), b.fadd(following[2], following[3]))
    rest = b.sub(pixels, whole)
    with code.summing(rest, [total]) as (p, (so_far,), last):
        last.append(added(so_far, code.add(whole, p)))
    return last[0]


def _of_groups(code: Code, sums: Value, out: Value, groups: Value, group_channels: Value, count: Value) -> None:
    """Each channel gets its group's sum by the count."""
    b = code.b
    with code.loop(groups) as g:
        first = code.mul(g, group_channels)
        with code.summing(group_channels, [ir.Constant(F32, 0.0)]) as (c, (total,), following):
            following.append(b.fadd(total, code.load_one(sums, code.add(first, c))))
        mean = b.fdiv(following[0], count)
        with code.loop(group_channels) as c:
            b.store(mean, code.at(out, code.add(first, c)), align=4)

"""Winograd's F(4x4, 3x3) in one function: norm and SiLU, tiles to 36 numbers, products, tiles of the output, sums.

The mathematics is that of `worker.networks.cpu.winograd`. An image's sums are in one order whatever else is computed
with it: each product of 16 numbers or more adds over the channels from the first to the last.
"""

from collections.abc import Sequence

from llvmlite import ir

from worker.networks.cpu.jit.code import Code, Value, new_function
from worker.networks.cpu.jit.machine_code import Registers
from worker.networks.cpu.jit.norm_kernel import normed, write_coefficients
from worker.networks.cpu.jit.products import panel_channels, write_rows
from worker.networks.cpu.winograd import FAR, NEAR, TILE

SIDE = TILE + 2
"""Of a tile of the input."""
NUMBERS = SIDE**2
"""Of a tile."""

ARGUMENTS = (
    "x", "y", "added", "norm", "weights", "bias", "scratch",
    "N", "H", "W", "C", "K", "groups", "bias_step", "tiles", "images_at_once", "rows_at_once", "scratch_step",
)  # fmt: skip
"""Of `winograd_kernel`, in an array of 64 bits each.

x [N, H, W, C], y [N, H, W, K]; added like y, or 0; norm as `packed_norm` has it, or 0; weights [36, K / p, C, p]; bias
[N or 1, K], with `bias_step` floats from an image's to the next; scratch, `scratch_step` floats for each thread; H and
W multiples of 4; tiles: most in scratch, no fewer than `images_at_once` images have in `rows_at_once` rows of tiles.
"""


def scratch_floats(height: int, width: int, channels: int, out_channels: int, tiles: int, lanes: int) -> int:
    """Of one thread."""
    return (
        3 * channels + (height + 2) * (width + 2) * channels + NUMBERS * (tiles * (channels + out_channels) + 2 * lanes)
    )


def winograd_kernel(registers: Registers) -> ir.Function:
    """One thread's share of a convolution: the rows of tiles of each image are divided among a team's threads.

    Takes the address of its `ARGUMENTS`, its number in the team and the number of threads.
    """
    function = new_function("winograd", 1, 2)
    lanes = registers.lanes
    code = Code(function, lanes)
    b = code.b
    given, thread, threads = function.args
    values = {name: code.argument(given, place, pointer=place < 7) for place, name in enumerate(ARGUMENTS)}
    x, y, added, packed_norm, weights, bias, scratch = (values[name] for name in ARGUMENTS[:7])
    (
        N,
        height,
        width,
        channels,
        out_channels,
        groups,
        bias_step,
        capacity,
        images_at_once,
        rows_at_once,
        scratch_step,
    ) = (values[name] for name in ARGUMENTS[7:])
    scratch = code.at(scratch, code.mul(thread, scratch_step))
    rows, columns = b.sdiv(height, code.number(TILE)), b.sdiv(width, code.number(TILE))
    first_row = b.sdiv(code.mul(rows, thread), threads)
    end_row = b.sdiv(code.mul(rows, code.add(thread, 1)), threads)
    image_in, image_out = code.mul(code.mul(height, width), channels), code.mul(code.mul(height, width), out_channels)
    padded_row = code.mul(code.add(width, 2), channels)
    padded = code.at(scratch, code.mul(channels, 3))
    plane_in, plane_out = (
        code.add(code.mul(capacity, channels), lanes),
        code.add(code.mul(capacity, out_channels), lanes),
    )
    v = code.at(padded, code.mul(code.add(height, 2), padded_row))
    m = code.at(v, code.mul(plane_in, NUMBERS))
    has_norm, has_added = code.is_given(packed_norm), code.is_given(added)
    with code.loop(N, step=images_at_once) as first:
        images = code.least(images_at_once, b.sub(N, first))
        with code.loop(end_row, first_row, rows_at_once) as top:
            band = code.least(rows_at_once, b.sub(end_row, top))
            tiles = code.mul(band, columns)
            with code.loop(images) as i:
                x_n = code.at(x, code.mul(code.add(first, i), image_in))
                with b.if_then(b.icmp_signed("==", top, first_row)), b.if_else(has_norm) as (with_norm, plain):
                    shape = (first_row, end_row, height, width, channels)
                    with with_norm:
                        pixels = code.mul(height, width)
                        write_coefficients(code, x_n, packed_norm, scratch, pixels, channels, groups)
                        _write_padded(code, x_n, padded, scratch, *shape)
                    with plain:
                        _write_padded(code, x_n, padded, None, *shape)
                t = code.mul(i, tiles)
                with code.loop(band) as r, code.loop(columns) as s:
                    corner_row = code.mul(code.mul(code.add(top, r), TILE), padded_row)
                    corner = code.at(padded, code.add(corner_row, code.mul(code.mul(s, TILE), channels)))
                    tile = code.add(t, code.mul(r, columns), s)
                    _write_input_tile(
                        code, corner, code.at(v, code.mul(tile, channels)), padded_row, channels, plane_in
                    )
            with code.loop(NUMBERS) as k:
                planes = code.at(v, code.mul(k, plane_in)), code.at(m, code.mul(k, plane_out))
                u = code.at(weights, code.mul(k, code.mul(channels, out_channels)))
                _write_plane(code, registers, *planes, u, code.mul(images, tiles), channels, out_channels)
            with code.loop(images) as i:
                n = code.add(first, i)
                bias_n = code.at(bias, code.mul(n, bias_step))
                t = code.mul(i, tiles)
                with code.loop(band) as r, code.loop(columns) as s:
                    pixel = code.add(code.mul(code.mul(code.add(top, r), TILE), width), code.mul(s, TILE))
                    place = code.add(code.mul(n, image_out), code.mul(pixel, out_channels))
                    tile = code.at(m, code.mul(code.add(t, code.mul(r, columns), s), out_channels))
                    to, more = code.at(y, place), code.at(added, place)
                    with b.if_else(has_added) as (with_more, without):
                        with with_more:
                            _write_output_tile(
                                code, tile, to, more, bias_n, code.mul(width, out_channels), out_channels, plane_out
                            )
                        with without:
                            _write_output_tile(
                                code, tile, to, None, bias_n, code.mul(width, out_channels), out_channels, plane_out
                            )
    return code.end()


def _write_padded(
    code: Code,
    x: Value,
    padded: Value,
    coefficients: Value | None,
    first: Value,
    end: Value,
    height: Value,
    width: Value,
    channels: Value,
) -> None:
    """One image with a border of zeros: what the rows of tiles from `first` to `end` need; normed if it has a norm."""
    b = code.b
    row = code.mul(code.add(width, 2), channels)
    zero = code.constant(0.0)
    with code.loop(code.add(code.mul(end, TILE), 2), code.mul(first, TILE)) as line:
        begin = code.mul(line, row)
        border = b.or_(b.icmp_signed("==", line, code.number(0)), b.icmp_signed(">", line, height))
        with b.if_else(border) as (outside, inside):
            with outside, code.loop(row, step=code.lanes) as c:
                code.store(zero, padded, code.add(begin, c))
            with inside:
                right = code.add(begin, code.mul(code.add(width, 1), channels))
                with code.loop(channels, step=code.lanes) as c:
                    code.store(zero, padded, code.add(begin, c))
                    code.store(zero, padded, code.add(right, c))
                to = code.at(padded, code.add(begin, channels))
                from_ = code.at(x, code.mul(code.add(line, -1), code.mul(width, channels)))
                with code.loop(width) as w:
                    pixel = code.mul(w, channels)
                    with code.loop(channels, step=code.lanes) as c:
                        place = code.add(pixel, c)
                        value = code.load(from_, place)
                        if coefficients is not None:
                            offsets = code.at(coefficients, channels)
                            value = normed(code, value, coefficients, offsets, c, silu=True)
                        code.store(value, to, place)


def _write_input_tile(code: Code, padded: Value, v: Value, row: Value, channels: Value, plane: Value) -> None:
    """B^T d B of one tile of the padded image, to one row of each of the 36 planes."""
    lines = [code.at(padded, code.mul(row, i)) for i in range(SIDE)]
    pixels = [[code.at(line, code.mul(channels, j)) for line in lines] for j in range(SIDE)]
    planes = [code.at(v, code.mul(plane, k)) for k in range(NUMBERS)]
    with code.loop(channels, step=code.lanes) as c:
        columns = [_input_side(code, [code.load(pixel, c) for pixel in column]) for column in pixels]
        for i in range(SIDE):
            for j, value in enumerate(_input_side(code, [column[i] for column in columns])):
                code.store(value, planes[SIDE * i + j], c)


def _input_side(code: Code, d: Sequence[Value]) -> list[Value]:
    """B^T d."""
    aa, bb = NEAR * NEAR, FAR * FAR
    both, either, minus_aa, minus_bb = map(code.constant, (aa * bb, -(aa + bb), -aa, -bb))
    sides: list[Value] = []
    for point, minus_other in ((NEAR, minus_bb), (FAR, minus_aa)):
        even, odd = code.fma(minus_other, d[2], d[4]), code.fma(minus_other, d[1], d[3])
        sides += [code.fma(code.constant(each), odd, even) for each in (point, -point)]
    return [
        code.fma(both, d[0], code.fma(either, d[2], d[4])),
        *sides,
        code.fma(both, d[1], code.fma(either, d[3], d[5])),
    ]


def _write_plane(
    code: Code,
    registers: Registers,
    v: Value,
    m: Value,
    weights: Value,
    count: Value,
    channels: Value,
    out_channels: Value,
) -> None:
    """m [R, K] = v [R, C] times weights [K / p, C, p]."""
    with code.loop(out_channels, step=panel_channels(registers)) as k:

        def keep(row: Value, values: Sequence[Value]) -> None:
            code.store_all(values, m, code.add(code.mul(row, out_channels), k))

        write_rows(code, registers, v, code.at(weights, code.mul(k, channels)), count, channels, keep)


def _write_output_tile(
    code: Code, m: Value, y: Value, added: Value | None, bias: Value, row: Value, out_channels: Value, plane: Value
) -> None:
    """A^T m A of one tile's 36 numbers, with the bias and what is added."""
    planes = [code.at(m, code.mul(plane, number)) for number in range(NUMBERS)]
    places = [code.add(code.mul(row, i), code.mul(out_channels, j)) for i in range(TILE) for j in range(TILE)]
    with code.loop(out_channels, step=code.lanes) as k:
        columns = [_output_side(code, [code.load(planes[SIDE * i + j], k) for i in range(SIDE)]) for j in range(SIDE)]
        more = code.load(bias, k)
        for i in range(TILE):
            for j, value in enumerate(_output_side(code, [column[i] for column in columns])):
                total = code.b.fadd(value, more)
                if added is not None:
                    total = code.b.fadd(total, code.load(code.at(added, places[TILE * i + j]), k))
                code.store(total, code.at(y, places[TILE * i + j]), k)


def _output_side(code: Code, m: Sequence[Value]) -> list[Value]:
    """A^T m."""
    b = code.b
    s1, s2, s3, s4 = b.fadd(m[1], m[2]), b.fsub(m[1], m[2]), b.fadd(m[3], m[4]), b.fsub(m[3], m[4])

    def power(exponent: int, near: Value, far: Value) -> Value:
        return code.fma(code.constant(FAR**exponent), far, b.fmul(code.constant(NEAR**exponent), near))

    return [
        b.fadd(b.fadd(m[0], s1), s3),
        power(1, s2, s4),
        power(2, s1, s3),
        b.fadd(power(3, s2, s4), m[5]),
    ]

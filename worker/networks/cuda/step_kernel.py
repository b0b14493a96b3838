"""What follows the network in a step, as one kernel: guidance, noise, the update rule, finiteness and pixels.

It gives the bits of `worker.diffusion`, operation by operation: nothing is contracted into fused multiply-adds (the
launcher says so to Triton), and sums are taken in the written order. It is launched once for all rows; each program
makes `4 · blocks` values of one row.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from worker.diffusion.noise import STEP_STREAM
from worker.diffusion.step_end import RowColumn
from worker.diffusion.update import Column

STREAM = tl.constexpr(STEP_STREAM)
SEED, STEP = tl.constexpr(RowColumn.SEED.value), tl.constexpr(RowColumn.STEP.value)
LEG = tl.constexpr(RowColumn.LEG.value)
OUTPUT, UNCONDITIONAL = tl.constexpr(RowColumn.OUTPUT.value), tl.constexpr(RowColumn.UNCONDITIONAL.value)
IMAGE, ROW_COLUMNS = tl.constexpr(RowColumn.IMAGE.value), tl.constexpr(len(RowColumn))
X_0_FROM_X_T, X_0_FROM_OUTPUT = tl.constexpr(Column.X_0_FROM_X_T.value), tl.constexpr(Column.X_0_FROM_OUTPUT.value)
X_T, X_0, X_0_PREVIOUS = (
    tl.constexpr(Column.X_T.value),
    tl.constexpr(Column.X_0.value),
    tl.constexpr(Column.X_0_PREVIOUS.value),
)
OUTPUT_1, OUTPUT_2, OUTPUT_3 = (
    tl.constexpr(Column.OUTPUT_1.value),
    tl.constexpr(Column.OUTPUT_2.value),
    tl.constexpr(Column.OUTPUT_3.value),
)
MODEL_OUTPUT, Z, COLUMNS = tl.constexpr(Column.OUTPUT.value), tl.constexpr(Column.Z.value), tl.constexpr(len(Column))
HALF_WORD = tl.constexpr(2**32)
SQRT_HALF = tl.constexpr(0.5**0.5)
LN_2 = tl.constexpr(0.6931471805599453)
TURN = tl.constexpr(2 * 3.141592653589793 / 2**32)
TO_WHOLE = tl.constexpr(1.5 * 2.0**52)
"""Added to a float64 of less than 2^51 and taken away again it leaves the nearest whole number, halves to even."""


@triton.jit
def _philox(c0, c1, c2, c3, k0, k1):
    """`philox4x32_10`, on uint32."""
    for _ in tl.static_range(10):
        a, b = c0, c2
        c0 = tl.umulhi(b, 0xCD9E8D57) ^ c1 ^ k0
        c2 = tl.umulhi(a, 0xD2511F53) ^ c3 ^ k1
        c1 = b * 0xCD9E8D57
        c3 = a * 0xD2511F53
        k0 = k0 + 0x9E3779B9
        k1 = k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def _log(u):
    """ln u, as in `box_muller`; u is at least 2^-33, a normal number."""
    bits = u.to(tl.int64, bitcast=True)
    exponent = (bits >> 52) - 1022
    mantissa = ((bits & 0x000FFFFFFFFFFFFF) | 0x3FE0000000000000).to(tl.float64, bitcast=True)
    small = mantissa < tl.full([], SQRT_HALF, tl.float64)
    m = tl.where(small, 2.0 * mantissa, mantissa)
    e = exponent.to(tl.float64) - small.to(tl.float64)
    y = (m - 1.0) / (m + 1.0)
    y_squared = y * y
    series = tl.zeros_like(y) + tl.full([], 1 / 21, tl.float64)
    for i in tl.static_range(10):
        series = series * y_squared + tl.full([], 1 / (2 * (9 - i) + 1), tl.float64)
    return e * tl.full([], LN_2, tl.float64) + 2.0 * y * series


@triton.jit
def _cos_sin(word):
    """cos and sin of 2 pi word / 2^32, as in `box_muller`."""
    w = word.to(tl.int64)
    quarter = (w + 536870912) >> 30
    angle = (w - (quarter << 30)).to(tl.float64) * tl.full([], TURN, tl.float64)
    square = angle * angle
    cosine = tl.zeros_like(angle) + 1.0
    sine = tl.zeros_like(angle) + 1.0
    for i in tl.static_range(8):
        cosine = 1.0 - cosine * square / tl.full([], (16 - 2 * i) * (15 - 2 * i), tl.float64)
        sine = 1.0 - sine * square / tl.full([], (16 - 2 * i) * (17 - 2 * i), tl.float64)
    sine = sine * angle
    odd = (quarter & 1) == 1
    turned_cosine = tl.where(odd, -sine, cosine)
    turned_sine = tl.where(odd, cosine, sine)
    half = (quarter & 2) == 2
    return tl.where(half, -turned_cosine, turned_cosine), tl.where(half, -turned_sine, turned_sine)


@triton.jit
def _normals(radius_word, angle_word):
    u = (radius_word.to(tl.int64).to(tl.float64) + 0.5) / tl.full([], HALF_WORD, tl.float64)
    r = tl.sqrt(-2.0 * _log(u))
    cosine, sine = _cos_sin(angle_word)
    return (r * cosine).to(tl.float32), (r * sine).to(tl.float32)


@triton.jit
def _noise(seed, draw, leg, block):
    """Of these blocks of four, one after the other: [4 · blocks] float32."""
    zero = tl.zeros_like(block).to(tl.uint32)
    low, high = (seed & 0xFFFFFFFF).to(tl.uint32), ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    w0, w1, w2, w3 = _philox(
        block.to(tl.uint32), zero + draw.to(tl.uint32), zero + STREAM, zero + leg.to(tl.uint32), zero + low, zero + high
    )
    n0, n1 = _normals(w0, w1)
    n2, n3 = _normals(w2, w3)
    return tl.interleave(tl.interleave(n0, n2), tl.interleave(n1, n3))


# One variant for all shapes and wherever a step's numbers lie: a variant is compiled when it is first launched, which
# would hold up a step for seconds.
@triton.jit(
    do_not_specialize=["values", "plane"],
    do_not_specialize_on_alignment=["coefficients", "row_numbers", "guidance_scales", "finite"],
)
def finish_step(
    x_t,
    output,
    x_0_previous,
    output_1,
    output_2,
    output_3,
    coefficients,
    row_numbers,
    guidance_scales,
    x_next_out,
    x_0_out,
    output_out,
    finite,
    pixels,
    values,
    plane,
    clip_range,
    history: tl.constexpr,
    multistep: tl.constexpr,
    clip: tl.constexpr,
    blocks: tl.constexpr,
):
    """One step of each row.

    Args:
        x_t, x_0_previous, x_next_out, x_0_out: [N, values] float32; x_0_previous is read with history alone.
        output_1, output_2, output_3, output_out: [N, values] float32, earlier outputs and the guided one; read and
            written with multistep alone.
        output: [Q, values] float32, the network's.
        coefficients: [N, 10] float32, in the order of `Column`.
        row_numbers: [N, 6] int64, by `RowColumn`.
        guidance_scales: [N] float32, w of classifier-free guidance.
        finite: [N, programs of a row] uint8.
        pixels: [images, plane, channels] uint8.
        plane: pixels of an image.
    """
    row, part = tl.program_id(0), tl.program_id(1)
    block = part * blocks + tl.arange(0, blocks)
    e = part * (4 * blocks) + tl.arange(0, 4 * blocks)
    inside = e < values
    at = row.to(tl.int64) * values + e
    own = row_numbers + row * ROW_COLUMNS
    weights = coefficients + row * COLUMNS

    x = tl.load(x_t + at, mask=inside, other=0.0)
    m = tl.load(output + tl.load(own + OUTPUT) * values + e, mask=inside, other=0.0)
    unconditional = tl.load(own + UNCONDITIONAL)
    if unconditional >= 0:
        u = tl.load(output + unconditional * values + e, mask=inside, other=0.0)
        m = u + tl.load(guidance_scales + row) * (m - u)

    x_0 = tl.load(weights + X_0_FROM_X_T) * x + tl.load(weights + X_0_FROM_OUTPUT) * m
    if clip:  # not-a-number stays
        x_0 = tl.where(x_0 > clip_range, clip_range, x_0)
        x_0 = tl.where(x_0 < -clip_range, -clip_range, x_0)
    x_next = tl.load(weights + X_T) * x + tl.load(weights + X_0) * x_0 + tl.load(weights + MODEL_OUTPUT) * m
    if history:
        c = tl.load(weights + X_0_PREVIOUS)
        if c != 0:
            x_next = x_next + c * tl.load(x_0_previous + at, mask=inside, other=0.0)
    if multistep:
        tl.store(output_out + at, m, mask=inside)
        d_1, d_2, d_3 = tl.load(weights + OUTPUT_1), tl.load(weights + OUTPUT_2), tl.load(weights + OUTPUT_3)
        if d_1 != 0:
            x_next = x_next + d_1 * tl.load(output_1 + at, mask=inside, other=0.0)
        if d_2 != 0:
            x_next = x_next + d_2 * tl.load(output_2 + at, mask=inside, other=0.0)
        if d_3 != 0:
            x_next = x_next + d_3 * tl.load(output_3 + at, mask=inside, other=0.0)
    s = tl.load(weights + Z)
    if s != 0:
        x_next = x_next + s * _noise(tl.load(own + SEED), tl.load(own + STEP), tl.load(own + LEG), block)
    tl.store(x_next_out + at, x_next, mask=inside)
    tl.store(x_0_out + at, x_0, mask=inside)

    # x - x is 0 for a number, and not a number for what is none or infinite.
    is_number = (x_next - x_next == 0.0) | (e >= values)
    tl.store(finite + row * tl.num_programs(1) + part, tl.min(is_number.to(tl.int32), axis=0).to(tl.uint8))

    image = tl.load(own + IMAGE)
    if image >= 0:
        levels = (x_next.to(tl.float64) + 1.0) * 127.5
        levels = tl.where(levels > 0.0, tl.where(levels < 255.0, levels, 255.0), 0.0)
        levels = (levels + tl.full([], TO_WHOLE, tl.float64)) - tl.full([], TO_WHOLE, tl.float64)
        channels = values // plane
        there = image * values + (e % plane) * channels + e // plane
        tl.store(pixels + there, levels.to(tl.int32).to(tl.uint8), mask=inside)

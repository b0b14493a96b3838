"""A group norm of channels_last images in one kernel, with the SiLU that follows: read and written where they lie.

One program makes a group of one image, so that a row has the same bits in every batch. Sums are in float32, of the
mean first and then of the squares of what is left.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl


# One variant for all numbers of pixels: a variant is compiled when it is first launched.
@triton.jit(do_not_specialize=["pixels", "eps"], do_not_specialize_on_alignment=["weight", "bias"])
def group_norm(
    x,
    y,
    weight,
    bias,
    pixels,
    eps,
    channels: tl.constexpr,
    groups: tl.constexpr,
    silu: tl.constexpr,
    block_pixels: tl.constexpr,
    block_channels: tl.constexpr,
):
    """One group of one image.

    Args:
        x, y: [N, pixels, channels].
        weight, bias: [channels].
        block_pixels, block_channels: of the values that are read at once; powers of two, all channels of the group.
    """
    program = tl.program_id(0)
    image, group = program // groups, program % groups
    width: tl.constexpr = channels // groups
    c = tl.arange(0, block_channels)
    p = tl.arange(0, block_pixels)
    own = c < width
    corner = image.to(tl.int64) * pixels * channels + group * width
    inside_block = p[:, None] * channels + c[None, :]
    count = (pixels * width).to(tl.float32)

    sums = tl.zeros([block_pixels, block_channels], tl.float32)
    for start in range(0, pixels, block_pixels):
        there = (start + p < pixels)[:, None] & own[None, :]
        at = corner + (start * channels + inside_block)
        sums += tl.load(x + at, mask=there, other=0.0).to(tl.float32)
    mean = tl.sum(tl.sum(sums, axis=1), axis=0) / count

    squares = tl.zeros([block_pixels, block_channels], tl.float32)
    for start in range(0, pixels, block_pixels):
        there = (start + p < pixels)[:, None] & own[None, :]
        at = corner + (start * channels + inside_block)
        left = tl.where(there, tl.load(x + at, mask=there, other=0.0).to(tl.float32) - mean, 0.0)
        squares += left * left
    variance = tl.sum(tl.sum(squares, axis=1), axis=0) / count
    scale = 1.0 / tl.sqrt(variance + eps)

    w = tl.load(weight + group * width + c, mask=own, other=0.0).to(tl.float32)
    b = tl.load(bias + group * width + c, mask=own, other=0.0).to(tl.float32)
    for start in range(0, pixels, block_pixels):
        there = (start + p < pixels)[:, None] & own[None, :]
        at = corner + (start * channels + inside_block)
        normed = (tl.load(x + at, mask=there, other=0.0).to(tl.float32) - mean) * scale
        normed = normed * w[None, :] + b[None, :]
        if silu:
            normed = normed / (1.0 + tl.exp(-normed))
        tl.store(y + at, normed.to(y.dtype.element_ty), mask=there)

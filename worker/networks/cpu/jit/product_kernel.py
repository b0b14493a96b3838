"""Linear layers, and convolutions of any kernel: each pixel's patch as a row of a matrix product."""

from collections.abc import Sequence

from llvmlite import ir

from worker.networks.cpu.jit.code import BYTES, F32, Code, Value, new_function
from worker.networks.cpu.jit.functions import gelu
from worker.networks.cpu.jit.machine_code import Registers
from worker.networks.cpu.jit.products import PANEL_VECTORS, Keep, panel_channels, write_rows

POINTERS = 6
ARGUMENTS = (
    "x", "y", "added", "weights", "bias", "scratch",
    "N", "H", "W", "C", "K", "kernel", "stride", "padding", "out_height", "out_width", "bias_step",
    "rows_at_once", "scratch_step", "teams_of_panels", "length",
)  # fmt: skip
"""Of `product_kernel`, in an array of 64 bits each.

x [N, H, W, C], y [N, H', W', K]; added like y, or 0; weights [K / p, L, p]; bias [N or 1, K], with `bias_step` floats
from an image's to the next; scratch: patches of `rows_at_once` pixels, `scratch_step` floats for each thread, or 0
where a pixel is its own patch; K a multiple of a panel; threads: `teams_of_panels` share the output channels of one
part of the pixels; L, the length of a patch: kernel * kernel * C.

Gated, y has K / 2 channels, nothing is added, and the two vectors of each panel are values and what gates them.
"""


def product_kernel(registers: Registers, *, gated: bool = False) -> ir.Function:
    """One thread's share. Takes the address of its `ARGUMENTS`, its number in the team and the number of threads.

    Args:
        gated: y = values * gelu(gates), as in Shazeer 2020.
    """
    function = new_function("gated_product" if gated else "product", 1, 2)
    code = Code(function, registers.lanes)
    b = code.b
    given, thread, threads = function.args
    a = {name: code.argument(given, place, pointer=place < POINTERS) for place, name in enumerate(ARGUMENTS)}
    patches = code.at(a["scratch"], code.mul(thread, a["scratch_step"]))
    gathers, has_added = code.is_given(a["scratch"]), code.is_given(a["added"])
    part, of_panels = b.sdiv(thread, a["teams_of_panels"]), b.srem(thread, a["teams_of_panels"])
    parts = b.sdiv(threads, a["teams_of_panels"])
    # Where each image has a bias of its own, no block of rows reaches into the next one.
    pixels = code.mul(a["out_height"], a["out_width"])
    own_bias = b.icmp_signed("!=", a["bias_step"], code.number(0))
    images = b.select(own_bias, a["N"], code.number(1))
    rows = b.select(own_bias, pixels, code.mul(a["N"], pixels))
    blocks = b.sdiv(code.add(rows, a["rows_at_once"], -1), a["rows_at_once"])
    units = code.mul(images, blocks)
    panel = panel_channels(registers)
    panels = b.sdiv(a["K"], code.number(panel))
    first_k = code.mul(b.sdiv(code.mul(panels, of_panels), a["teams_of_panels"]), panel)
    end_k = code.mul(b.sdiv(code.mul(panels, code.add(of_panels, 1)), a["teams_of_panels"]), panel)
    end = b.sdiv(code.mul(units, code.add(part, 1)), parts)
    with code.loop(end, b.sdiv(code.mul(units, part), parts)) as unit:
        image = b.sdiv(unit, blocks)
        row = code.mul(b.srem(unit, blocks), a["rows_at_once"])
        count = code.least(a["rows_at_once"], b.sub(rows, row))
        first = code.add(code.mul(image, rows), row)
        with b.if_then(gathers), code.loop(count) as r:
            _write_patch(code, a, code.at(patches, code.mul(r, a["length"])), code.add(first, r), pixels)
        from_ = b.select(gathers, patches, code.at(a["x"], code.mul(first, a["length"])))
        bias = code.at(a["bias"], code.mul(image, a["bias_step"]))
        with code.loop(end_k, first_k, panel) as k:
            weights = code.at(a["weights"], code.mul(k, a["length"]))

            def write_panel(keep: Keep, weights: Value = weights) -> None:
                write_rows(code, registers, from_, weights, count, a["length"], keep)

            if gated:
                write_panel(_keep_gated(code, a, bias, first, k))
            else:
                with b.if_else(has_added) as (with_more, without):
                    with with_more:
                        write_panel(_keep_sums(code, a, bias, first, k, adds=True))
                    with without:
                        write_panel(_keep_sums(code, a, bias, first, k, adds=False))
    return code.end()


def _keep_sums(code: Code, a: dict[str, Value], bias: Value, first: Value, k: Value, *, adds: bool) -> Keep:
    """With the bias, and what is added if it is."""

    def keep(row: Value, values: Sequence[Value]) -> None:
        for number, value in enumerate(values):
            channel = code.add(k, code.lanes * number)
            place = code.add(code.mul(code.add(first, row), a["K"]), channel)
            total = code.b.fadd(value, code.load(bias, channel))
            if adds:
                total = code.b.fadd(total, code.load(a["added"], place))
            code.store(total, a["y"], place)

    return keep


def _keep_gated(code: Code, a: dict[str, Value], bias: Value, first: Value, k: Value) -> Keep:
    """One vector, gated by the other."""
    half = code.number(PANEL_VECTORS)
    channel, channels = code.b.sdiv(k, half), code.b.sdiv(a["K"], half)

    def keep(row: Value, values: Sequence[Value]) -> None:
        value, gate = (
            code.b.fadd(product, code.load(bias, code.add(k, code.lanes * number)))
            for number, product in enumerate(values)
        )
        place = code.add(code.mul(code.add(first, row), channels), channel)
        code.store(code.b.fmul(value, gelu(code, gate)), a["y"], place)

    return keep


def _write_patch(code: Code, a: dict[str, Value], to: Value, row: Value, pixels: Value) -> None:
    """What the kernel covers at one pixel of the output, [kernel, kernel, C]; zeros outside of the image."""
    b = code.b
    image, pixel = b.sdiv(row, pixels), b.srem(row, pixels)
    top = code.b.sub(code.mul(b.sdiv(pixel, a["out_width"]), a["stride"]), a["padding"])
    left = code.b.sub(code.mul(b.srem(pixel, a["out_width"]), a["stride"]), a["padding"])
    right = code.add(left, a["kernel"])
    line = code.mul(a["kernel"], a["C"])
    from_image = code.at(a["x"], code.mul(image, code.mul(code.mul(a["H"], a["W"]), a["C"])))
    zero = code.number(0)
    in_width = b.and_(b.icmp_signed(">=", left, zero), b.icmp_signed("<=", right, a["W"]))
    with code.loop(a["kernel"]) as i:
        y = code.add(top, i)
        to_line = code.at(to, code.mul(i, line))
        in_height = b.and_(b.icmp_signed(">=", y, zero), b.icmp_signed("<", y, a["H"]))
        from_line = code.at(from_image, code.mul(code.mul(y, a["W"]), a["C"]))
        with b.if_else(b.and_(in_height, in_width)) as (inside, border):
            with inside:
                _copy(code, code.at(from_line, code.mul(left, a["C"])), to_line, line)
            with border, code.loop(a["kernel"]) as j:
                x = code.add(left, j)
                to_pixel = code.at(to_line, code.mul(j, a["C"]))
                in_line = b.and_(b.icmp_signed(">=", x, zero), b.icmp_signed("<", x, a["W"]))
                with b.if_else(b.and_(in_height, in_line)) as (covered, outside):
                    with covered:
                        _copy(code, code.at(from_line, code.mul(x, a["C"])), to_pixel, a["C"])
                    with outside:
                        _copy(code, None, to_pixel, a["C"])


def _copy(code: Code, source: Value | None, to: Value, count: Value) -> None:
    """So many numbers, or zeros."""
    b = code.b
    whole = b.mul(b.sdiv(count, code.number(code.lanes)), code.number(code.lanes))
    with code.loop(whole, step=code.lanes) as place:
        code.store(code.constant(0.0) if source is None else code.load(source, place), to, place)
    with code.loop(count, whole) as place:
        value = ir.Constant(F32, 0.0) if source is None else code.load_one(source, place)
        b.store(value, code.at(to, place), align=BYTES)

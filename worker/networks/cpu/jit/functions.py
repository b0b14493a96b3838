"""The functions of numbers that kernels need, of a vector at a time."""

import struct
from collections.abc import Sequence

from llvmlite import ir

from worker.networks.cpu.jit.code import Code, Value


def _float32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


EXP_LIMIT = 87.0
ROUNDING = 12582912.0
LOG2_E = _float32(1.44269504088896341)
LN_2_HIGH = _float32(0.693359375)
LN_2_LOW = _float32(-2.12194440e-4)
EXP_POLYNOMIAL = tuple(
    map(
        _float32,
        (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1),
    )
)
SQRT_HALF = _float32(0.7071067811865476)
ERF_LIMIT = 4.0
"""Beyond, the function is 1 in float32."""
ERF_NUMERATOR = tuple(
    map(
        _float32,
        (
            *(-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05),
            *(-7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02),
        ),
    )
)
ERF_DENOMINATOR = tuple(
    map(
        _float32,
        (
            *(-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03),
            -1.42647390514189e-02,
        ),
    )
)
POWER_LIMIT = 126.0
POWER_POLYNOMIAL = tuple(
    map(
        _float32,
        (
            *(1.0, 0.6931469775991647, 0.24022242085375128),
            *(0.05550733743251948, 0.009671512639647675, 0.0013264727197203723),
        ),
    )
)
"""The lowest power first: 2^x for x within ±0.5, off by at most 9.2e-8 of it."""


def silu(code: Code, x: Value) -> Value:
    """x / (1 + exp(-x))."""
    b = code.b
    return b.fdiv(x, b.fadd(code.constant(1.0), exp(code, b.fneg(x))))


def gelu(code: Code, x: Value) -> Value:
    """x Phi(x), Phi being the normal distribution."""
    half = code.b.fmul(x, code.constant(0.5))
    return code.fma(half, erf(code, code.b.fmul(x, code.constant(SQRT_HALF))), half)


def erf(code: Code, x: Value) -> Value:
    """The error function to some 3 units in the last place: x P(x^2) / Q(x^2), as in Eigen."""
    limit = code.constant(ERF_LIMIT)
    x = code.largest(code.b.fneg(limit), code.b.fneg(code.largest(code.b.fneg(limit), code.b.fneg(x))))
    square = code.b.fmul(x, x)
    above, below = (_polynomial(code, square, numbers) for numbers in (ERF_NUMERATOR, ERF_DENOMINATOR))
    return code.b.fdiv(code.b.fmul(x, above), below)


def _polynomial(code: Code, x: Value, coefficients: Sequence[float]) -> Value:
    """Of x, the highest power first."""
    value = code.constant(coefficients[0])
    for coefficient in coefficients[1:]:
        value = code.fma(value, x, code.constant(coefficient))
    return value


def exp(code: Code, x: Value) -> Value:
    """e^x to about 2 units in the last place, x kept within ±87: 2^n by its bits, e^r by a polynomial (Cephes)."""
    b = code.b
    limit = code.constant(EXP_LIMIT)
    x = b.select(b.fcmp_ordered("<", x, limit), x, limit)
    limit = code.constant(-EXP_LIMIT)
    x = b.select(b.fcmp_ordered(">", x, limit), x, limit)
    # Adding and taking away 1.5 2^23 rounds to a whole number.
    shifted = code.fma(x, code.constant(LOG2_E), code.constant(ROUNDING))
    n = b.fsub(shifted, code.constant(ROUNDING))
    r = code.fma(n, code.constant(-LN_2_HIGH), x)
    r = code.fma(n, code.constant(-LN_2_LOW), r)
    value = _polynomial(code, r, EXP_POLYNOMIAL)
    value = code.fma(value, b.fmul(r, r), b.fadd(r, code.constant(1.0)))
    exponent = b.add(b.fptosi(n, code.whole), ir.Constant(code.whole, [127] * code.lanes))
    power = b.bitcast(b.shl(exponent, ir.Constant(code.whole, [23] * code.lanes)), code.vector)
    return b.fmul(value, power)


def power_of_two(code: Code, x: Value) -> Value:
    """2^x for x of at most 0, kept above -126: to about 2 units in the last place. What is no number stays none."""
    b = code.b
    x = code.largest(code.constant(-POWER_LIMIT), x)
    shifted = b.fadd(x, code.constant(ROUNDING))
    r = b.fsub(x, b.fsub(shifted, code.constant(ROUNDING)))
    # Two by two (Estrin): what waits for what decides how fast this is.
    low, middle, high = (
        code.fma(r, code.constant(odd), code.constant(even))
        for even, odd in zip(POWER_POLYNOMIAL[::2], POWER_POLYNOMIAL[1::2], strict=True)
    )
    square = b.fmul(r, r)
    value = code.fma(code.fma(high, square, middle), square, low)
    # The lowest bits of what was rounded are the whole number.
    bits = ir.Constant(code.whole, [23] * code.lanes)
    exponent = b.add(b.shl(b.bitcast(shifted, code.whole), bits), ir.Constant(code.whole, [127 << 23] * code.lanes))
    return b.fmul(value, b.bitcast(exponent, code.vector))

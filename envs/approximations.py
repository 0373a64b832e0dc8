"""Exponentials and logarithms without a call, so that loops over a few points compile to vector instructions.

LLVM keeps a call of the C library's `exp` or `log` in a loop as one call per point. Errors are far below those of the
laws that use them (`waiting.normal_cdf`: 1.5e-4).
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .compiled import kernel


@intrinsic
def _bits(typingctx, x):
    """The 64 bits of a double as an integer."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(64))

    return types.int64(types.float64), codegen


@intrinsic
def _double(typingctx, bits):
    """The double that has these bits."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.int64), codegen


_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.693147180369123816490, 1.90821492927058770002e-10  # their sum has 20 more bits than a double
_LN2 = 0.6931471805599453
_ROOT_HALF = 0x3FE6A09E00000000
"""Bits of a number just below the root of 1/2: what is taken for the mantissa's lowest value."""


@kernel(inline=True)
def exp_of(x):
    """e^x within a relative error of 1e-11; beyond +-700 that of the end."""
    x = min(max(x, -700.0), 700.0)
    n = int(x * _LOG2_E + 1024.5) - 1024
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    # Taylor's series to the ninth order: |r| <= ln(2) / 2
    p = 1 / 5040 + r * (1 / 40320 + r * (1 / 362880))
    p = 1 / 6 + r * (1 / 24 + r * (1 / 120 + r * (1 / 720 + r * p)))
    p = 1.0 + r * (1.0 + r * (0.5 + r * p))
    return p * _double((n + 1023) << 52)


@kernel(inline=True)
def log_of(x):
    """ln(x) within 2e-12 of its size or 1e-12, whichever is more; below the least normal number about -709."""
    bits = _bits(x)
    k = (bits - _ROOT_HALF) >> 52
    m = _double(bits - (k << 52))
    # ln(m) = 2 artanh(t), |t| <= 0.172
    t = (m - 1.0) / (m + 1.0)
    u = t * t
    p = 1 / 7 + u * (1 / 9 + u * (1 / 11 + u * (1 / 13)))
    return k * _LN2 + 2.0 * t * (1.0 + u * (1 / 3 + u * (1 / 5 + u * p)))

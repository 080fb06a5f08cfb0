"""The published formulas of the methods in NumPy and FP64, one weight at a time; written from the papers alone."""

import math


def round_half_even(x: float) -> float:
    return float(round(x))


def uniform(w: float, scale: float, bits: int) -> float:
    code: float = min(max(round_half_even(w / scale), -(2 ** (bits - 1))), 2 ** (bits - 1) - 1)
    return code * scale


def lsq(w: float, s: float, bits: int) -> tuple[float, float, float]:
    """Value, its derivative in w, its derivative in s (arXiv 1902.08153, equations 1 to 3 and 5)."""
    negative, positive = 2 ** (bits - 1), 2 ** (bits - 1) - 1
    v = w / s
    value = round_half_even(min(max(v, -negative), positive)) * s
    if v <= -negative:
        return value, 0.0, -negative
    if v >= positive:
        return value, 0.0, positive
    return value, 1.0, round_half_even(v) - v


def pact(w: float, a: float, bits: int) -> tuple[float, float, float]:
    """Value and derivatives in w and a; arXiv 1805.06085 with both sides clipped."""
    levels = 2 ** (bits - 1) - 1
    clipped = 0.5 * (abs(w + a) - abs(w - a))
    value = round_half_even(clipped * levels / a) * a / levels
    if abs(w) < a:
        return value, 1.0, 0.0
    return value, 0.0, math.copysign(1.0, w)


def dorefa(w: float, largest: float, bits: int) -> tuple[float, float]:
    """Value and derivative in w; arXiv 1606.06160, section 2.3; largest is max|W|."""
    n = 2**bits - 1
    x = math.tanh(w) / (2 * math.tanh(largest)) + 0.5
    return 2 * round_half_even(n * x) / n - 1, (1 - math.tanh(w) ** 2) / math.tanh(largest)

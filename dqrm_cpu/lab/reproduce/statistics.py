"""Means over seeds, Student's paired test of a difference, Holm's correction; the standard library alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

_CONVERGED = 1e-15
_MOST_TERMS = 500
_TINY = 1e-300


@dataclass(frozen=True)
class Spread:
    """One figure over seeds. `deviation` is the sample's (n - 1); NaN of a single seed."""

    mean: float
    deviation: float
    count: int


@dataclass(frozen=True)
class Paired:
    """A difference taken seed by seed. `p` is two-sided, of Student's t; NaN where there is none."""

    mean: float
    deviation: float
    count: int
    p: float


def spread(values: Sequence[float]) -> Spread:
    """Returns mean and deviation of at least one value."""
    return Spread(fmean(values), stdev(values) if len(values) > 1 else math.nan, len(values))


def paired(values: Sequence[float], baseline: Sequence[float]) -> Paired:
    """Tests the difference of equally many values, the same seeds in the same order."""
    differences = [value - base for value, base in zip(values, baseline, strict=True)]
    over_seeds = spread(differences)
    return Paired(over_seeds.mean, over_seeds.deviation, over_seeds.count, _p_value(over_seeds))


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrects p values for their number, in their order: none of those below a level is wrong but with that chance.

    The smallest is multiplied by how many there are, the next by one less, and so on, and none is below one before it
    (Holm 1979). NaN stays NaN and counts for none.
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    corrected, least = [math.nan] * len(p_values), 0.0
    for number, (p, place) in enumerate(known):
        least = corrected[place] = max(least, min(1.0, p * (len(known) - number)))
    return corrected


def half_interval(values: Spread, level: float = 0.95) -> float:
    """Returns how far the interval of that confidence reaches from the mean, to either side; NaN of a single value."""
    if values.count < 2:
        return math.nan
    low, high = 0.0, 1.0
    while student_two_sided(high, values.count - 1) > 1 - level:
        high *= 2
    while high - low > _CONVERGED * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if student_two_sided(middle, values.count - 1) > 1 - level else (low, middle)
    return high * values.deviation / math.sqrt(values.count)


def student_two_sided(t: float, degrees: int) -> float:
    """Returns P(|T| >= |t|) of Student's distribution, as a regularized incomplete beta function."""
    below = degrees + t * t
    return _incomplete_beta(degrees / 2, 0.5, degrees / below, t * t / below)


def _p_value(differences: Spread) -> float:
    if differences.count < 2 or differences.deviation == 0:  # equal in all seeds: nothing to test, or nothing to doubt
        return math.nan
    t = differences.mean / (differences.deviation / math.sqrt(differences.count))
    return student_two_sided(t, differences.count - 1)


def _incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """Computes I_x(a, b) by its continued fraction, which converges fast below the mean; beyond it by symmetry.

    `rest` is 1 - x, given apart because a small one would be lost in the subtraction.
    """
    if x == 0 or rest == 0:
        return 1.0 if rest == 0 else 0.0
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, rest, x)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest)
    return math.exp(front) / (a * _fraction(a, b, x))


def _fraction(a: float, b: float, x: float) -> float:
    """Computes 1 + d1 / (1 + d2 / (1 + ...)) from its front, by Lentz's method."""
    value = numerator = 1.0
    denominator = 0.0
    for term in range(1, _MOST_TERMS):
        coefficient = _coefficient(a, b, x, term)
        denominator = 1 / _away_from_zero(1 + coefficient * denominator)
        numerator = _away_from_zero(1 + coefficient / numerator)
        change = numerator * denominator
        value *= change
        if abs(change - 1) < _CONVERGED:
            break
    return value


def _coefficient(a: float, b: float, x: float, term: int) -> float:
    m = term // 2
    if term % 2:
        return -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
    return m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY

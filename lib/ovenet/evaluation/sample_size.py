"""How many runs a difference takes: Student's t test of two means, two-sided, of two groups of runs or of pairs.

By hand, since the project needs nothing else of scipy, which is no requirement.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

LEVEL = 0.95  # of intervals; a test finds a difference by chance in the remaining 5 %
POWER = 0.8  # share of the tests that find a difference of the given size
MAX_RUNS = 1000
_STEPS = 100_000  # of the integral over Student's t distribution
_COARSE_STEPS = 4000
_REACH = 8.0  # standard deviations of the chi distribution to either side


@lru_cache(maxsize=256)
def student_quantile(freedom: int) -> float:
    """The 0.975 quantile of Student's t distribution.

    With ``t = sqrt(freedom) tan(angle)`` the density is proportional to ``cos(angle) ** (freedom - 1)``.
    """
    step = np.pi / 2 / _STEPS
    ends = step * np.arange(1, _STEPS + 1)
    share = np.cumsum(np.cos(ends - step / 2) ** (freedom - 1))
    return float(freedom**0.5 * np.tan(np.interp(LEVEL, share / share[-1], ends)))


def spread_interval(spread: float, freedom: int) -> tuple[float, float]:
    """The 95 % interval of a standard deviation of normal values, from the chi-square distribution.

    Args:
        spread: estimated standard deviation.
        freedom: degrees of freedom of the estimate, one less than the number of values.
    """
    values, weights = _chi_distribution(freedom, _STEPS)
    tail = (1 - LEVEL) / 2
    low, high = np.interp([tail, 1 - tail], weights.cumsum(), values + (values[1] - values[0]) / 2)
    return spread * freedom**0.5 / float(high), spread * freedom**0.5 / float(low)


def power_of_test(shift: float, freedom: int) -> float:
    """The share of two-sided 5 % t tests that find a difference.

    The statistic has the noncentral t distribution: a normal value of mean `shift` over an independent chi.

    Args:
        shift: difference over the standard error of its mean, the noncentrality.
        freedom: degrees of freedom of the test.
    """
    values, weights = _chi_distribution(freedom, _COARSE_STEPS)
    limits = student_quantile(freedom) * values / freedom**0.5
    return float(weights @ (_normal_share(shift - limits) + _normal_share(-shift - limits)))


def runs_needed(spread: float, difference: float, *, paired: bool) -> int | None:
    """The least number of runs on each side with which 80 % of the tests find a difference; None above `MAX_RUNS`.

    Args:
        spread: standard deviation of the runs of a side, or of the differences between paired runs; above 0.
        difference: between the means of both sides, in the same unit; above 0.
        paired: whether the test is of pairs.
    """

    def is_enough(number: int) -> bool:
        if paired:
            return power_of_test(difference / spread * number**0.5, number - 1) >= POWER
        return power_of_test(difference / spread * (number / 2) ** 0.5, 2 * number - 2) >= POWER

    low, high = 1, MAX_RUNS  # too few, and enough
    if not is_enough(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def smallest_difference(standard_error: float, freedom: int) -> float:
    """The difference of two means that 80 % of the tests find.

    Args:
        standard_error: of the difference of the means.
        freedom: degrees of freedom of the test, at least 1.
    """
    low, high = 0.0, 1.0
    while power_of_test(high, freedom) < POWER:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if power_of_test(middle, freedom) >= POWER else (middle, high)
    return high * standard_error


def _chi_distribution(freedom: int, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and weights, which sum to 1, of the chi distribution: of the length of `freedom` normal values."""
    start, end = max(0.0, freedom**0.5 - _REACH), freedom**0.5 + _REACH
    values = start + (end - start) * (np.arange(num_steps) + 0.5) / num_steps
    logarithm = (freedom - 1) * np.log(values) - values**2 / 2
    weights = np.exp(logarithm - logarithm.max())
    return values, weights / weights.sum()


_erfc = np.vectorize(math.erfc, otypes=[float])  # numpy has none


def _normal_share(limit: np.ndarray) -> np.ndarray:
    return 0.5 * _erfc(-limit / 2**0.5)

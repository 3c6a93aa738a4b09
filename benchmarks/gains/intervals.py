"""Means with intervals, from few seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy.stats import t as student_t

LEVEL = 0.95


class Interval(NamedTuple):
    """A value and its interval; infinite limits where the data give none.

    Args:
        value (float): The estimate.
        low (float): Lower limit.
        high (float): Upper limit.
    """

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """``'helps'`` or ``'hurts'`` if zero lies outside, else ``'inconclusive'``."""
        if self.low > 0:
            return 'helps'
        return 'hurts' if self.high < 0 else 'inconclusive'


def quantile(count: int) -> float:
    """The quantile of Student's t for the two-sided interval of the mean of ``count`` values."""
    return float(student_t.ppf(0.5 + LEVEL / 2, count - 1))


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean with its interval from Student's t; one value has no interval.

    Args:
        values (Sequence[float]): One for each seed, at least one.

    Examples:
        >>> mean_interval([1.0, 2.0, 3.0]).value
        2.0
    """
    count, mean = len(values), math.fsum(values) / len(values)
    if count < 2:
        return Interval(mean, -math.inf, math.inf)
    half = quantile(count) * math.sqrt(_covariance(values, values) / count)
    return Interval(mean, mean - half, mean + half)


def ratio_interval(above: Sequence[float], below: Sequence[float]) -> Interval | None:
    """The ratio of two means of paired values with its interval by Fieller's theorem.

    Fieller, Some problems in interval estimation, Journal of the Royal Statistical Society B, 1954.

    Args:
        above (Sequence[float]): Numerators, one for each seed.
        below (Sequence[float]): Denominators of the same seeds.

    Returns:
        Interval, optional: None if the denominators have no positive mean. Its limits are infinite
        if their mean cannot be told from zero, since the ratio can then be anything.
    """
    count = len(above)
    a, b = math.fsum(above) / count, math.fsum(below) / count
    if b <= 0:
        return None
    ratio = a / b
    if count < 2:
        return Interval(ratio, -math.inf, math.inf)
    vaa, vbb, vab = (
        _covariance(one, other) / count
        for one, other in ((above, above), (below, below), (above, below))
    )
    t = quantile(count)
    # The ratios r for which a - r b, of variance vaa - 2 r vab + r^2 vbb, cannot be told from zero
    # are those between the roots of p r^2 - 2 q r + c.
    p, q, c = b * b - t * t * vbb, a * b - t * t * vab, a * a - t * t * vaa
    if p <= 0:
        return Interval(ratio, -math.inf, math.inf)
    half = math.sqrt(max(q * q - p * c, 0.0))
    return Interval(ratio, (q - half) / p, (q + half) / p)


def _covariance(one: Sequence[float], other: Sequence[float]) -> float:
    """Of paired values, with one degree of freedom less than their number."""
    count = len(one)
    x, y = math.fsum(one) / count, math.fsum(other) / count
    return math.fsum((a - x) * (b - y) for a, b in zip(one, other, strict=True)) / (count - 1)

"""Statistics of scores: intervals of means, wins, distances of pairs, agreement of raters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: The share of intervals that contain the true mean.
CONFIDENCE = 0.95


def bootstrap_weights(n: int, resamples: int, seed: int) -> Array:
    """Draw ``resamples`` bootstrap samples of ``n`` values, as weights that sum to 1: (R, n).

    A row is how often each value was drawn, divided by n. The same weights serve for all values
    that were measured on the same n seeds.
    """
    random = np.random.default_rng(seed)
    return random.multinomial(n, np.full(n, 1 / n), size=resamples) / n


def interval(values: Array, weights: Array) -> tuple[Array, Array]:
    """Return the ends of the 95 % bootstrap interval of the mean of values (..., n): (...) twice.

    ``weights`` are those of ``bootstrap_weights``. The interval is BCa (Efron 1987, "Better
    Bootstrap Confidence Intervals", JASA 82), which corrects for skewed values, widened for small n
    as in Hesterberg 2015 (arXiv 1411.5279, Sec. 5.3): sqrt(n / (n - 1)) times Student's quantile
    replaces the normal one. If all n values are equal, both ends are that value; if one is not
    finite, both are NaN.
    """
    values = np.asarray(values, dtype=np.float64)
    finite = np.asarray(np.isfinite(values).all(-1))
    values = np.where(finite[..., None], values, 0.0)
    n = values.shape[-1]
    mean = values.mean(-1)
    if n < 2:
        alone = np.where(finite, mean, np.nan)
        return alone, alone.copy()
    centred = values - mean[..., None]
    means = centred @ weights.T  # (..., R): of the bootstrap samples, minus the mean
    normal = NormalDist()
    quantile = (n / (n - 1)) ** 0.5 * student_quantile((1 + CONFIDENCE) / 2, n - 1)
    # Half of the ties count, of which 0/1 scores have many; 0 and 1 have no quantile.
    tiny = 1e-12 * (np.abs(values).max(-1, keepdims=True) + 1e-300)
    below = (means < -tiny).mean(-1) + 0.5 * (np.abs(means) <= tiny).mean(-1)
    edge = 1 / (2 * means.shape[-1])
    bias = _each(normal.inv_cdf, below.clip(edge, 1 - edge))
    squares = (centred**2).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        skew = np.nan_to_num((centred**3).sum(-1) / (6 * squares**1.5))
    ends = []
    for sign in (-1, 1):
        shifted = bias + sign * quantile
        level = _each(normal.cdf, bias + shifted / np.maximum(1 - skew * shifted, 1e-3))
        end = mean + _quantile(means, level)
        ends.append(end.clip(values.min(-1), values.max(-1)))  # rounding may exceed them
    low, high = ends
    equal = np.ptp(values, axis=-1) == 0
    low, high = (np.where(equal, values[..., 0], end) for end in (low, high))
    return np.where(finite, low, np.nan), np.where(finite, high, np.nan)


def student_quantile(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t; for 5 degrees of freedom or more the error is < 0.003.

    The expansion in 1 / ``freedom`` of Abramowitz & Stegun 1964, 26.7.5.
    """
    z, v = NormalDist().inv_cdf(probability), float(freedom)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )


def wins(values: Array, base: Array) -> Array:
    """Return 1 where a value exceeds the base's of the same seed, 0.5 for a tie, else 0."""
    return (np.sign(np.asarray(values) - np.asarray(base)) + 1) / 2


class PairDistance:
    """The mean squared distance over all pairs of vectors, from running sums.

    Over the n (n - 1) / 2 pairs the mean of |x_i - x_j|^2 is
    2 / (n - 1) * (sum of |x_i|^2  -  |sum of x_i|^2 / n), so no vector is kept. For unit
    vectors half of it is the mean cosine distance.
    """

    def __init__(self) -> None:
        self.n, self.squares = 0, 0.0
        self.first: Array | None = None
        self.sum: Array | float = 0.0

    def add(self, vectors: Array) -> None:
        """Add vectors (B, D)."""
        vectors = np.asarray(vectors, dtype=np.float64)
        if self.first is None:
            self.first = vectors[0].copy()
        apart = vectors - self.first  # near the origin, so that the two terms do not cancel
        self.n += len(vectors)
        self.sum = self.sum + apart.sum(0)
        self.squares += float((apart**2).sum())

    def mean(self) -> float:
        """Return the mean over the pairs so far; 0 for fewer than two vectors."""
        if self.n < 2:
            return 0.0
        gap = self.squares - float((np.asarray(self.sum) ** 2).sum()) / self.n
        return max(0.0, 2 * gap / (self.n - 1))


def agreement(counts: Sequence[Sequence[int]]) -> tuple[float | None, float | None]:
    """Return the share of pairs of raters of an item who agree, in [0, 1], and Fleiss' kappa.

    ``counts`` (items, choices) is how many raters chose what. Items with one rater are ignored; if
    there are no others, both are None. Kappa (Fleiss 1971, "Measuring nominal
    scale agreement among many raters") is 1 for full agreement and 0 for agreement by chance; it
    is None if only one choice was ever made. Items may have different numbers of raters.
    """
    table = np.array([row for row in counts if sum(row) >= 2], dtype=np.float64)
    if not len(table):
        return None, None
    raters = table.sum(1)
    pairs = (table * (table - 1)).sum(1) / (raters * (raters - 1))
    observed = float((pairs * raters).sum() / raters.sum())
    shares = table.sum(0) / table.sum()
    chance = float((shares**2).sum())
    return observed, None if chance == 1 else (observed - chance) / (1 - chance)


def _quantile(rows: Array, level: Array) -> Array:
    """Return the quantile of each row of (..., R) at its own ``level`` (...)."""
    ordered = np.sort(rows, axis=-1)
    place = level * (ordered.shape[-1] - 1)
    under = np.floor(place).astype(int)
    over = np.minimum(under + 1, ordered.shape[-1] - 1)
    at_under = np.take_along_axis(ordered, under[..., None], -1)[..., 0]
    at_over = np.take_along_axis(ordered, over[..., None], -1)[..., 0]
    return at_under + (place - under) * (at_over - at_under)


def _each(function: Callable[[float], float], values: Array) -> Array:
    return np.asarray(np.vectorize(function, otypes=[np.float64])(values), dtype=np.float64)

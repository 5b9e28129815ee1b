"""Known answers, and intervals that hold what they promise."""

from math import comb

import numpy as np
import pytest

from dpok_cli.engine.evaluation.statistics import (
    PairDistance,
    agreement,
    bootstrap_weights,
    interval,
    student_quantile,
    wins,
)

RESAMPLES = 2000


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda random, shape: random.normal(3, 2, shape), 3.0),
        (lambda random, shape: random.exponential(1, shape), 1.0),
        (lambda random, shape: random.random(shape), 0.5),
    ],
    ids=["normal", "exponential", "uniform"],
)
def test_the_interval_covers_the_truth_in_93_to_97_of_100(draw, truth):
    values = draw(np.random.default_rng(0), (1000, 50))
    low, high = interval(values, bootstrap_weights(50, RESAMPLES, 1))
    assert 0.93 <= ((low <= truth) & (truth <= high)).mean() <= 0.97


@pytest.mark.parametrize("rate", [0.25, 0.37, 0.5, 0.63])
def test_the_interval_covers_a_rate_as_often(rate):
    """Over all 51 outcomes of 50 tosses, each with its probability."""
    hits = np.arange(51)
    tosses = (np.arange(50) < hits[:, None]).astype(float)
    low, high = interval(tosses, bootstrap_weights(50, RESAMPLES, 1))
    chance = np.array([comb(50, k) * rate**k * (1 - rate) ** (50 - k) for k in hits])
    assert 0.93 <= chance[(low <= rate) & (rate <= high)].sum() <= 0.97


def test_the_interval_misses_on_both_sides():
    """A mirrored BCa correction would make one side of a skewed sample far too long."""
    values = np.random.default_rng(2).exponential(1, (4000, 50))
    low, high = interval(values, bootstrap_weights(50, RESAMPLES, 1))
    assert 0.005 < (low > 1).mean() < 0.04
    assert 0.02 < (high < 1).mean() < 0.06
    mean = values.mean(1)
    assert ((high - mean) > (mean - low)).mean() > 0.9  # the tail is on the right


def test_the_interval_of_a_large_sample_is_the_normal_one():
    values = np.random.default_rng(3).normal(size=1000)
    low, high = interval(values, bootstrap_weights(1000, 4000, 0))
    half = 1.96 * values.std() / 1000**0.5
    assert low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_the_interval_moves_and_turns_with_the_values():
    weights = bootstrap_weights(20, RESAMPLES, 0)
    values = np.random.default_rng(4).exponential(1, 20)
    low, high = interval(values, weights)
    assert interval(7 - 2 * values, weights) == pytest.approx((7 - 2 * high, 7 - 2 * low))


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -3e-9, 1e12])
def test_equal_values_have_no_interval(value):
    low, high = interval(np.full((2, 50), value), bootstrap_weights(50, RESAMPLES, 0))
    assert low.tolist() == high.tolist() == [value, value]


def test_no_end_is_beyond_the_values():
    values = np.array([[1.0] + 19 * [0.0], [0.1] * 10 + [0.3] * 10])
    low, high = interval(values, bootstrap_weights(20, RESAMPLES, 0))
    assert low[0] == 0
    assert (low >= values.min(1)).all()
    assert (high <= values.max(1)).all()


def test_one_value_has_no_interval():
    assert interval(np.array([0.3]), bootstrap_weights(1, RESAMPLES, 0)) == (0.3, 0.3)


def test_weights_are_those_of_samples_with_replacement():
    weights = bootstrap_weights(5, RESAMPLES, 0)
    assert weights.shape == (RESAMPLES, 5)
    assert weights.sum(1) == pytest.approx(1)
    assert np.allclose((weights * 5).round(), weights * 5)
    assert weights.mean(0) == pytest.approx(0.2, abs=0.01)
    assert (weights == bootstrap_weights(5, RESAMPLES, 0)).all()
    assert (weights != bootstrap_weights(5, RESAMPLES, 1)).any()


@pytest.mark.parametrize(("freedom", "quantile"), [(5, 2.5706), (19, 2.0930), (49, 2.0096)])
def test_students_quantile(freedom, quantile):
    assert student_quantile(0.975, freedom) == pytest.approx(quantile, abs=3e-3)
    assert student_quantile(0.025, freedom) == pytest.approx(-quantile, abs=3e-3)


def test_a_tie_is_half_a_win():
    assert wins([1.0, 2.0, 3.0, 0.1 + 0.2], [2.0, 2.0, 1.0, 0.3]).tolist() == [0, 0.5, 1, 1]


def test_pair_distance_is_the_mean_over_pairs():
    vectors = np.random.default_rng(0).normal(size=(7, 3)) + 1000
    pairs = PairDistance()
    pairs.add(vectors[:4])
    pairs.add(vectors[4:])
    by_hand = [((a - b) ** 2).sum() for n, a in enumerate(vectors) for b in vectors[:n]]
    assert pairs.mean() == pytest.approx(np.mean(by_hand))


def test_pair_distance_without_pairs_is_0():
    pairs = PairDistance()
    assert pairs.mean() == 0
    pairs.add(np.ones((1, 3)))
    assert pairs.mean() == 0
    pairs.add(np.ones((2, 3)))
    assert pairs.mean() == 0


def test_fleiss_kappa_of_the_known_example():
    """Fleiss 1971, as worked on Wikipedia: 10 subjects, 14 raters, 5 categories, kappa 0.210."""
    counts = [
        [0, 0, 0, 0, 14],
        [0, 2, 6, 4, 2],
        [0, 0, 3, 5, 6],
        [0, 3, 9, 2, 0],
        [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0],
        [3, 2, 6, 3, 0],
        [2, 5, 3, 2, 2],
        [6, 5, 2, 1, 0],
        [0, 2, 2, 3, 7],
    ]
    observed, kappa = agreement(counts)
    assert observed == pytest.approx(0.378, abs=5e-4)
    assert kappa == pytest.approx(0.210, abs=5e-4)


def test_agreement_at_its_ends():
    assert agreement([[3, 0, 0], [0, 3, 0]]) == (1.0, 1.0)
    observed, kappa = agreement([[1, 1, 0], [1, 1, 0]])
    assert (observed, kappa) == (0.0, -1.0)
    assert agreement([[2, 0, 0], [3, 0, 0]]) == (1.0, None)
    assert agreement([[1, 0, 0], [0, 0, 0]]) == (None, None)

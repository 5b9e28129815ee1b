"""Seeds: each purpose has its own, so that no image is both trained on and evaluated."""

from itertools import combinations

from dpok_cli.engine.sampling.seeds import (
    FRESH_SEEDS,
    evaluation_seeds,
    first_image_set_seed,
    purpose_seed,
    rollout_seeds,
)


def test_the_ranges_are_apart():
    many = 10**6  # images a purpose draws at most
    starts = {
        "sample": 0,
        "before and after": FRESH_SEEDS,
        "evaluation": evaluation_seeds(0, 1)[0],
        "image set": first_image_set_seed(3),
    }
    for (one, start), (other, second) in combinations(starts.items(), 2):
        assert abs(start - second) > many, (one, other)
    assert FRESH_SEEDS == 10**9
    assert list(evaluation_seeds(5, 3)) == [2 * 10**9 + 5, 2 * 10**9 + 6, 2 * 10**9 + 7]


def test_rollouts_draw_none_of_the_small_seeds_and_none_twice():
    drawn = [seed for number in range(1, 200) for seed in rollout_seeds(0, number, 24)]
    assert len(set(drawn)) == len(drawn)
    assert min(drawn) > evaluation_seeds(0, 10**6)[-1]
    assert max(drawn) < 2**63
    assert rollout_seeds(0, 7, 24) == rollout_seeds(0, 7, 24)
    assert not set(rollout_seeds(1, 7, 24)) & set(rollout_seeds(0, 7, 24))


def test_a_purpose_has_its_own_seed_in_every_round():
    keys = [(seed, number, what) for seed in (0, 1) for number in (1, 2) for what in ("a", "b")]
    seeds = [purpose_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert [first_image_set_seed(seed) >> 61 for seed in range(5)] == [2] * 5

import pytest

from dpok_cli.config import EvaluateConfig
from dpok_cli.errors import InputError


@pytest.mark.parametrize(
    ("key", "value", "must"),
    [
        *(("samples", value, "in [1, 100000]") for value in (0, 100_001)),
        *(("resamples", value, "in [100, 1000000]") for value in (99, 1_000_001)),
        ("seed", 2**62, "in [0, 2^62)"),
        ("seed", -1, "in [0, 2^62)"),
    ],
)
def test_out_of_range(key, value, must):
    with pytest.raises(InputError) as caught:
        EvaluateConfig(**{key: value})
    assert str(caught.value) == f"--{key} {value}: must be {must}."


def test_rewards_may_be_left_to_the_evaluation():
    assert EvaluateConfig(rewards=()).rewards == ()


def test_on_the_edge_of_the_range():
    config = EvaluateConfig(seed=2**62 - 1, resamples=100, samples=1)
    assert (config.seed, config.resamples, config.samples) == (2**62 - 1, 100, 1)

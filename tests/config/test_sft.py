import pytest

from dpok_cli.config import TrainSFTConfig
from dpok_cli.config.fields import flag, settings_of
from dpok_cli.errors import InputError


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("images", 0),
        ("steps", 0),
        ("log_every", 0),
        ("gamma", -0.1),
        ("gamma", float("inf")),
        ("kl_form", "kl-x"),
        ("prompt_dropout", 1.0),
        ("prompt_dropout", -0.1),
    ],
)
def test_out_of_range(key, value):
    with pytest.raises(InputError, match=f"^{flag(key)} "):
        TrainSFTConfig(**{key: value})


def test_images_can_be_drawn_without_noise():
    assert TrainSFTConfig(eta=0.0).eta == 0.0


def test_intervals_are_in_steps():
    config, known = TrainSFTConfig(), settings_of(TrainSFTConfig)
    assert (config.checkpoint_every, config.sample_every) == (50, 50)
    assert known["checkpoint_every"].help == "Steps between checkpoints; 0 writes none."
    assert known["sample_every"].help == "Steps between sample grids; 0 draws none."

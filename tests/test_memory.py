"""What the advice names when the memory is full."""

import pytest
import torch

from dpok_cli.config import SampleConfig
from dpok_cli.engine.rl.settings import TrainRLConfig
from dpok_cli.errors import MemoryFullError
from dpok_cli.memory import advice_when_full

GPU = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.79 GiB."
)


@pytest.mark.parametrize(
    ("settings", "processes", "advice"),
    [
        (
            dict(batch_size=15, gradient_accumulation=2, sample_batch_size=1),
            1,
            "--batch-size 5 --gradient-accumulation 6",
        ),
        (dict(batch_size=8, sample_batch_size=1), 4, "--batch-size 4 --gradient-accumulation 2"),
        (dict(batch_size=4, sample_batch_size=3), 4, "--sample-batch-size 1"),
    ],
)
def test_a_batch_is_cut_into_whole_shares(settings, processes, advice):
    config = TrainRLConfig(gradient_checkpointing=True, **settings)
    with pytest.raises(MemoryFullError) as caught, advice_when_full(config, "GO", processes):
        raise GPU
    assert f": GO {advice}. A new run" in str(caught.value)


def test_what_cannot_be_less_is_not_named():
    config = TrainRLConfig(
        batch_size=1, sample_batch_size=1, gradient_checkpointing=True, precision="bf16"
    )
    with pytest.raises(MemoryFullError) as caught, advice_when_full(config, "dpok ..."):
        raise GPU
    assert str(caught.value) == (
        "Out of memory (CUDA out of memory). Only a new run can take a smaller --height and"
        " --width."
    )


def test_it_is_given_once_and_by_the_inner_block_which_knows_more():
    with (
        pytest.raises(MemoryFullError, match=": dpok train-rl --resume x --"),
        advice_when_full(SampleConfig()),
        advice_when_full(TrainRLConfig(), "dpok train-rl --resume x"),
    ):
        raise GPU


def test_an_error_that_is_its_own_cause_ends():
    error = ValueError("no")
    error.__cause__ = error
    with pytest.raises(ValueError, match="^no$"), advice_when_full(SampleConfig()):
        raise error

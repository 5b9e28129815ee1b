"""Commands of the least work, for cases that are about something else."""

import pytest

SMALL = (
    "--prompt=cat --reward=jpeg-compressibility --num-inference-steps=2 --guidance-scale=1"
    " --batch-size=2 --lora-rank=2 --sample-every=0 --evaluation-samples=0 --tracker= --device=cpu"
).split()
COUNTS = {
    "train-rl": "--rounds=2 --samples-per-round=2 --updates-per-round=1".split(),
    "train-sft": "--images=4 --sample-batch-size=2 --steps=2 --log-every=1 --gamma=200".split(),
}


@pytest.fixture
def flags(pipeline_folder):
    """The flags of a training of the very small pipeline: ``flags("train-rl", ...)``."""
    return lambda command, *more: (
        command,
        *SMALL,
        *COUNTS[command],
        f"--model={pipeline_folder}",
        *more,
    )


@pytest.fixture
def train(dpok, flags):
    """Run a training of the very small pipeline, with more flags; the last of each counts."""
    return lambda command, *more: dpok(*flags(command, *more))

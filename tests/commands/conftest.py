"""The commands as a person runs them, with the real engine on the very small pipeline."""

import json
import tomllib
from pathlib import Path

import pytest

SMALL = (
    "--num-inference-steps=2 --guidance-scale=1 --batch-size=2 --lora-rank=2 --learning-rate=0.01"
    " --sample-every=0 --evaluation-samples=2 --tracker= --device=cpu"
).split()
COUNTS = {
    "train-rl": "--rounds=2 --samples-per-round=2 --updates-per-round=1".split(),
    "train-sft": "--images=4 --sample-batch-size=2 --steps=2 --log-every=1 --gamma=3".split(),
}
MAY_REPEAT = {"--prompt": "a lion", "--reward": "jpeg-incompressibility"}


@pytest.fixture
def train(dpok, pipeline_folder):
    """Run ``dpok COMMAND`` with the flags of the least work and more, of which the last counts.

    It trains the very small pipeline for a prompt and a reward, unless others are given; with
    ``model=None`` it is the bundled model, by default.
    """

    def train(command, *more, model=pipeline_folder):
        names = {flag.partition("=")[0] for flag in more}
        defaults = MAY_REPEAT | ({"--model": model} if model else {})
        given = [f"{name}={value}" for name, value in defaults.items() if name not in names]
        return dpok(command, *SMALL, *COUNTS[command], *given, *more)

    return train


class Run:
    """What a run folder holds."""

    def __init__(self, path):
        self.path = Path(path)

    @property
    def config(self):
        return tomllib.loads((self.path / "config.toml").read_text())

    @property
    def metrics(self):
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]

    @property
    def summary(self):
        return json.loads((self.path / "summary.json").read_text())

    def table(self):
        """The lines of the table of before and after, as the summary has them."""
        before, after = (dict(self.summary[side]) for side in ("before", "after"))
        if sum(key.startswith("reward/") for key in self.metrics[0]) == 3:  # mean, std and one
            del before["reward"]  # the weighted sum of one
        rows = [
            [name, f"{value:.3f}", f"{after[name]:.3f}", f"{after[name] - value:+.3f}"]
            for name, value in before.items()
        ]
        return [["before", "after", "change"], *rows]


@pytest.fixture
def run():
    """Read a run folder by its name in runs/."""
    return lambda name: Run(Path("runs", name))

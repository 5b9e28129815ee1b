"""Run folders to evaluate, with an adapter that is only a file."""

import os

import pytest

from dpok_cli.config import to_toml
from dpok_cli.engine.rl.settings import TrainRLConfig


@pytest.fixture
def make_run(tmp_path, least_lora):
    """Make run folders in runs/, each newer than the one before."""

    def make(name, adapter=True, **settings):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        config = TrainRLConfig(**{"prompts": ("a red cat",)} | settings)
        (run / "config.toml").write_text(to_toml(config))
        make.made = getattr(make, "made", 0) + 1
        os.utime(run / "config.toml", (make.made, make.made))
        if adapter:
            (run / "adapter").mkdir()
            (run / "adapter/pytorch_lora_weights.safetensors").write_bytes(least_lora)
        return run

    return make


@pytest.fixture
def runs_dir(tmp_path):
    return str(tmp_path / "runs")

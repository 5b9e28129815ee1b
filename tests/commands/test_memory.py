"""Out of memory: one line that names what needs less, and the command that resumes."""

import re

import pytest
import torch
from diffusers import UNet2DConditionModel

from dpok_cli import RewardModel

#: More bytes than any machine has.
HUGE = 10**15
CPU = r"DefaultCPUAllocator: can't allocate memory: you tried to allocate \d{15,} bytes"
LESS = (
    " --sample-batch-size 8 --batch-size 30 --gradient-accumulation 2 --gradient-checkpointing. A"
    " new run can take --precision bf16, or a smaller --height and --width."
)


def full():
    return torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.79 GiB."
    )


@pytest.fixture
def breaks(monkeypatch):
    """Let the UNet fail with an error, wherever it computes or when it is loaded."""

    def breaks(error, name="forward"):
        def fail(*_, **__):
            raise error

        monkeypatch.setattr(UNet2DConditionModel, name, fail)

    return breaks


@pytest.fixture
def fills(monkeypatch):
    """Let the UNet ask for more memory than there is."""
    monkeypatch.setattr(
        UNet2DConditionModel, "forward", lambda *_, **__: torch.empty(HUGE, dtype=torch.uint8)
    )


@pytest.fixture
def start(train):
    """Train with the batches of the defaults."""
    sizes = ("--batch-size=60", "--sample-batch-size=16")
    return lambda *more: train(*more[:1], *sizes, *more[1:])


def test_of_a_training_on_a_gpu(start, breaks, tmp_path):
    breaks(full())
    code, out, err = start("train-rl", "--name=x")
    assert (code, out) == (1, "")
    last = err.splitlines()[-1]
    assert last.startswith("Error: Out of memory (CUDA out of memory). ")
    assert last.endswith(f": dpok train-rl --resume runs/x{LESS}")
    assert (tmp_path / "runs/x/config.toml").is_file()


def test_of_a_training_on_the_cpu(start, fills, tmp_path):
    code, out, err = start("train-sft", "--name=x")
    assert (code, out) == (1, "")
    last = err.splitlines()[-1]
    assert re.match(rf"Error: Out of memory \({CPU}\)\. ", last)
    assert last.endswith(f": dpok train-sft --resume runs/x{LESS}")
    assert (tmp_path / "runs/x/config.toml").is_file()


def test_of_pythons_own(start, breaks):
    breaks(MemoryError())
    code, out, err = start("train-rl", "--name=x")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("Error: Out of memory (MemoryError). ")
    assert err.splitlines()[-1].endswith(LESS)


def test_of_loading_the_model_there_is_no_run_yet(start, breaks, tmp_path):
    breaks(full(), "to")
    code, out, err = start("train-rl", "--quiet", "--precision=bf16")
    assert (code, out) == (1, "")
    assert err == (
        "Error: Out of memory (CUDA out of memory). Give --sample-batch-size 8, or --batch-size 30"
        " --gradient-accumulation 2, or --gradient-checkpointing, or a smaller --height and"
        " --width.\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_of_drawing(dpok, fills, pipeline_folder):
    flags = (f"--model={pipeline_folder}", "--num-inference-steps=2", "--device=cpu", "--quiet")
    code, out, err = dpok("sample", *flags)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert re.match(rf"Error: Out of memory \({CPU}\)\. ", err)
    assert err.endswith(
        "). Give --sample-batch-size 8, or --precision bf16, or a smaller --height and --width.\n"
    )


class Hungry(RewardModel):
    """Needs more than there is."""

    name = "hungry"

    def score_batch(self, images, prompts):
        raise full()


def test_of_a_reward(train, install):
    install(Hungry)
    code, _, err = train("train-rl", "--reward=hungry")
    assert code == 1
    assert err.splitlines()[-1] == (
        "Error: Out of memory in the reward hungry (CUDA out of memory). Score it elsewhere:"
        " dpok serve-reward there, and --reward http:url=... here, in a new run."
    )


def test_another_failure_is_what_it_is(train, breaks):
    breaks(RuntimeError("shapes differ"))
    code, _, err = train("train-rl")
    assert code == 1
    assert err.splitlines()[-1].startswith("Error: RuntimeError: shapes differ")

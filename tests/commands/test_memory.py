"""Out of memory: one line that names what needs less, and how to go on."""

import sys

import pytest
import torch

from dpok_cli.config import SampleConfig, TrainRLConfig
from dpok_cli.errors import MemoryFullError, RewardError
from dpok_cli.memory import advice_when_full

PROMPT = ("--prompt", "a green rabbit")
GPU = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.79 GiB."
)
CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you"
    " tried to allocate 8589934592 bytes. Error code 12 (Cannot allocate memory)"
)
NEW = "A new run can take --precision bf16, or a smaller --height and --width."


@pytest.mark.parametrize(
    ("command", "error", "said", "batch"),
    [
        ("train-rl", GPU, "CUDA out of memory", 30),
        (
            "train-sft",
            CPU,
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8589934592 bytes",
            16,
        ),
        ("train-rl", MemoryError(), "MemoryError", 30),
    ],
)
def test_of_a_training(command, error, said, batch, engine, dpok, tmp_path):
    engine.fail = error
    code, out, err = dpok(command, *PROMPT, "--name", "x")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == (
        f"Error: Out of memory ({said}). Go on with: dpok {command} --resume runs/x"
        f" --sample-batch-size 8 --batch-size {batch} --gradient-accumulation 2"
        f" --gradient-checkpointing. {NEW}"
    )
    assert (tmp_path / "runs/x").is_dir()


def test_of_loading_the_model_there_is_no_run_yet(engine, dpok, monkeypatch, tmp_path):
    def load(*_):
        raise GPU

    monkeypatch.setattr(sys.modules["dpok_cli.engine.bases.model"], "load", load)
    code, out, err = dpok("train-rl", *PROMPT, "--quiet", "--precision", "bf16")
    assert (code, out) == (1, "")
    assert err == (
        "Error: Out of memory (CUDA out of memory). Give --sample-batch-size 8, or --batch-size 30"
        " --gradient-accumulation 2, or --gradient-checkpointing, or a smaller --height and"
        " --width.\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_of_drawing(engine, dpok, monkeypatch):
    def sample(*_):
        raise GPU

    monkeypatch.setattr(sys.modules["dpok_cli.engine.sampling.sampler"], "sample", sample)
    assert dpok("sample").err == (
        "Error: Out of memory (CUDA out of memory). Give --sample-batch-size 8, or --precision"
        " bf16, or a smaller --height and --width.\n"
    )


def test_of_a_reward(engine, dpok):
    engine.fail = RewardError("image-reward: OutOfMemoryError: CUDA out of memory.")
    engine.fail.__cause__ = GPU
    code, _, err = dpok("train-rl", *PROMPT)
    assert code == 1
    assert err.splitlines()[-1] == (
        "Error: Out of memory in the reward image-reward (CUDA out of memory). Score it elsewhere:"
        " dpok serve-reward there, and --reward http:url=... here, in a new run."
    )


def test_another_failure_is_what_it_is(engine, dpok):
    engine.fail = RuntimeError("shapes differ")
    code, _, err = dpok("train-rl", *PROMPT)
    assert code == 1
    assert err.splitlines()[-1].startswith("Error: RuntimeError: shapes differ")


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
    assert f" Go on with: GO {advice}. A new run" in str(caught.value)


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


def test_it_is_said_once_and_by_the_one_that_knows_more():
    with (
        pytest.raises(MemoryFullError, match="Go on with: dpok train-rl"),
        advice_when_full(SampleConfig()),
        advice_when_full(TrainRLConfig(), "dpok train-rl --resume x"),
    ):
        raise GPU

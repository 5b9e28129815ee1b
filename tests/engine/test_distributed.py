"""Two processes train as one does: real ones, that talk over gloo."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpok_cli.engine.device import process_state
from dpok_cli.errors import InputError

WORKER = Path(__file__).with_name("processes_worker.py")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
#: How each of two machines is started, at one port of the first.
LAUNCHERS = {
    "torchrun": (
        "torch.distributed.run --nnodes=2 --nproc_per_node=1 --node_rank={node}"
        " --master_addr=127.0.0.1 --master_port={port}"
    ),
    "accelerate": (
        "accelerate.commands.launch --multi_gpu --num_machines=2 --num_processes=2"
        " --machine_rank={node} --main_process_ip=127.0.0.1 --main_process_port={port}"
        " --mixed_precision=no --dynamo_backend=no"
    ),
}
FORMS = {
    "plain": {},
    "value function and accumulation": dict(
        advantage="value", gradient_accumulation=2, value_updates=2, value_batch_size=4
    ),
    "kept buffer": dict(buffer_size=24, rounds=2, advantage="reward"),
}


def launch(processes, folder, output, changes):
    output.mkdir()
    environment = ENVIRONMENT
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else ()), str(WORKER)]
    return subprocess.run(
        [*command, str(folder), str(output), json.dumps(changes)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def run(processes, folder, output, changes):
    result = launch(processes, folder, output, changes)
    assert result.returncode == 0, result.stderr
    return [json.loads((output / f"{k}.json").read_text()) for k in range(processes)]


@pytest.mark.parametrize("form", FORMS)
def test_two_processes_do_what_one_does(form, pipeline_folder, tmp_path):
    (alone,) = run(1, pipeline_folder, tmp_path / "one", FORMS[form])
    first, second = run(2, pipeline_folder, tmp_path / "two", FORMS[form])
    assert [each["processes"] for each in (alone, first, second)] == [1, 2, 2]

    # Different noise in each, and together that of one alone.
    assert not set(first["seeds"]) & set(second["seeds"])
    pairs = zip(first["seeds"], second["seeds"], strict=True)
    assert [seed for pair in pairs for seed in pair] == alone["seeds"]

    for both in (first, second):
        assert both["latents"] == pytest.approx(alone["latents"], rel=1e-4, abs=1e-3)
        assert both["advantages"] == pytest.approx(alone["advantages"], rel=1e-3, abs=1e-4)
        largest = max(map(abs, alone["gradients"][0]))
        assert largest > 1e-4
        for mine, its in zip(both["gradients"], alone["gradients"], strict=True):
            assert mine == pytest.approx(its, abs=2e-3 * largest)
        for key in ("reward/mean", "reward/std", "kl", "loss", "unet_rows", "samples"):
            own, expected = both["metrics"][0][key], alone["metrics"][0][key]
            assert own == pytest.approx(expected, rel=1e-3, abs=1e-5), key
    assert first["adapter"] == second["adapter"]
    assert first["gradients"] == second["gradients"]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_machines_do_what_one_process_does(launcher, pipeline_folder, tmp_path):
    """Two launchers, as on two machines, that meet at one address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "two").mkdir()
    nodes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", *LAUNCHERS[launcher].format(node=node, port=port).split()),
                *(str(WORKER), str(pipeline_folder), str(tmp_path / "two"), "{}"),
            ],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in range(2)
    ]
    told = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], told
    first, second = (json.loads((tmp_path / "two" / f"{k}.json").read_text()) for k in range(2))
    assert (first["processes"], second["processes"]) == (2, 2)
    assert not set(first["seeds"]) & set(second["seeds"])
    assert first["adapter"] == second["adapter"]
    (alone,) = run(1, pipeline_folder, tmp_path / "one", {})
    assert first["latents"] == pytest.approx(alone["latents"], rel=1e-4, abs=1e-3)
    largest = max(map(abs, alone["gradients"][0]))
    assert first["gradients"][0] == pytest.approx(alone["gradients"][0], abs=2e-3 * largest)


def test_adapters_that_part_end_the_run(pipeline_folder, tmp_path):
    result = launch(2, pipeline_folder, tmp_path / "two", {"parts": True})
    assert result.returncode != 0
    assert "The processes' adapters differ" in result.stderr


def test_a_reward_that_fails_in_one_process_ends_all_in_its_name(pipeline_folder, tmp_path):
    result = launch(2, pipeline_folder, tmp_path / "two", {"fails_in": 1})
    assert result.returncode != 0
    assert result.stderr.count("RewardError: green") >= 2
    assert list((tmp_path / "two").iterdir()) == []


def test_one_that_fails_ends_the_others(pipeline_folder, tmp_path):
    """By an error that the others are not told of: they wait for its gradients."""
    result = launch(2, pipeline_folder, tmp_path / "two", {"breaks_in": 1})
    assert result.returncode != 0
    assert "no memory left" in result.stderr
    (broken,) = (tmp_path / "two").iterdir()
    assert time.time() - broken.stat().st_mtime < 60  # nobody waits for it: a limit, not a timing


@pytest.mark.parametrize("sharding", ["FSDP", "DEEPSPEED"])
def test_sharding_is_refused(sharding, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{sharding}", "true")
    with pytest.raises(InputError, match=f"use {sharding}.*--multi_gpu"):
        process_state("cpu")


def test_counts_that_cannot_be_shared_are_refused(pipeline_folder, tmp_path):
    result = launch(2, pipeline_folder, tmp_path / "two", {"samples_per_round": 3})
    assert result.returncode != 0
    assert "samples_per_round = 3: 2 processes cannot share it evenly" in result.stderr


def test_one_that_is_killed_ends_the_others(pipeline_folder, tmp_path):
    (tmp_path / "two").mkdir()
    changes = json.dumps({"rounds": 100000})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    launcher = subprocess.Popen(
        [*command, str(WORKER), str(pipeline_folder), str(tmp_path / "two"), changes],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    workers = []
    deadline = time.monotonic() + 120
    while len(workers) < 2 and time.monotonic() < deadline:
        time.sleep(0.5)
        found = subprocess.run(
            ["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True, check=False
        )
        workers = [int(line) for line in found.stdout.split()]
    time.sleep(5)
    os.kill(workers[1], signal.SIGKILL)
    started = time.monotonic()
    assert launcher.wait(timeout=120) != 0
    assert time.monotonic() - started < 60  # nobody waits for the dead: a limit, not a timing
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)

"""Two processes train as one does: real ones, that talk over gloo."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from dpok_cli.engine.distributed import process_state
from dpok_cli.errors import InputError
from support.processes import free_port, ranks
from support.waiting import wait_for

WORKER = Path(__file__).with_name("processes_worker.py")
TWO = "-m torch.distributed.run --standalone --nproc_per_node=2".split()
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
    "batch size, by a reward that compares": dict(
        auto_batch_size=True, batch_size=2, gradient_accumulation=4, compares=True
    ),
}
SMALL = dict(height=16, width=16, num_inference_steps=5)
CASES = {form: ("", changes) for form, changes in FORMS.items()}
#: With a pooled text, with masks of texts, and with a network that takes lists.
CASES |= {family: (family, SMALL) for family in ("sd35", "qwen", "zimage")}


@pytest.fixture
def launch(python, pipeline_folder):
    """Run the worker in so many processes that meet as launchers let them, until all end."""

    def launch(count, output, changes, folder=pipeline_folder):
        output.mkdir()
        task = (WORKER, folder, output, json.dumps(changes))
        started = [python(*task, environment=rank) for rank in ranks(count)]
        for process in started:
            process.wait()
        return started

    return launch


@pytest.fixture
def run(launch):
    """The same, where all must succeed; returns what each saw."""

    def run(count, output, *given):
        ended = launch(count, output, *given)
        assert [process.code for process in ended] == [0] * count, [each.err for each in ended]
        return [json.loads((output / f"{rank}.json").read_text()) for rank in range(count)]

    return run


@pytest.fixture(scope="module")
def seen_alone():
    """What lone processes saw, by their settings."""
    return {}


@pytest.fixture
def of_one(run, seen_alone, tmp_path):
    """What one process sees alone; it is started once for all that compare with it."""

    def of_one(*given):
        key = repr(given)
        if key not in seen_alone:
            (seen_alone[key],) = run(1, tmp_path / "one", *given)
        return seen_alone[key]

    return of_one


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_do_what_one_does(case, run, of_one, family_folder, tmp_path):
    family, changes = CASES[case]
    given = (changes, family_folder(family)) if family else (changes,)
    alone = of_one(*given)
    first, second = run(2, tmp_path / "two", *given)
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
        for key in ("reward/mean", "reward/std", "kl", "loss", "denoiser_evaluations", "samples"):
            own, expected = both["metrics"][0][key], alone["metrics"][0][key]
            assert own == pytest.approx(expected, rel=1e-3, abs=1e-5), key
    assert first["adapter"] == second["adapter"]
    assert first["gradients"] == second["gradients"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_machines_do_what_one_process_does(launcher, python, of_one, pipeline_folder, tmp_path):
    """Two launchers, as on two machines, that meet at one address."""
    (tmp_path / "two").mkdir()
    port = free_port()
    nodes = []
    for node in range(2):
        command = ("-m", *LAUNCHERS[launcher].format(node=node, port=port).split())
        nodes.append(python(*command, WORKER, pipeline_folder, tmp_path / "two", "{}"))
    assert [node.wait() for node in nodes] == [0, 0], [node.err for node in nodes]
    first, second = (json.loads((tmp_path / "two" / f"{k}.json").read_text()) for k in range(2))
    assert (first["processes"], second["processes"]) == (2, 2)
    assert not set(first["seeds"]) & set(second["seeds"])
    assert first["adapter"] == second["adapter"]
    alone = of_one({})
    assert first["latents"] == pytest.approx(alone["latents"], rel=1e-4, abs=1e-3)
    largest = max(map(abs, alone["gradients"][0]))
    assert first["gradients"][0] == pytest.approx(alone["gradients"][0], abs=2e-3 * largest)


@pytest.mark.slow
def test_adapters_that_part_end_the_run(launch, tmp_path):
    for process in launch(2, tmp_path / "two", {"differ": True}):
        assert process.code == 1
        assert "The adapters of the processes differ" in process.err


@pytest.mark.slow
def test_a_reward_that_fails_in_one_process_ends_all_in_its_name(launch, tmp_path):
    for process in launch(2, tmp_path / "two", {"fails_in": 1}):
        assert process.code == 1
        assert "RewardError: green" in process.err
    assert list((tmp_path / "two").iterdir()) == []


@pytest.mark.slow
def test_one_that_fails_ends_the_others(python, pipeline_folder, tmp_path):
    """The others do not see its error; they wait for its gradients."""
    (tmp_path / "two").mkdir()
    changes = json.dumps({"breaks_in": 1})
    launcher = python(*TWO, WORKER, pipeline_folder, tmp_path / "two", changes)
    assert launcher.wait() != 0
    assert "no memory left" in launcher.err
    (broken,) = (tmp_path / "two").iterdir()
    assert time.time() - broken.stat().st_mtime < 60  # nobody waits for it: a limit, not a timing


@pytest.mark.parametrize("sharding", ["FSDP", "DEEPSPEED"])
def test_sharding_is_refused(sharding, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{sharding}", "true")
    with pytest.raises(InputError, match=f"for {sharding}.*--multi_gpu"):
        process_state("cpu")


@pytest.mark.slow
def test_counts_that_cannot_be_shared_are_refused(launch, tmp_path):
    for process in launch(2, tmp_path / "two", {"samples_per_round": 3}):
        assert process.code == 1
        assert "--samples-per-round 3: 2 processes cannot share it evenly" in process.err


@pytest.mark.slow
def test_one_that_is_killed_ends_the_others(python, pipeline_folder, tmp_path):
    (tmp_path / "two").mkdir()
    changes = json.dumps({"rounds": 100000, "signals": True})
    launcher = python(*TWO, WORKER, pipeline_folder, tmp_path / "two", changes)

    def workers():
        found = subprocess.run(
            ["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True, check=False
        )
        return [int(line) for line in found.stdout.split()]

    def both_train():
        return len(list((tmp_path / "two").glob("*.trains"))) == 2

    wait_for(both_train)
    both = workers()
    assert len(both) == 2
    os.kill(both[1], signal.SIGKILL)
    started = time.monotonic()
    assert launcher.wait() != 0
    assert time.monotonic() - started < 60  # nobody waits for the dead: a limit, not a timing
    for worker in both:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)

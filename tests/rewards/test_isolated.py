"""A reward in an environment of its own: its worker's scores, errors, deaths and end."""

import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from dpok_cli.errors import RewardError
from dpok_cli.rewards.environment import python_in
from support.isolated import Isolated, is_alive, pids
from support.waiting import wait_for

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks processes up in /proc")


@pytest.fixture
def log(tmp_path, environments):
    return tmp_path / "pids"


@pytest.fixture
def reward(log):
    return Isolated(Isolated.Options(str(log)))


def images(*reds: int) -> torch.Tensor:
    pixels = torch.zeros(len(reds), 3, 4, 5)
    pixels[:, 0] = torch.tensor(reds).view(-1, 1, 1) / 255
    return pixels


def test_scores_are_those_of_the_worker_in_its_environment(reward, log, capfd):
    assert reward.score(images(200, 7), ["a", "cat"]).tolist() == [201, 10]
    assert reward.score(images(0), ["löwe \u2028"]).tolist() == [6]
    (pid,) = pids(log)  # one worker for both
    command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    assert command[0] == str(python_in(Isolated.environment.folder(Isolated.name)))
    out, err = capfd.readouterr()
    assert out == ""
    assert {"printed while loading", "printed while scoring", "said by a child"} <= set(
        err.splitlines()
    )


def test_a_worker_that_died_is_started_again(reward, log, capfd):
    assert reward.score(images(5), ["die once"]).tolist() == [13]
    assert len(pids(log)) == 2
    line = "isolated: its worker was ended by SIGKILL; starting another."
    assert line in capfd.readouterr().err.splitlines()
    os.kill(pids(log)[-1], signal.SIGTERM)  # between two scores
    assert reward.score(images(5), ["a"]).tolist() == [6]
    assert len(pids(log)) == 3


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("die", "isolated: its worker was ended by SIGKILL, twice in a row"),
        ("exit", "isolated: its worker ended with exit code 3, twice in a row"),
        ("raise", "isolated: ValueError: bad prompt"),
        ("nan", "isolated: returned nan for 'nan'"),
        ("few", "isolated: its worker did not return a list of 1 scores"),
    ],
)
def test_a_failure_is_one_line_and_the_next_score_works(reward, prompt, message):
    with pytest.raises(RewardError) as caught:
        reward.score(images(1), [prompt])
    assert str(caught.value) == message
    assert reward.score(images(1), ["a"]).tolist() == [2]


def test_a_reward_that_cannot_be_loaded_says_why(log):
    with pytest.raises(RewardError) as caught:
        Isolated(Isolated.Options(str(log), fail=True)).prepare()
    assert str(caught.value) == "isolated: could not be loaded: ValueError: no such weights"
    assert pids(log) == []


def test_stopping_ends_a_score_and_the_next_one_works(reward, log):
    def stop():
        wait_for(lambda: len(pids(log)) == 2)  # the worker and its child
        reward.stop()

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(RewardError, match=r"^isolated: was stopped$"):
        reward.score(images(1), ["hang"])
    thread.join()
    reward.stop()  # nothing runs
    assert not any(map(is_alive, pids(log)))  # the child neither
    assert reward.score(images(1), ["a"]).tolist() == [2]


def test_the_worker_ends_with_the_reward(reward, log):
    reward.score(images(1), ["a"])
    (pid,) = pids(log)
    assert is_alive(pid)
    reward.__dict__.pop("_worker").close()
    assert not is_alive(pid)


SCORES = """
import signal
import sys
import torch
from pathlib import Path
from support.isolated import Isolated

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored
Isolated.worker = Path(sys.argv[1])
reward = Isolated(Isolated.Options(sys.argv[2]))
reward.score(torch.zeros(1, 3, 4, 4), [sys.argv[3]])
print("scored", flush=True)
sys.stdin.read() if sys.argv[4:] else None
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_worker_that_scores_ends_however_dpok_does(python, isolated_worker, log, number):
    process = python("-c", SCORES, isolated_worker, log, "hang")
    wait_for(lambda: len(pids(log)) == 2)
    process.send(number)
    assert process.wait() != 0
    wait_for(lambda: not any(map(is_alive, pids(log))))


def test_a_worker_that_waits_ends_when_the_program_does(python, isolated_worker, log):
    process = python("-c", SCORES, isolated_worker, log, "a")
    assert process.wait() == 0, process.err
    assert process.out == "scored\n"
    assert not any(map(is_alive, pids(log)))

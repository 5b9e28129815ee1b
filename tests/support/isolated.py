"""A reward whose environment builds in no time, and whose worker does what prompts say."""

import os
from dataclasses import dataclass
from pathlib import Path

from dpok_cli import Environment, EnvironmentReward

WORKER = """
import json, os, signal, subprocess, sys, time

def load(options, device):
    print("printed while loading")
    if options["fail"]:
        raise ValueError("no such weights")
    with open(options["log"], "a") as log:
        print(os.getpid(), file=log)

    def score(images, prompts):
        print("printed while scoring")
        os.system("echo said by a child")
        assert sys.stdin.read() == ""
        for prompt in prompts:
            if prompt == "die" or (prompt == "die once" and dies_first(options["log"])):
                os.kill(os.getpid(), signal.SIGKILL)
            if prompt == "exit":
                os._exit(3)
            if prompt == "raise":
                raise ValueError("bad\\nprompt")
            if prompt == "hang":
                child = subprocess.Popen(["sleep", "1000"])
                with open(options["log"], "a") as log:
                    print(child.pid, file=log)
                time.sleep(1000)
        if "nan" in prompts:
            return [float("nan")] * len(images)
        if "few" in prompts:
            return []
        return [image.getpixel((0, 0))[0] + len(prompt) for image, prompt in zip(images, prompts)]

    return score

def dies_first(log):
    return len(open(log).readlines()) == 1
"""


class Isolated(EnvironmentReward):
    """The level of red of the first pixel and the length of the prompt."""

    name = "isolated"
    environment = Environment(shared=("pillow",))
    worker = Path(os.devnull)  # `isolated` writes it

    @dataclass(frozen=True)
    class Options:
        log: str  # gets the id of each worker
        fail: bool = False


def pids(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False

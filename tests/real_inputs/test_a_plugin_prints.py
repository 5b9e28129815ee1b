"""A reward whose library prints: a banner at import, progress, native code, a child process.

From scripts that read `--json`, or the path that `dpok sample` prints, and found other lines in it.
"""

import json
import os

import pytest

CHATTY = """
import atexit, ctypes, os, subprocess, sys
from dpok_cli import RewardModel, hookimpl

def talk(where):
    print("printed", where)
    os.write(1, f"written {where}\\n".encode())
    subprocess.run([sys.executable, "-c", f"print('child {where}')"], check=True)

talk("at import")
if "AT_THE_END" in os.environ:
    atexit.register(print, "printed at the end")

class Chatty(RewardModel):
    '''Talks all the time.'''
    name = "chatty"

    def __init__(self, *options):
        super().__init__(*options)
        talk("in the constructor")

    def load(self):
        # C holds this back until the process ends, as its stdout is no terminal.
        ctypes.CDLL(None).printf(b"native code\\n")

    def score_batch(self, images, prompts):
        talk("while scoring")
        return images.mean((1, 2, 3))

@hookimpl
def register_rewards(register):
    register(Chatty)
"""


@pytest.fixture
def chatty(install):
    return install(source=CHATTY)


@pytest.mark.usefixtures("chatty")
def test_stdout_is_the_result_of_every_command(dpok, pipeline_folder):
    code, out, err = dpok("rewards", "--json")
    assert (code, out[:1]) == (0, "{")
    assert "chatty" in {each["name"] for each in json.loads(out)["rewards"]}
    assert "printed at import\n" in err
    assert "written at import\n" in err
    assert "child at import\n" in err
    assert json.loads(dpok("rewards", "show", "chatty", "--json").out)["name"] == "chatty"
    code, out, err = dpok("rewards", "check", "chatty", "--device=cpu", "--json")
    assert json.loads(out)["reward"] == "chatty"
    assert {"written in the constructor", "child while scoring"} < set(err.splitlines())

    model = f"--model={pipeline_folder} --device=cpu --num-inference-steps=2".split()
    training = "--prompt=cat --rounds=1 --samples-per-round=2 --batch-size=2 --evaluation-samples=0"
    code, out, err = dpok(
        *("train-rl", *model, *training.split(), "--name=run", "--reward=chatty"),
        *("--updates-per-round=1", "--sample-every=0", "--tracker=", "--lora-rank=2"),
    )
    assert code == 0, err
    names = [line.partition(":")[0] for line in out.splitlines()]
    assert names == ["Adapter", "Next", "For ComfyUI or A1111"]
    code, out, err = dpok(
        *("evaluate", *model, "--run=run", "--reward=chatty", "--samples=2", "--json")
    )
    assert code == 0, err
    assert json.loads(out)["rewards"][0]["name"] == "chatty"
    assert "written while scoring" in err.splitlines()


@pytest.mark.skipif(os.name != "posix", reason="loads libc by its name there")
def test_nothing_comes_after_the_result_either(chatty, python):
    """What native code prints and what is printed at exit comes when the command is over."""
    path = os.pathsep.join(filter(None, (str(chatty), os.environ.get("PYTHONPATH"))))
    command = ("-m", "dpok_cli", "rewards", "check", "chatty", "--device=cpu", "--json")
    checked = python(*command, environment={"PYTHONPATH": path, "AT_THE_END": "1"}, fresh=True)
    assert checked.wait() == 0, checked.err
    assert json.loads(checked.out)["reward"] == "chatty"
    assert {"native code", "printed at the end"} < set(checked.err.splitlines())


def test_help_and_version_are_on_stdout(dpok):
    for arguments in (("--version",), ("--help",), ("rewards", "show", "--help")):
        code, out, err = dpok(*arguments)
        assert (code, err) == (0, "")
        assert "dpok" in out

"""The command line as a whole: help, version, and how errors become one line."""

import os
import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import pytest

from dpok_cli import cli, config, errors
from dpok_cli.config import flags as options
from dpok_cli.engine.rl.settings import TrainRLConfig

ROOT = Path(__file__).parent.parent

LIGHT = """
import sys
from dpok_cli import cli
for arguments in {commands!r}:
    cli.run(arguments)
heavy = {{"torch", "transformers", "diffusers", "peft", "accelerate", "numpy", "PIL", "matplotlib"}}
print("HEAVY", sorted(heavy & set(sys.modules)))
"""


def test_nothing_heavy_is_imported_before_it_is_needed(tmp_path):
    commands = [
        ["--help"],
        ["--version"],
        ["train-rl", "--help"],
        ["train-rl", "--preset", "sd15", "--print-config"],
        ["train-rl", "--rounds", "0"],
        ["train-rl", "--prompt", "a cat", "--reward", "no-such-reward"],
        ["train-rl", "--prompt", "a cat", "--model", "."],
        ["train-sft", "--help"],
        ["train-sft", "--prompt", "a cat", "--dataset", "."],
        ["train-sft", "--prompt", "a cat", "--init-adapter", "no-such-adapter"],
        ["sample", "--run", "no-such-run"],
        ["evaluate", "--help"],
        ["evaluate", "--run", "no-such-run"],
        ["rewards"],
    ]
    (tmp_path / "notes.txt").write_text("no image set")
    result = subprocess.run(
        [sys.executable, "-c", LIGHT.format(commands=commands)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert "HEAVY []" in result.stdout
    assert "train-rl" in result.stdout
    assert result.stderr.count("Error: ") == 7


def test_as_a_module(tmp_path):
    command = [sys.executable, "-m", "dpok_cli", "train-rl", "--rounds", "0"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "Error: --rounds 0: must be >= 1.\n"


def test_version_is_the_one_of_the_package(dpok):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert dpok("--version") == (0, f"dpok {project['version']}\n", "")
    assert version("dpok") == project["version"]


def test_without_a_command_it_is_the_help(dpok):
    bare, asked = dpok(), dpok("--help")
    assert bare.code == asked.code == 0
    assert bare.out == asked.out
    assert all(command in bare.out for command in ("train-rl", "sample", "rewards"))


TRAINING = {"train-rl": TrainRLConfig, "train-sft": config.TrainSFTConfig}


@pytest.mark.parametrize("command", TRAINING)
def test_help_of_training_groups_every_setting_with_its_default(command, dpok, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    text = dpok(command, "--help").out
    heads = re.findall(r"╭─ (\w+) ", text)
    other = {"train-rl": "Images", "train-sft": "Rollout"}[command]
    assert heads == ["Options", *(panel for panel in options.PANELS if panel != other)]
    for field in fields(TRAINING[command]):
        flag = {"prompts": "prompt", "rewards": "reward"}.get(field.name, field.name)
        assert f"--{flag.replace('_', '-')} " in text
    assert re.search(r"--guidance-scale .*default: \(3\.0; sd15: 7\.5\)", text)
    if command == "train-rl":
        assert re.search(r"--beta .*default: \(0\.3; sd15: 0\.01\)", text)
        assert re.search(r"--kl +epsilon\|gaussian .*default: \(epsilon\)", text)
    assert re.search(r"--lora-targets .*By default the family's attention layers\.", text)


def test_printed_config_repeats_itself(dpok, tmp_path):
    flags = ("--preset", "sd15", "--prompt", 'a "cat" [red]x[/red]', "--alpha", "2", "--name", "x")
    printed = dpok("train-rl", *flags, "--print-config")
    assert (printed.code, printed.err) == (0, "")
    assert list(tmp_path.iterdir()) == []
    file = tmp_path / "config.toml"
    file.write_text(printed.out)
    assert config.resolve(TrainRLConfig, file=file) == config.resolve(
        TrainRLConfig,
        "sd15",
        prompts=('a "cat" [red]x[/red]',),
        alpha=2.0,
        name="x",
    )
    assert dpok("train-rl", "--config", str(file), "--print-config").out == printed.out


@pytest.fixture
def fail_with(monkeypatch):
    """Give the command line a command, ``fail``, that raises an error."""

    def fail_with(error):
        def fail():
            raise error

        commands = list(cli.app.registered_commands)
        monkeypatch.setattr(cli.app, "registered_commands", commands)
        cli.app.command("fail")(fail)

    return fail_with


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (errors.InputError("Bad. Say [red]this[/red]."), 2, "Error: Bad. Say [red]this[/red]."),
        (errors.RewardError("judge: failed\n  twice"), 1, "Error: judge: failed twice"),
        (errors.DpokError("x" * 300), 1, "Error: " + "x" * 300),
        (
            ZeroDivisionError("by\nzero"),
            1,
            "Error: ZeroDivisionError: by zero (set DPOK_DEBUG=1 for the traceback)",
        ),
    ],
)
def test_an_error_is_one_line(error, code, line, dpok, fail_with):
    fail_with(error)
    assert dpok("fail") == (code, "", line + "\n")


def test_debugging_shows_the_traceback(dpok, fail_with, monkeypatch):
    fail_with(ZeroDivisionError("by zero"))
    monkeypatch.setenv("DPOK_DEBUG", "1")
    code, out, err = dpok("fail")
    assert (code, out) == (1, "")
    assert err.startswith("Traceback")
    assert err.endswith("\nError: ZeroDivisionError: by zero\n")


def test_an_interrupt_is_130(dpok, fail_with):
    fail_with(KeyboardInterrupt())
    assert dpok("fail").code == 130


LOSE = """
import signal, sys, time, weakref
from dpok_cli import cli

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

class Thing: pass

def interrupt(_):
    signal.raise_signal(signal.SIGINT)
    time.sleep(0)  # where Python looks for signals: still within the callback

def command():
    thing = Thing()
    reference = weakref.ref(thing, interrupt)
    del thing
    time.sleep(20)
    print("It went on.")

cli.app = lambda *_, **__: command()
cli.main()
"""


def test_an_interrupt_in_a_callback_of_the_garbage_collector_is_not_lost():
    result = subprocess.run([sys.executable, "-c", LOSE], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


def test_main_exits_with_the_code(monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(sys, "argv", ["dpok", "train-rl", "--rounds", "0"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2


def test_every_package_is_installed():
    """The packages are listed by hand, since `plugins/` is installed under another name."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        ".".join(Path(folder).relative_to(ROOT).parts)
        for name in ("dpok_cli", "plugins")
        for folder, _, files in os.walk(ROOT / name)
        if "__init__.py" in files
    }
    listed = set(setuptools["packages"]) - {"dpok_plugins"} | {"plugins"}
    assert folders == listed

"""Terminals and systems unlike a developer's: no cursor, no UTF-8, no fonts, Windows, a pipe.

From logs of editors' shells and of continuous integration, and from reports of users on Windows.
"""

import io
import os
import sys
import tomllib
import warnings

import pytest
from rich.console import Console

from dpok_cli import RewardModel
from dpok_cli.display import console, tables
from dpok_cli.display.training import TrainingView
from dpok_cli.engine.evaluation.contenders import BASE
from dpok_cli.engine.evaluation.report.plots import plot_evaluation
from dpok_cli.engine.rl.measures import rl_measures
from dpok_cli.engine.rl.settings import TrainRLConfig
from dpok_cli.engine.runs import plots
from dpok_cli.rewards.check import check
from support.text import Terminal

CAT = "\N{CJK UNIFIED IDEOGRAPH-732B}"


class Feline(RewardModel):
    __doc__ = f"Finds {CAT}, which is a word that this screen may lack, and says so at length."
    name = "feline"

    def score_batch(self, images, prompts):
        return images.mean((1, 2, 3))


# ------------------------------------------------------------------------ screens without a cursor


def watch(monkeypatch, stream, **environment):
    """Show two rounds of training, and a progress bar, on this stream."""
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    screen = Console(file=stream, width=100)
    monkeypatch.setattr(console, "err", screen)
    config = TrainRLConfig(rounds=2)
    measures = rl_measures(config.objective_class)
    with TrainingView(config, measures, "round", 2) as view:
        for number in (1, 2):
            view.show({one.key: 0.0 for one in measures} | {"round": number, "reward/std": 1.0})
            view.warn("look")
    times = iter(range(0, 1000, 7))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(times))
    assert list(console.progress("abcdef", 6, "Drawing")) == [*"abcdef"]
    return stream.getvalue()


ROUNDS = ["round 1/2", "Warning: look", "round 2/2", "Warning: look"]


def starts(text):
    """The first two words of the lines on rounds, and of warnings."""
    lines = (line.split() for line in text.splitlines())
    return [" ".join(words[:2]) for words in lines if words[0] in ("round", "Warning:")]


def test_a_dumb_terminal_gets_a_line_a_round(monkeypatch):
    text = watch(monkeypatch, Terminal(), TERM="dumb")
    assert starts(text) == ROUNDS
    assert "\x1b" not in text
    assert "\r" not in text


def test_forced_colour_is_no_cursor(monkeypatch):
    text = watch(monkeypatch, io.StringIO(), FORCE_COLOR="1", TERM="xterm")
    assert starts(text) == ROUNDS
    for code in ("\x1b[?25l", "\x1b[1A", "\x1b[2K", "\r"):
        assert code not in text


def test_long_work_says_how_far_it_is_in_a_log(monkeypatch):
    lines = watch(monkeypatch, io.StringIO()).splitlines()
    # The clock moves on by 7 s whenever it is read; a line is due after 10.
    assert [line for line in lines if line.startswith("Drawing")] == [
        "Drawing 2/6",
        "Drawing 4/6",
        "Drawing 6/6",
    ]


# ------------------------------------------------------------------------------------------- pipes


def test_a_row_of_a_table_in_a_pipe_is_a_line(dpok, install):
    install(Feline, package="dpok-a-package-with-a-long-name")
    code, out, _ = dpok("rewards")
    assert code == 0
    names = [line.split()[0] for line in out.splitlines()[1:]]
    assert names == sorted(names)
    (line,) = (line for line in out.splitlines() if line.startswith("feline"))
    assert line.rstrip().endswith(Feline.__doc__)


def test_names_of_runs_are_whole_on_a_narrow_terminal(monkeypatch):
    name = "20260728-143000-train-rl"  # as runs are called by default
    ends = {"low": 0.1, "high": 0.4, "difference_low": -0.25, "difference_high": 0.75}
    head = {"scope": "group", "group": "seen", "category": "", "prompt": "", "measure": "judge"}
    rows = [
        head | {"model": "base", "mean": 0.25, "difference": None, "win_rate": None} | ends,
        head | {"model": name, "mean": 0.75, "difference": 0.5, "win_rate": 0.875} | ends,
    ]
    results = {"rewards": [{"name": "judge", "trained_by": [name]}], "rows": rows}
    lines = {}
    for width in (80, 120):
        stream = Terminal()
        monkeypatch.setattr(console, "out", Console(file=stream, width=width, color_system=None))
        console.show(tables.evaluation_table(results))
        lines[width] = [line.split() for line in stream.getvalue().splitlines() if line.strip()]
    cells = "0.750 [0.10, 0.40] +0.500 [-0.25, +0.75] 88%".split()
    base = "base 0.250 [0.10, 0.40]".split()
    assert lines[80][1:] == [["judge"], base, [f"{name}*", *cells]]
    assert lines[120][1:] == [["judge", *base], [f"{name}*", *cells]]


# ------------------------------------------------------------------------------- screens' encodings


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_printed_settings_can_be_read_back(encoding, python, dpok, tmp_path):
    command = ("-m", "dpok_cli", "train-rl", "--print-config")
    printed = python(
        *(*command, "--prompt", CAT), environment={"PYTHONIOENCODING": encoding}, fresh=True
    )
    assert printed.wait() == 0, printed.err
    (tmp_path / "settings.toml").write_text(printed.out, "utf-8")
    code, out, err = dpok("train-rl", "--config=settings.toml", "--print-config")
    assert (code, out) == (0, printed.out), err
    assert tomllib.loads(out)["prompts"] == [CAT]


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_a_terminal_shows_what_it_can(install, tmp_path):
    import pty
    import subprocess

    site = install(source=FELINE)
    ours, theirs = pty.openpty()
    path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path, "PYTHONIOENCODING": "ascii", "COLUMNS": "200"}
    with subprocess.Popen(
        [sys.executable, "-m", "dpok_cli", "rewards"],
        stdout=theirs,
        stderr=subprocess.PIPE,
        env=environment,
        cwd=tmp_path,
    ) as listed:
        os.close(theirs)
        shown = b""
        try:
            while more := os.read(ours, 65536):
                shown += more
        except OSError:  # the end of a pseudo-terminal
            pass
        assert (listed.wait(), listed.stderr.read()) == (0, b"")
    os.close(ours)
    assert "Finds ?." in shown.decode("ascii"), shown.decode("ascii")


FELINE = f"""
from dpok_cli import RewardModel, hookimpl

class Feline(RewardModel):
    '''Finds {CAT}.'''
    name = "feline"
    def score_batch(self, images, prompts): ...

@hookimpl
def register_rewards(register):
    register(Feline)
"""

# ------------------------------------------------------------------------------------------ systems


def test_memory_is_measured_where_there_is_no_module_resource(monkeypatch):
    import psutil

    class Process:
        def memory_info(self):
            return type("Info", (), {"peak_wset": 123_000_000})

    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(psutil, "Process", Process)
    assert check(Feline()).peak_memory == 123_000_000


NAMES = [CAT, "$x_{1$", r"$\nonsense$", "a_b^c"]


@pytest.mark.parametrize("name", NAMES)
def test_plots_draw_any_name_and_warn_of_nothing(name, tmp_path):
    keys = "low high difference difference_low difference_high win_rate win_low win_high"
    row = dict.fromkeys(keys.split()) | {"scope": "group", "group": name, "mean": 0.5}
    rows = [
        row | {"model": each, "measure": name, "low": 0.4, "high": 0.6} for each in (BASE, name)
    ]
    results = {"rewards": [{"name": name, "trained_by": [name]}], "rows": rows}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (file,) = plot_evaluation(results, tmp_path)
    assert file.stat().st_size > 1000


def test_plots_use_the_fonts_that_are_there(monkeypatch):
    import matplotlib
    from matplotlib.font_manager import fontManager

    font = type("Font", (), {"name": "Yu Gothic"})
    monkeypatch.setattr(fontManager, "ttflist", [font])
    before = matplotlib.rcParams["font.family"]
    with plots.plain_texts():
        assert matplotlib.rcParams["font.family"] == ["sans-serif", "Yu Gothic"]
    assert matplotlib.rcParams["font.family"] == before


def test_a_tab_is_printed_as_it_is(dpok):
    """A prompt that was pasted from a spreadsheet."""
    printed = dpok("train-rl", "--prompt=a\tcat", "--print-config").out
    assert tomllib.loads(printed)["prompts"] == ["a\tcat"]

"""What a person sees of a run."""

import io

import pytest
from rich.console import Console

from dpok_cli.display import console
from support.text import Terminal


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([3.0], "▁"),
        ([2.0, 2.0], "▁▁"),
        ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"),
        ([-1.0, 1.0, 0.0], "▁█▅"),
    ],
)
def test_sparkline(values, line):
    assert console.sparkline(values) == line


def test_sparkline_of_many_values_averages_them():
    assert console.sparkline([0, 2, 7, 9, 14, 16], width=3) == "▁▅█"
    assert len(console.sparkline(list(range(1001)), width=30)) == 30


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (245, "4:05"), (3845, "1:04:05")],
)
def test_duration(seconds, text):
    assert console.duration(seconds) == text


def test_a_result_is_written_as_it_is(monkeypatch):
    stream = io.StringIO()
    text = "[bold]runs[/bold]/ :cat: \t" + "x" * 200
    monkeypatch.setattr(console, "out", Console(file=stream, width=40))
    console.say(text, console.out)
    assert stream.getvalue() == text + "\n"


@pytest.mark.parametrize(
    ("terminal", "written"),
    [(False, "one two three\n"), (True, "one two\nthree\n")],
)
def test_only_a_terminal_wraps_lines(terminal, written, monkeypatch):
    stream = Terminal() if terminal else io.StringIO()
    screen = Console(file=stream, width=8, color_system=None)
    monkeypatch.setattr(console, "err", screen)
    console.say("one two three")
    assert [line.rstrip() for line in stream.getvalue().splitlines()] == written.splitlines()

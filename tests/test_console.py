"""What a person sees of a run."""

import io

import pytest
from rich.console import Console

from dpok_cli import console
from dpok_cli.config import TrainRLConfig

RECORD = {
    "round": 1.0,
    "samples": 24.0,
    "reward/mean": 0.25,
    "reward/std": 0.5,
    "kl": 1.25e-4,
    "loss": -0.1,
    "ratio/mean": 1.00021,
    "ratio/first_max_dev": 1e-7,
    "clip_fraction": 0.125,
    "grad_norm": 0.3,
    "seconds/rollout": 1.5,
    "seconds/reward": 0.5,
    "seconds/update": 2.0,
}


def records(count, **changes):
    """Make the records of ``count`` rounds; a change is a value, or one for each round."""
    made = []
    for number in range(count):
        now = {
            k.replace("__", "/"): v[number] if isinstance(v, list) else v
            for k, v in changes.items()
        }
        made.append(RECORD | {"round": number + 1.0} | now)
    return made


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


def test_time_left_is_by_the_last_ten_rounds():
    slow_start = [100.0] * 5 + [1.0] * 10
    history = records(15, seconds__rollout=slow_start, seconds__reward=0.0, seconds__update=1.0)
    assert console.seconds_left(history, 40) == pytest.approx(2.0 * 25)


def test_plain_line():
    assert console.plain_line(records(1), 30) == (
        "round 1/30  reward 0.250 ± 0.500  kl 1.25e-04  ratio 1.0002  clipped 12%  4.0 s  left 1:56"
    )


FALLING = [1.0] * 5 + [0.7] * 15
FLAT = [0.3] * 20


@pytest.mark.parametrize(
    ("rounds", "changes", "settings", "metrics"),
    [
        (1, {}, {}, set()),
        (1, {"reward__std": 0.0}, {}, {"reward/std"}),
        (1, {"ratio__first_max_dev": 2e-3}, {}, {"ratio/first_max_dev"}),
        (1, {"ratio__first_max_dev": 2e-3}, {"ratio_clip": 0.1}, set()),
        (1, {"clip_fraction": 0.61}, {}, {"clip_fraction"}),
        (20, {"reward__mean": FALLING}, {}, {"reward/mean"}),
        (19, {"reward__mean": FALLING}, {}, set()),
        (20, {"reward__mean": FLAT}, {}, {"reward/mean"}),
        (20, {"reward__mean": [0.1 * number for number in range(20)]}, {}, set()),
    ],
)
def test_hints(rounds, changes, settings, metrics):
    assert set(console.hints(records(rounds, **changes), TrainRLConfig(**settings))) == metrics


def test_hints_say_what_to_do():
    fallen = console.hints(records(20, reward__mean=FALLING), TrainRLConfig())
    flat = console.hints(records(20, reward__mean=FLAT), TrainRLConfig())
    assert "lower --learning-rate" in fallen["reward/mean"]
    assert "raise --learning-rate" in flat["reward/mean"]


def view(monkeypatch, quiet=False, **terminal):
    stream = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=stream, width=100, **terminal))
    with console.TrainingView(TrainRLConfig(rounds=3), quiet) as shown:
        assert not shown.live or "Drawing the first round ..." in stream.getvalue()
        for record in records(3, reward__mean=[0.0, 0.5, 1.0], clip_fraction=[0.1, 0.7, 0.8]):
            shown.show(record)
    return stream.getvalue()


def test_piped_it_is_one_line_a_round_and_each_hint_once(monkeypatch):
    lines = view(monkeypatch).splitlines()
    assert [line.split()[:2] for line in lines if line.startswith("round")] == [
        ["round", "1/3"],
        ["round", "2/3"],
        ["round", "3/3"],
    ]
    assert len(lines) == 4
    assert lines[2].startswith("  hint: 70% of the ratios are clipped")


def test_on_a_terminal_it_is_a_live_view(monkeypatch):
    text = view(monkeypatch, force_terminal=True, color_system=None)
    last = text[text.rindex("Round 3/3") :]
    assert "0:00 left" in last
    assert "1.000 ± 0.500  ▁▅█" in last
    assert "1.0002         80% clipped" in last
    assert "4.0            1.5 rollout, 0.5 reward, 2.0 update" in last
    assert "! 80% of the ratios are clipped" in last


@pytest.mark.parametrize("terminal", [{}, {"force_terminal": True}])
def test_quiet_shows_nothing(terminal, monkeypatch):
    assert view(monkeypatch, quiet=True, **terminal) == ""


def test_table_of_before_and_after():
    stream = io.StringIO()
    table = console.before_after_table(
        {"judge": 0.25, "kilobytes": 12.0}, {"judge": 0.875, "kilobytes": 9.5}
    )
    Console(file=stream, width=60).print(table)
    assert [line.split() for line in stream.getvalue().splitlines()] == [
        ["before", "after", "change"],
        ["judge", "0.250", "0.875", "+0.625"],
        ["kilobytes", "12.000", "9.500", "-2.500"],
    ]


def test_a_text_is_printed_as_it_is():
    stream = io.StringIO()
    text = "[bold]runs[/bold]/ :cat: " + "x" * 200
    console.say(text, Console(file=stream, width=40))
    assert stream.getvalue() == text + "\n"


@pytest.mark.parametrize(
    ("terminal", "written"),
    [(False, "one two three\n"), (True, "one two\nthree\n")],
)
def test_only_a_terminal_wraps_lines(terminal, written, monkeypatch):
    stream = io.StringIO()
    screen = Console(file=stream, width=8, force_terminal=terminal, color_system=None)
    monkeypatch.setattr(console, "err", screen)
    console.say("one two three")
    assert [line.rstrip() for line in stream.getvalue().splitlines()] == written.splitlines()

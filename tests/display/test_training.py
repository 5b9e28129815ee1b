"""What a person sees of a run while it trains."""

import io
import re

import pytest
from rich.console import Console

from dpok_cli.config import TrainSFTConfig
from dpok_cli.display import console
from dpok_cli.display.training import SFTView, TrainingView
from dpok_cli.engine.rl.measures import rl_measures
from dpok_cli.engine.rl.settings import TrainRLConfig
from dpok_cli.engine.sft.measures import SFT_MEASURES
from support.text import Terminal

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
    "skipped": 0.0,
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


def rl(config, quiet=False):
    measures = rl_measures(config.objective_class)
    return TrainingView(config, measures, "round", config.rounds, quiet=quiet)


def sft(config, quiet=False):
    return SFTView(config, SFT_MEASURES, "step", config.steps, config.log_every, quiet=quiet)


def rl_view(history, **settings):
    view = rl(TrainRLConfig(**settings), quiet=True)
    view.records = history
    return view


def test_time_left_is_by_the_last_ten_rounds():
    slow_start = [100.0] * 5 + [1.0] * 10
    history = records(15, seconds__rollout=slow_start, seconds__reward=0.0, seconds__update=1.0)
    assert rl_view(history, rounds=40).seconds_left() == pytest.approx(2.0 * 25)


def test_plain_line():
    assert rl_view(records(1), rounds=30).line() == (
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
    assert set(rl_view(records(rounds, **changes), **settings).hints()) == metrics


def test_hints_say_what_to_do():
    fallen = rl_view(records(20, reward__mean=FALLING)).hints()
    flat = rl_view(records(20, reward__mean=FLAT)).hints()
    assert "lower --learning-rate" in fallen["reward/mean"]
    assert "raise --learning-rate" in flat["reward/mean"]


def view(monkeypatch, quiet=False, terminal=False, **options):
    stream = Terminal() if terminal else io.StringIO()
    screen = Console(file=stream, width=100, color_system=None, **options)
    monkeypatch.setattr(console, "err", screen)
    with rl(TrainRLConfig(rounds=3), quiet) as shown:
        assert not shown.live or "Starting ..." in stream.getvalue()
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
    text = view(monkeypatch, terminal=True)
    last = text[text.rindex("Round 3/3") :]
    assert "0:00 left" in last
    assert "1.000 ± 0.500  ▁▅█" in last
    assert re.search(r"ratio +1\.0002", last)
    assert re.search(r"clipped +80%", last)
    assert "4.0            1.5 rollout, 0.5 reward, 2.0 update" in last
    assert "! 80% of the ratios are clipped" in last


@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_shows_nothing(terminal, monkeypatch):
    assert view(monkeypatch, quiet=True, terminal=terminal) == ""


# ------------------------------------------------------------------ supervised fine-tuning

STEP = {
    "samples": 40,
    "reward/mean": 0.25,
    "reward/std": 0.5,
    "weight/zero": 30,
    "loss": 0.5,
    "kl": 1e-3,
    "grad_norm": 0.25,
    "learning_rate": 1e-3,
    "skipped": 0,
    "seconds/update": 2.0,
}


def view_sft(monkeypatch, quiet=False, terminal=False):
    stream = Terminal() if terminal else io.StringIO()
    screen = Console(file=stream, width=100, color_system=None)
    monkeypatch.setattr(console, "err", screen)
    with sft(TrainSFTConfig(steps=25, log_every=10), quiet) as shown:
        for done in (2, 3, 4, 20, 39, 40):
            shown.drawn(done, 40)
        for step in (10, 20, 25):
            shown.show(STEP | {"step": step, "loss": 1 / step})
    return stream.getvalue()


def test_piped_it_is_a_line_for_a_tenth_of_the_images_and_one_for_each_record(monkeypatch):
    lines = view_sft(monkeypatch).splitlines()
    images = [line.split()[1] for line in lines if line.startswith("images ")]
    assert images == ["4/40", "20/40", "39/40", "40/40"]
    assert lines[4] == "40 images: reward 0.250 ± 0.500, 30 weights cut to zero"
    assert lines[5:] == [
        f"step {step}/25  loss {1 / step:.4f}  kl 1.00e-03  grad norm 0.250  lr 1.0e-03  2.0 s"
        f"  left {left}"
        for step, left in ((10, "0:04"), (20, "0:02"), (25, "0:00"))
    ]


def test_on_a_terminal_the_images_and_the_steps_are_live(monkeypatch):
    text = view_sft(monkeypatch, terminal=True)
    assert "Images 20/40" in text
    last = text[text.rindex("Step 25/25") :]
    assert "reward 0.250 ± 0.500, 30 weights cut to zero" in last
    assert "0.0400" in last


@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_shows_nothing_of_the_images(terminal, monkeypatch):
    assert view_sft(monkeypatch, quiet=True, terminal=terminal) == ""


@pytest.mark.parametrize(
    ("changes", "metrics"),
    [({}, set()), ({"weight/zero": 39}, {"weight/zero"}), ({"skipped": 2}, {"skipped"})],
)
def test_hints_of_steps(changes, metrics):
    view = sft(TrainSFTConfig(), quiet=True)
    view.records = [STEP | {"step": 10} | changes]
    assert set(view.hints()) == metrics

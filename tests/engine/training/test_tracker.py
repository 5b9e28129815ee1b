"""A tracker that is unreachable or not installed: training continues, and one warning says so."""

import pytest
from accelerate import Accelerator

from dpok_cli.config import TrainSFTConfig
from dpok_cli.engine.rl.loop import train_rl
from dpok_cli.engine.runs.folder import RunFolder
from dpok_cli.engine.sft.loop import train_sft


class Away:
    """Was there when training began; no call reaches it now."""

    name = "away"

    def start(self):
        pass

    def log(self, values, step=None, **_):
        raise ConnectionError("no route\nto host")

    def finish(self):
        raise ConnectionError("no route to host")


@pytest.fixture
def train(make_config, make_model, green, tmp_path):
    """Trains with a tracker; returns the records and what was told."""

    def train(tracker, **changes):
        config = make_config(runs_dir=str(tmp_path), name="run", tracker=tracker, **changes)
        told = []
        run = RunFolder.create(config)
        records = list(train_rl(config, make_model(), green, run, warn=told.append))
        assert run.history() == records
        assert (run.adapter / "pytorch_lora_weights.safetensors").is_file()
        return [record["round"] for record in records], told

    return train


def test_that_cannot_be_reached_at_the_start(train, monkeypatch):
    def unreachable(*_):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(Accelerator, "init_trackers", unreachable)
    assert train("tensorboard") == (
        [1, 2],
        ["The tracker tensorboard cannot be used, and training continues without it: no route to"
         " host."],
    )  # fmt: skip


@pytest.mark.parametrize("call", ["log", "finish"])
def test_that_goes_away(call, train, monkeypatch):
    if call == "finish":
        monkeypatch.setattr(Away, "log", lambda *_, **__: None)
    monkeypatch.setattr(
        Accelerator, "init_trackers", lambda self, name: self.trackers.append(Away())
    )
    rounds, told = train("tensorboard")
    assert rounds == [1, 2]
    assert told == [
        "The tracker tensorboard cannot be used, and training continues without it: no"
        " route to host."
    ]


def test_that_is_not_installed(train):
    rounds, told = train("aim")
    assert rounds == [1, 2]
    assert told == [
        "The tracker aim cannot be used, and training continues without it: it is not installed."
    ]


def test_of_supervised_fine_tuning(make_config, make_model, green, tmp_path):
    config = make_config(TrainSFTConfig, runs_dir=str(tmp_path), name="run", tracker="aim")
    told = []
    run = RunFolder.create(config)
    records = list(train_sft(config, make_model(), green, run, warn=told.append))
    assert [record["step"] for record in records] == [2, 4]
    assert len(told) == 1


def test_damaged_checkpoints_are_told_in_both(make_config, make_model, green, tmp_path):
    for kind, loop in ((None, train_rl), (TrainSFTConfig, train_sft)):
        name = loop.__name__
        more = dict(runs_dir=str(tmp_path), name=name, checkpoint_every=1)
        config = make_config(*filter(None, [kind]), **more)
        run = RunFolder.create(config)
        list(loop(config, make_model(), green, run))
        newest = sorted(run.checkpoints.iterdir())[-1]
        (newest / "manifest.json").write_text("{")
        told = []
        list(loop(config, make_model(), green, run, warn=told.append))
        assert [str(newest) in what and "skipped" in what for what in told] == [True]


def test_a_record_is_sent_under_its_own_round(
    make_config, make_model, green, tmp_path, monkeypatch
):
    sent = []
    monkeypatch.setattr(Accelerator, "log", lambda self, values, step: sent.append((step, values)))
    monkeypatch.setattr(Accelerator, "init_trackers", lambda self, name: self.trackers.append(name))
    monkeypatch.setattr(Accelerator, "end_training", lambda self: None)
    config = make_config(runs_dir=str(tmp_path), name="run", tracker="tensorboard")
    list(train_rl(config, make_model(), green, RunFolder.create(config)))
    assert [(step, values["round"]) for step, values in sent] == [(1, 1), (2, 2)]

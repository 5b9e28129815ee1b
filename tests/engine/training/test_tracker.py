"""Trackers: what they are sent, what a resume continues, and one that is not there."""

import json
from io import BytesIO

import accelerate.tracking
import numpy as np
import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType
from PIL import Image
from torch import device

from dpok_cli.config import TrainSFTConfig
from dpok_cli.engine.distributed import accelerator_for
from dpok_cli.engine.rl.loop import train_rl
from dpok_cli.engine.runs.folder import RunFolder
from dpok_cli.engine.sft.loop import train_sft
from dpok_cli.engine.training.tracker import LONGEST, Tracker


class Away(GeneralTracker):
    """Was there when training began; no call reaches it now."""

    name = "away"
    requires_logging_directory = False
    tracker = None

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
    def unreachable(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(Accelerator, "init_trackers", unreachable)
    assert train("tensorboard") == (
        [1, 2],
        ["The tracker tensorboard cannot be used, and training continues without it: no route to"
         " host."],
    )  # fmt: skip


def fail(*_, **__):
    raise ConnectionError("no route to host")


@pytest.mark.parametrize("call", ["log", "finish"])
def test_that_goes_away(call, train, monkeypatch):
    if call == "finish":
        monkeypatch.setattr(Away, "log", lambda *_, **__: None)
    monkeypatch.setattr(
        Accelerator, "init_trackers", lambda self, *_, **__: self.trackers.append(Away())
    )
    rounds, told = train("wandb")
    assert rounds == [1, 2]
    assert told == [
        "The tracker wandb cannot be used, and training continues without it: no route to host."
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


# ----------------------------------------------------------------------------------- what is sent


def picture(number):
    """The sample grid of a round."""
    return Image.linear_gradient("L").rotate(90 * number).resize((24, 16)).convert("RGB")


@pytest.fixture
def run(make_config, tmp_path):
    return RunFolder.create(make_config(runs_dir=str(tmp_path / "runs"), name="mine"))


@pytest.fixture
def track(make_config):
    """Tracks rounds of a run, from the one after ``number``; returns the config and warnings."""

    def track(name, run, number=0, rounds=2, close=True, **changes):
        config, told = make_config(rounds=rounds, tracker=name, **changes), []
        place = run.path / name if run else None
        accelerator = accelerator_for(device("cpu"), "fp32", log_with=name, project_dir=place)
        tracker = Tracker(name, run, accelerator, told.append)
        tracker.start(number, config)
        for each in range(number and number + 1, rounds + 1):
            tracker.log_grid(each, picture(each))
            tracker.log(each, {"round": each, "reward/mean": each / 4})
        if close:
            tracker.close()
        return config, told

    return track


def events(run, name="mine"):
    """What TensorBoard reads of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    everything = EventAccumulator(
        str(run.path / "tensorboard" / name),
        size_guidance=dict.fromkeys(("scalars", "images", "tensors"), 0),
    )
    return everything.Reload()


def steps(found):
    return [event.step for event in found]


def hyperparameters(read):
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = read.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    sent = HParamsPluginData.FromString(content).session_start_info.hparams
    return {key: getattr(value, value.WhichOneof("kind")) for key, value in sent.items()}


def test_tensorboard_has_numbers_pictures_and_settings(make_config, make_model, green, tmp_path):
    config = make_config(
        prompts=("a red cat", "x" * LONGEST),
        runs_dir=str(tmp_path),
        name="mine",
        tracker="tensorboard",
        sample_every=1,
        sample_count=2,
    )
    run = RunFolder.create(config)
    records = list(train_rl(config, make_model(), green, run))
    assert {file.parent for file in run.path.rglob("events.*")} == {run.path / "tensorboard/mine"}
    read = events(run)
    assert set(records[0]) == set(read.Tags()["scalars"])
    rewards = read.Scalars("reward/mean")
    assert [event.value for event in rewards] == pytest.approx(
        [record["reward/mean"] for record in records]
    )
    assert steps(rewards) == [1, 2]
    assert steps(read.Scalars("grid/reward")) == [0, 1, 2]
    # Of W&B's entries with one name the last one stays.
    assert read.Tags()["images"] == ["grid/images"]
    assert "grid/images" not in records[0]
    assert steps(read.Images("grid/images")) == [0, 1, 2]
    for number, event in enumerate(read.Images("grid/images")):
        with Image.open(run.samples / f"round-{number:05d}.png") as grid:
            assert np.array_equal(Image.open(BytesIO(event.encoded_image_string)), grid)
    sent = hyperparameters(read)
    assert sent["command"] == "train-rl"
    assert (sent["rounds"], sent["learning_rate"], sent["noise_window"]) == (2, 0.01, False)
    assert sent["prompts"] == f"a red cat; {'x' * (LONGEST - 12)}…"
    (text,) = read.Tensors("config.toml/text_summary")
    lines = text.tensor_proto.string_val[0].decode().splitlines()
    assert "\n".join(line.removeprefix("    ") for line in lines) + "\n" == run.config.read_text()


@pytest.mark.parametrize("number", [0, 1])
def test_tensorboard_has_no_step_twice_after_a_resume(number, run, track):
    """From an earlier checkpoint, or from none, of a run that was killed and moved."""
    track("tensorboard", run, rounds=3, close=False)
    moved = RunFolder(run.path.rename(run.path.with_name("other")))
    track("tensorboard", moved, number, rounds=4)
    assert [file.name for file in (moved.path / "tensorboard").iterdir()] == ["mine"]
    read = events(moved)
    assert steps(read.Scalars("reward/mean")) == [0, 1, 2, 3, 4]
    assert steps(read.Images("grid/images")) == [0, 1, 2, 3, 4]


@pytest.fixture
def stand_in(monkeypatch):
    """A tracker in W&B's place: what each run of it was started with and sent."""
    runs = []

    class StandIn(GeneralTracker):
        name = "wandb"
        requires_logging_directory = False
        tracker = None

        def __init__(self, project=None, **options):
            runs.append({"project": project, **options, "log": [], "images": []})

        def store_init_configuration(self, values):
            runs[-1]["config"] = values

        def log(self, values, step=None, **_):
            runs[-1]["log"].append(step)

        def log_images(self, values, step=None):
            runs[-1]["images"].append((step, values))

    available = [LoggerType.WANDB]
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", available)
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "wandb", StandIn)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    StandIn.runs = runs
    return StandIn


def test_wandb_has_the_name_the_settings_and_the_grids(run, track, stand_in, monkeypatch):
    config, _ = track("wandb", run)
    (sent,) = stand_in.runs
    assert (sent["project"], sent["name"], sent["dir"]) == ("dpok", "mine", str(run.path))
    assert sent["resume"] == "allow"
    assert json.loads(run.tracker.read_text()) == {"name": "mine", "id": sent["id"]}
    assert sent["config"].keys() == vars(config).keys() | {"command", "dpok"}
    assert (sent["config"]["prompts"], sent["config"]["rounds"]) == (list(config.prompts), 2)
    assert sent["log"] == [0, 1, 2]
    assert sent["images"] == [(step, {"grid/images": [picture(step)]}) for step in range(3)]

    monkeypatch.setenv("WANDB_PROJECT", "ours")
    track("wandb", run, number=2, rounds=3)
    again = stand_in.runs[1]
    assert (again["project"], again["id"], again["name"]) == ("ours", sent["id"], "mine")
    assert again["log"] == [3]
    assert again["config"]["rounds"] == 3


@pytest.mark.parametrize(
    ("name", "first", "resumed"),
    [
        ("swanlab", {"name": "mine", "log_dir": "{run}/swanlab", "resume": "allow"}, {}),
        ("dvclive", {"dir": "{run}/dvclive", "resume": True}, {}),
        ("trackio", {"name": "mine", "resume": "never"}, {"resume": "allow"}),
        ("mlflow", {"run_name": "mine"}, {}),
    ],
)
def test_other_trackers_have_the_name_and_the_folder(
    name, first, resumed, run, track, stand_in, monkeypatch
):
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [LoggerType(name)])
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, name, stand_in)
    assert track(name, run)[1] == []
    assert track(name, run, number=1)[1] == []
    place = {
        key: value.format(run=run.path) if isinstance(value, str) else value
        for key, value in first.items()
    }
    for sent, wanted in zip(stand_in.runs, (place, place | resumed), strict=True):
        assert {key: sent[key] for key in wanted} == wanted


@pytest.mark.parametrize("call", ["store_init_configuration", "log_images"])
def test_a_tracker_that_fails_is_told_once(call, run, track, stand_in, monkeypatch):
    monkeypatch.setattr(stand_in, call, fail)
    _, told = track("wandb", run)
    assert told == [
        "The tracker wandb cannot be used, and training continues without it: no route to host."
    ]


def test_a_tracker_without_pictures_has_the_numbers(run, track, stand_in, monkeypatch):
    monkeypatch.delattr(stand_in, "log_images")
    _, told = track("wandb", run)
    assert told == []
    assert stand_in.runs[0]["log"] == [0, 1, 2]


def test_other_ranks_track_nothing(track, stand_in):
    assert track("wandb", None)[1] == []
    assert stand_in.runs == []


def test_wandb_offline_keeps_its_files_in_the_run_folder(run, track, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed: pip install wandb")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    assert track("wandb", run)[1] == []
    assert list(elsewhere.iterdir()) == []
    (folder,) = (run.path / "wandb").glob("offline-run-*")
    assert folder.name.endswith(json.loads(run.tracker.read_text())["id"])
    shown = {Image.open(file).tobytes() for file in folder.rglob("images_*.png")}
    assert shown == {picture(number).tobytes() for number in range(3)}

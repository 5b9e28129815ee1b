"""An interrupted and resumed run equals an uninterrupted one, bit for bit."""

import json
from itertools import count

import pytest
import torch

from dpok_cli.engine.rl.loop import train_rl
from dpok_cli.engine.rl.objectives.dpok import DPOK
from dpok_cli.engine.runs.folder import RunFolder
from dpok_cli.engine.training import checkpoint
from dpok_cli.engine.training.updater import MAX_SKIPPED, Updater
from dpok_cli.errors import InputError, RewardError, TrainingError
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.combined import WeightedReward
from engine.conftest import Green
from support.text import has_lines

#: Each with the state of a part or two that do not touch each other.
FORMS = {
    "value function and schedule": dict(
        advantage="value",
        value_updates=2,
        value_batch_size=4,
        lr_schedule="cosine",
        lr_warmup_steps=2,
    ),
    "buffer and patience": dict(
        buffer_size=16, gradient_accumulation=2, sample_every=1, patience=2
    ),
    "guided window": dict(
        guidance_scale=3.0,
        sample_batch_size=3,
        noise_window=True,
        rest_steps=1,
        timestep_fraction=0.5,
        kl_fraction=0.5,
    ),
    "nft": dict(objective="nft", eta=0.0, group_size=1, guidance_scale=2.0, buffer_size=32),
    "mixed": dict(objective="mixed", guidance_scale=2.0, buffer_size=32, least_signal=0.0),
    "batch size": dict(auto_batch_size=True, batch_size=2, gradient_accumulation=2),
}


class Dice(RewardModel):
    """A reward that draws from every global generator: its state must come back as well."""

    name = "dice"

    def score_batch(self, images, prompts):
        return images.mean(dim=(1, 2, 3)) + torch.rand(len(images))


def finished(run, model):
    """What must be the same: adapter, metrics but for the clock, sample grids."""
    records = [
        {key: value for key, value in record.items() if not key.startswith("seconds/")}
        for record in run.history()
    ]
    weights = {
        name: value.detach().clone()
        for name, value in model.pipeline.unet.named_parameters()
        if ".lora_" in name
    }
    grids = {file.name: file.read_bytes() for file in run.samples.glob("*")}
    return records, weights, grids


def assert_same(a, b):
    assert a[0] == b[0]
    assert a[1].keys() == b[1].keys()
    assert all(torch.equal(a[1][name], b[1][name]) for name in a[1])
    assert a[2] == b[2]


@pytest.fixture
def go(make_model, make_config, tmp_path):
    """Start or resume a run with a new model; returns its outputs."""

    def go(name, reward, stop=lambda: False, **changes):
        settings = dict(rounds=4, sample_every=2, sample_count=2, runs_dir=str(tmp_path), name=name)
        config = make_config(**settings | changes)
        path, model = tmp_path / name, make_model()
        run = RunFolder(path) if path.exists() else RunFolder.create(config)
        list(train_rl(config, model, reward, run, stop))
        return finished(run, model)

    return go


@pytest.fixture(scope="module")
def left_alone():
    """What uninterrupted runs left, and how often each asked whether to stop, by their settings."""
    return {}


@pytest.fixture
def whole(go, green, left_alone):
    """Returns what an uninterrupted run leaves; those of the same settings are one."""

    def whole(**changes):
        key, calls = repr(changes), count()
        if key not in left_alone:
            left = go("whole", green, stop=lambda: next(calls) < 0, **changes)
            left_alone[key] = left, next(calls)
        return left_alone[key][0]

    return whole


@pytest.mark.parametrize("form", FORMS)
def test_stopped_after_a_round(go, green, whole, form, tmp_path):
    expected = whole(**FORMS[form])
    assert len(expected[0]) == 4
    assert "grid/reward" in expected[0][1]
    go("cut", green, stop=has_lines(tmp_path / "cut/metrics.jsonl", 2), **FORMS[form])
    assert [record["round"] for record in RunFolder(tmp_path / "cut").history()] == [1, 2]
    assert_same(go("cut", green, **FORMS[form]), expected)


def test_stopped_before_the_updates_of_a_round(go, green, whole, tmp_path):
    scored = []

    class Watched(Green):
        def score_batch(self, images, prompts):
            scored.append(len(images))
            return super().score_batch(images, prompts)

    go("cut", WeightedReward([(Watched(), 1.0)]), stop=lambda: sum(scored) == 12)
    assert [record["round"] for record in RunFolder(tmp_path / "cut").history()] == [1, 2]
    assert_same(go("cut", green), whole())


@pytest.mark.parametrize("moment", [0.0, 0.05, 0.3, 0.6, 0.99])
def test_stopped_at_any_moment(go, green, whole, left_alone, moment):
    """Most of them are between two layers of the network, in a rollout or a grid."""
    expected = whole()
    _, asked = left_alone[repr({})]
    at, calls = int(moment * asked), count()
    cut = go("cut", green, stop=lambda: next(calls) >= at)
    assert len(cut[0]) == [0, 0, 1, 2, 4][[0.0, 0.05, 0.3, 0.6, 0.99].index(moment)]
    assert next(calls) - at < 20  # it ends soon
    assert_same(go("cut", green), expected)


@pytest.mark.parametrize("update", [1, 4, 5, 8])  # next to the checkpoints, and to both ends
def test_killed_between_two_updates(go, green, whole, monkeypatch, tmp_path, update):
    """The instant does not matter: nothing after the last checkpoint counts."""
    taken = 0

    class Killed(BaseException):
        pass

    original = Updater.step

    def step(self):
        nonlocal taken
        taken += 1
        if taken == update:
            raise Killed
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Updater, "step", step)
        with pytest.raises(Killed):
            go("cut", green, checkpoint_every=2)
    assert checkpoint.numbers(tmp_path / "cut" / "checkpoints") == [2][: (update - 1) // 4]
    assert_same(go("cut", green, checkpoint_every=2), whole())


def test_a_reward_with_random_numbers_of_its_own(go, tmp_path):
    reward = WeightedReward([(Dice(), 1.0)])
    torch.manual_seed(5)
    whole = go("whole", reward)
    torch.manual_seed(5)
    go("cut", reward, stop=has_lines(tmp_path / "cut/metrics.jsonl", 2))
    torch.manual_seed(6)
    assert_same(go("cut", reward), whole)


@pytest.mark.parametrize(("scored", "kept"), [(5, 3), (3, 2)])  # in a rollout, and of a grid
def test_a_reward_that_fails_costs_no_round(go, green, whole, tmp_path, scored, kept):
    class Failing(RewardModel):
        name = "failing"
        left = scored

        def score_batch(self, images, prompts):
            self.left -= 1
            if self.left < 0:
                raise OSError("no answer")
            red, green, blue = images.mean(dim=(2, 3)).unbind(1)
            return green - (red + blue) / 2

    with pytest.raises(RewardError, match="failing"):
        go("cut", WeightedReward([(Failing(), 1.0)]), checkpoint_every=100)
    assert checkpoint.numbers(tmp_path / "cut" / "checkpoints") == [kept]
    names = ("reward/failing", "reward/green")
    after, expected = (
        ([{key: record[key] for key in record if key not in names} for record in records], *rest)
        for records, *rest in (go("cut", green), whole())
    )
    assert_same(after, expected)


def test_a_longer_run_goes_on(go, green, whole):
    go("cut", green, rounds=2, lr_schedule="constant")
    expected = whole(lr_schedule="constant")
    assert_same(go("cut", green, rounds=4, lr_schedule="constant"), expected)


def test_in_a_longer_run_a_falling_rate_falls_to_the_new_end(go, green):
    falling = dict(lr_schedule="linear", learning_rate=0.01, updates_per_round=1)
    short, *_ = go("cut", green, rounds=2, **falling)
    longer, *_ = go("cut", green, rounds=4, **falling)
    rates = [record["learning_rate"] for record in longer]
    assert longer[:2] == short
    assert rates == pytest.approx([0.005, 0.0, 0.0025, 0.0])


def test_of_a_damaged_checkpoint_the_one_before_is_taken(go, green, whole, tmp_path):
    go("cut", green, rounds=3, lr_schedule="constant")
    file = tmp_path / "cut" / "checkpoints" / "000003" / checkpoint.STATE
    file.write_bytes(file.read_bytes()[:100])
    # The grid of the shorter run's end is there as well.
    records, weights, _ = go("cut", green, lr_schedule="constant")
    assert_same((records, weights, {}), (*whole(lr_schedule="constant")[:2], {}))
    metrics = (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in metrics] == [1, 2, 3, 4]


def test_an_adapter_of_another_rank_is_refused(go, green):
    go("cut", green, rounds=2)
    with pytest.raises(InputError, match="adapter differs from config.toml"):
        go("cut", green, lora_rank=2)


# ------------------------------------------------------------------------- gradients not finite


class Poison(RewardModel):
    """Good rewards whose gradient is made not finite by a loss that is."""

    name = "poison"

    def score_batch(self, images, prompts):
        return images.mean(dim=(1, 2, 3))


@pytest.fixture
def poisoned(monkeypatch):
    """Makes the loss NaN in the updates of those numbers."""

    def poison(bad):
        original, taken = DPOK.loss, 0

        def loss(self, batch):
            nonlocal taken
            taken += 1
            right = original(self, batch)
            if taken in bad:
                object.__setattr__(right, "loss", right.loss * float("nan"))
            return right

        monkeypatch.setattr(DPOK, "loss", loss)

    return poison


def test_an_update_that_is_not_finite_is_left_out_and_counted(make_model, make_config, poisoned):
    reward = WeightedReward([(Poison(), 1.0)])
    poisoned({2})
    model = make_model()
    records = list(train_rl(make_config(rounds=2), model, reward))
    assert [record["skipped"] for record in records] == [1, 1]
    assert all(parameter.isfinite().all() for parameter in model.adapter.parameters())


def test_too_many_in_a_row_end_the_run_with_the_last_good_adapter(
    make_model, make_config, poisoned, tmp_path
):
    reward = WeightedReward([(Poison(), 1.0)])
    config = make_config(rounds=30, runs_dir=str(tmp_path), name="run")
    model, run = make_model(), RunFolder.create(config)
    poisoned(set(range(3, 1000)))
    with pytest.raises(TrainingError, match=f"{MAX_SKIPPED} times in a row"):
        list(train_rl(config, model, reward, run))
    good = checkpoint.read(run.checkpoints / f"{checkpoint.numbers(run.checkpoints)[-1]:06d}")
    for name, weight in good["adapter"].items():
        assert weight.isfinite().all()
        assert torch.equal(dict(model.pipeline.unet.named_parameters())[name], weight)


# --------------------------------------------------------------------- settings that may change


def test_a_changed_length_is_kept_for_the_next_resume(go, green, tmp_path):
    go("cut", green, rounds=2)
    go("cut", green, rounds=4)
    run = RunFolder(tmp_path / "cut")
    assert run.read_config()["rounds"] == 4
    assert "rounds = 4" in (run.adapter / "README.md").read_text()


def test_fewer_rounds_than_there_are_is_refused_and_changes_nothing(go, green, tmp_path):
    go("cut", green, rounds=3)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(InputError, match="already has 3 rounds: give --rounds 3 or more"):
        go("cut", green, rounds=2)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before

"""The sample grids' measures, the best adapter, and the end that they decide on."""

import math

import pytest
import torch
from safetensors.torch import load_file

from dpok_cli.engine.lora.files import ADAPTER_FILE
from dpok_cli.engine.rl.loop import train_rl
from dpok_cli.engine.runs.folder import RunFolder
from dpok_cli.engine.sampling.sampler import Sample
from dpok_cli.engine.training import watch as module
from dpok_cli.engine.training.measures import GRID
from dpok_cli.engine.training.session import Session
from dpok_cli.engine.training.watch import Watch, is_worth_it
from dpok_cli.errors import InputError
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.combined import WeightedReward
from dpok_cli.rewards.embedding import ImageEmbedding
from support.rewards import Brightest, Brightness


class Scripted(RewardModel):
    """Scores each batch with the next number."""

    name = "scripted"

    def __init__(self, scores):
        super().__init__()
        self.scores = iter(scores)

    def score_batch(self, images, prompts):
        return torch.full((len(images),), next(self.scores))


@pytest.fixture
def watch_of(make_config, model, monkeypatch):
    """Makes a watch whose grids have given rewards; images are embedded as their mean colour."""

    def embed(images):
        return torch.nn.functional.normalize(images.mean(dim=(2, 3)), dim=1)

    monkeypatch.setattr(
        module, "image_embedding", lambda *_, **__: ImageEmbedding("colours", embed)
    )

    def make(*scores, **changes):
        config = make_config(sample_every=1, sample_count=2, sample_batch_size=2, **changes)
        session = Session(config, model, None, lambda: False, print, 1)
        return Watch(session, WeightedReward([(Scripted(scores), 1.0)]))

    return make


def samples(*colours, prompt="two cats"):
    pixels = [torch.tensor(colour).view(3, 1, 1).expand(3, 8, 8) for colour in colours]
    return [Sample(prompt, seed, image) for seed, image in enumerate(pixels)]


RED, GREEN = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)
BETWEEN = (0.5, 0.5, 0.0)  # its cosine to both is 0.5 ** 0.5


def test_reward_and_diversity_by_hand(watch_of):
    watch = watch_of(1.0, 3.0)
    first = watch.see(0, samples(RED, GREEN))
    assert first == {
        "grid/reward": 1.0,
        "grid/diversity": pytest.approx(1.0),
        "grid/diversity_kept": pytest.approx(1.0),
    }
    then = watch.see(5, samples(RED, BETWEEN))
    assert then == {
        "grid/reward": 3.0,
        "grid/diversity": pytest.approx(1 - 0.5**0.5, abs=1e-6),
        "grid/diversity_kept": pytest.approx(1 - 0.5**0.5, abs=1e-6),
        "grid/best": 5,
    }


def test_diversity_is_of_images_of_one_prompt(watch_of):
    watch = watch_of(1.0, 3.0)
    drawn = [*samples(RED, GREEN), *samples(RED, RED, prompt="a dog")]
    found = watch.see(0, drawn)
    assert found["grid/reward"] == 2.0
    assert found["grid/diversity"] == pytest.approx(0.5)
    alone = watch_of(1.0).see(0, [*samples(RED), *samples(GREEN, prompt="a dog")])
    assert alone == {"grid/reward": 1.0}


def test_without_a_grid_there_is_nothing_to_measure(watch_of):
    watch = watch_of()
    assert watch.see(3, []) == {}
    assert watch.number == -1


def test_a_rise_worth_its_rounds_is_a_tenth_of_what_was_gained():
    assert not is_worth_it(0.99, 0.9, -0.1)  # of 1.0
    assert is_worth_it(1.01, 0.9, -0.1)
    assert is_worth_it(-0.55, -0.6, -1.0)  # of 0.4
    assert not is_worth_it(-0.57, -0.6, -1.0)
    # Below the first reward nothing was gained, and any rise is worth it.
    assert is_worth_it(-1.9, -2.0, -1.0)
    assert not is_worth_it(-2.0, -2.0, -1.0)
    assert is_worth_it(-9.0, -math.inf, 0.0)
    assert is_worth_it(0.1, 0.0, math.inf)  # without a first grid


def test_a_small_rise_is_the_best_and_does_not_put_off_the_end(watch_of):
    watch = watch_of(0.0, 1.0, 1.05, 1.09, patience=2)
    over = []
    for number in range(4):
        watch.see(number, samples(RED, GREEN))
        over.append(watch.is_over)
    assert over == [False, False, False, True]
    assert (watch.best, watch.best_number, watch.level) == (pytest.approx(1.09), 3, 1.0)


def test_patience_counts_grids_that_were_not_worth_their_rounds(watch_of):
    watch = watch_of(9.0, 2.0, 2.0, 1.5, 2.5, patience=2)
    over = []
    for number in range(5):  # the first of them before training
        watch.see(number, samples(RED, GREEN))
        over.append(watch.is_over)
    assert over == [False, False, False, True, False]
    assert watch.best_number == 4


def test_without_patience_no_weights_are_kept_and_nothing_ends(watch_of):
    watch = watch_of(2.0, 1.0, 1.0)
    for number in range(1, 4):
        watch.see(number, samples(RED, GREEN))
    assert (watch.weights, watch.is_over, watch.since) == ({}, False, 2)


def test_its_state_comes_back(watch_of):
    one, other = watch_of(2.0, 1.0, patience=3), watch_of(3.0, patience=3)
    for number in range(1, 3):
        one.see(number, samples(RED, GREEN))
    other.load_state_dict(one.state_dict())
    assert other.see(3, samples(RED, BETWEEN))["grid/diversity_kept"] == pytest.approx(
        1 - 0.5**0.5, abs=1e-6
    )
    assert (other.best, other.best_number, other.since, other.number) == (3.0, 3, 0, 3)
    assert other.weights.keys() == one.weights.keys() != set()


def test_a_state_from_before_there_was_a_level_counts_from_the_best(watch_of):
    one, other = watch_of(2.0, patience=3), watch_of(patience=3)
    one.see(1, samples(RED, GREEN))
    older = one.state_dict()
    del older["level"]
    other.load_state_dict(older)
    assert (other.level, other.best) == (2.0, 2.0)


@pytest.fixture
def trained(make_config, make_model, tmp_path):
    """Trains on given rewards of the grids; returns run, model and records."""

    def train(*grids, scores=(), **changes):
        settings = dict(rounds=6, sample_every=1, sample_count=2, patience=2, name="run")
        settings["lr_schedule"] = "constant"
        config = make_config(runs_dir=str(tmp_path), **settings | changes)
        path, model = tmp_path / config.name, make_model()
        run = RunFolder(path) if path.exists() else RunFolder.create(config)
        if not scores:  # of rollouts and grids in turn, after the first grid
            scores = [grids[0], *(score for grid in grids[1:] for score in (0.0, grid))]
        reward = WeightedReward([(Scripted(scores), 1.0)])
        return run, model, list(train_rl(config, model, reward, run))

    return train


def test_training_ends_with_the_best_grids_adapter_and_keeps_the_newest_beside_it(trained):
    run, model, records = trained(0.0, 2.0, 1.0, 1.5)
    assert [record["grid/reward"] for record in records] == [2.0, 1.0, 1.5]
    assert [record["grid/best"] for record in records] == [1, 1, 1]
    best, newest = (load_file(folder / ADAPTER_FILE) for folder in (run.adapter, run.last_adapter))
    assert any(not torch.equal(best[name], newest[name]) for name in best)
    # The model has the best one, and comparisons after training are of it.
    model.adapter.save(run.path / "now")
    now = load_file(run.path / "now" / ADAPTER_FILE)
    assert all(torch.equal(best[name], now[name]) for name in best)


def test_the_best_adapter_is_that_of_its_round(trained):
    run, _, _ = trained(0.0, 2.0, 1.0, 1.5)
    one, _, records = trained(0.0, 2.0, name="one", rounds=1)
    assert len(records) == 1
    best, first = (load_file(each.adapter / ADAPTER_FILE) for each in (run, one))
    assert all(torch.equal(best[name], first[name]) for name in best)


def test_a_run_that_patience_ended_is_trained_on_with_more_patience_alone(trained):
    run, _, _ = trained(0.0, 2.0, 1.0, 1.5)
    kept = load_file(run.adapter / ADAPTER_FILE)
    with pytest.warns(UserWarning, match="The run ended after round 3, since 2 sample grids"):
        _, model, records = trained(0.0)
    assert records == []
    # It ends as a run with all its rounds: the comparison after training may be missing.
    model.adapter.save(run.path / "now")
    now = load_file(run.path / "now" / ADAPTER_FILE)
    assert all(torch.equal(kept[name], now[name]) for name in kept)
    with pytest.raises(InputError, match="The run ended after round 3, since 2 sample grids"):
        trained(0.0, rounds=7)
    assert (len(run.history()), run.read_config()["rounds"]) == (3, 6)
    _, _, records = trained(scores=(0.0, 1.0, 0.0, 1.0), patience=4)
    assert [record["round"] for record in records] == [4, 5]


def test_without_sample_grids_patience_has_no_effect(trained):
    run, _, records = trained(scores=(0.0,) * 6, sample_every=0)
    assert len(records) == 6
    assert not run.last_adapter.exists()


def test_the_hint_comes_below_half_of_the_first_diversity():
    (kept,) = (one for one in GRID if one.advice)
    records = [{"grid/diversity_kept": 0.9}, {"grid/diversity_kept": 0.49}, {}]
    assert kept.advice(records[:1], None) is None
    assert "49% of its first diversity" in kept.advice(records, None)
    assert kept.advice([{}], None) is None


def test_rewards_that_compare_say_nothing_of_a_grid(watch_of, make_config, model):
    watch = watch_of(1.0, 3.0)
    watch.reward = WeightedReward([(Brightest(), 1.0), *watch.reward.rewards.values()])
    assert watch.see(0, samples(RED, GREEN))["grid/reward"] == 1.0
    watch.reward = WeightedReward([(Brightest(), 1.0)])
    assert watch.see(5, samples(RED, GREEN)).keys() == {"grid/diversity", "grid/diversity_kept"}
    said: list[str] = []
    for reward in ([(Brightest(), 1.0)], [(Brightest(), 1.0), (Brightness(), 1.0)]):
        config = make_config(sample_every=1, sample_count=2, patience=1)
        session = Session(config, model, None, lambda: False, said.append, 1)
        watch = Watch(session, WeightedReward(reward))
        for number in (0, 1, 2):
            watch.see(number, samples(RED, GREEN))
        assert watch.is_over == (len(reward) == 2)
    assert said == [
        "--patience has no effect: the reward compares images of one model with each other, which"
        " does not show what it has learned."
    ]

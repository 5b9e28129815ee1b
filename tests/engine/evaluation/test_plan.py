"""What is compared: models, settings, prompts; and the folder that it is kept in."""

import json
import os

import pytest

from dpok_cli.config import EvaluateConfig, TrainRLConfig, to_toml
from dpok_cli.engine.evaluation.folder import EvaluationFolder
from dpok_cli.engine.evaluation.plan import (
    BASE,
    Contender,
    Evaluation,
    Place,
    Prompt,
    arrange_prompts,
    find_contenders,
    shared_settings,
)
from dpok_cli.errors import InputError
from dpok_cli.prompts.unseen import Unseen, unseen_prompts


@pytest.fixture
def make_run(tmp_path, least_lora):
    """Make run folders in runs/, each newer than the one before."""

    def make(name, adapter=True, **settings):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        config = TrainRLConfig(**{"prompts": ("a red cat",)} | settings)
        (run / "config.toml").write_text(to_toml(config))
        make.made = getattr(make, "made", 0) + 1
        os.utime(run / "config.toml", (make.made, make.made))
        if adapter:
            (run / "adapter").mkdir()
            (run / "adapter/pytorch_lora_weights.safetensors").write_bytes(least_lora)
        return run

    return make


@pytest.fixture
def runs_dir(tmp_path):
    return str(tmp_path / "runs")


def test_the_newest_run_that_has_an_adapter(make_run, runs_dir):
    make_run("old")
    new = make_run("new", rewards=("judge",))
    make_run("cut-off", adapter=False)
    (found,) = find_contenders([], [], runs_dir)
    assert (found.name, found.adapter) == ("new", new / "adapter")
    assert (found.trained_prompts, found.trained_rewards) == (("a red cat",), ("judge",))


def test_names_and_paths(make_run, runs_dir, tmp_path, least_lora):
    run = make_run("one")
    make_run("two")
    lora = tmp_path / "a=b"
    lora.mkdir()
    (lora / "pytorch_lora_weights.safetensors").write_bytes(least_lora)
    found = find_contenders(["one", f"mine={run}"], [str(lora), f"z={lora}"], runs_dir)
    assert [(each.name, each.adapter) for each in found] == [
        ("one", run / "adapter"),
        ("mine", run / "adapter"),
        ("a=b", lora),
        ("z", lora),
    ]
    assert found[2].config == {}
    (own,) = find_contenders([], [str(run / "adapter")], runs_dir)
    assert (own.name, own.trained_rewards) == ("one", TrainRLConfig().rewards)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (["one", "one"], "'one' is taken"),
        (["base=one"], "'base' is taken"),
        (["a/b=one"], "'a/b' is taken or no plain name"),
        (["none"], "There is no run none"),
        (["bare"], "There is no adapter"),
    ],
)
def test_names_that_cannot_be_used(runs, message, make_run, runs_dir):
    make_run("one")
    make_run("bare", adapter=False)
    with pytest.raises(InputError, match=message):
        find_contenders(runs, [], runs_dir)


def test_no_run_yet(tmp_path):
    with pytest.raises(InputError, match="no run with an adapter in .*dpok train-rl"):
        find_contenders([], [], str(tmp_path))


def test_runs_of_one_kind_share_their_settings(make_run, runs_dir):
    make_run("one", eta=0.5, sample_batch_size=3)
    make_run("two", eta=0.5, prompts=("a dog", "a red cat"), seed=5, rounds=3)
    shared = shared_settings(find_contenders(["one", "two"], [], runs_dir), ())
    assert (shared["eta"], shared["prompts"]) == (0.5, ("a red cat", "a dog"))
    assert not {"seed", "device", "rounds", "rewards"} & set(shared)
    assert shared_settings([Contender("x")], ()) == {}


def test_runs_that_were_drawn_differently_are_not_compared(make_run, runs_dir):
    make_run("one")
    make_run("two", guidance_scale=5.0)
    found = find_contenders(["one", "two"], [], runs_dir)
    with pytest.raises(InputError, match="one and two .* guidance_scale = 3.0 and 5.0"):
        shared_settings(found, ["eta"])
    assert shared_settings(found, ["guidance_scale"])["eta"] == 1.0


def test_prompts_are_seen_unseen_or_given():
    tuned = [Contender("x", None, {"prompts": ["A green colored rabbit."]})]
    given = ("a green colored rabbit", "two dogs")
    derived = unseen_prompts(given[:1])
    prompts = arrange_prompts(given, tuned, derived, ["a lion", "Two dogs."], {"a lion": "animals"})
    assert prompts == (
        Prompt("a green colored rabbit", "seen", "colour"),
        Prompt("two dogs", "unseen"),
        Prompt("A green colored cat.", "unseen", "colour", "a green colored rabbit"),
        Prompt("a lion", "unseen", "animals"),
    )
    assert arrange_prompts(["a cat"], [Contender("x")], {}) == (Prompt("a cat", "given"),)
    # a variant that was trained on after all does not become unseen
    both = arrange_prompts(["a cat"], tuned, {"a cat": Unseen("subject", ("A CAT",))})
    assert [prompt.text for prompt in both] == ["a cat"]


def an_evaluation(**changes):
    config = EvaluateConfig(**{"prompts": ("a red cat",), "samples": 5} | changes)
    prompts = (Prompt("a red cat", "seen"), Prompt("a dog", "unseen"))
    return Evaluation(config, (Contender(BASE),), prompts, ("judge",))


def test_batches_do_not_depend_on_what_is_done():
    batches = an_evaluation(sample_batch_size=4, seed=2).batches()
    first = 2 * 10**9 + 2
    assert [len(batch) for batch in batches] == [4, 4, 2]
    places = [place for batch in batches for place in batch]
    assert places == [Place(row, first + n) for row in range(2) for n in range(5)]


def test_a_folder_of_other_settings_is_refused_by_name(tmp_path):
    path = tmp_path / "evaluation"
    EvaluationFolder.open(path, an_evaluation())
    EvaluationFolder.open(path, an_evaluation(device="cpu", runs_dir="elsewhere"))
    before = (path / "settings.json").read_text()
    for change, message in (
        ({"eta": 0.5}, r"eta = 1\.0 there, 0\.5 now"),
        ({"samples": 6}, "samples = 5 there, 6 now"),
        ({"seed": 1}, "seed = 0 there, 1 now"),
        ({"sample_batch_size": 2}, "sample_batch_size = 16 there, 2 now"),
    ):
        with pytest.raises(InputError, match=message):
            EvaluationFolder.open(path, an_evaluation(**change))
    assert (path / "settings.json").read_text() == before


def test_another_adapter_of_the_same_name_is_refused(tmp_path):
    weights = tmp_path / "lora.safetensors"

    def evaluation(text):
        weights.write_text(text)
        contenders = (Contender(BASE), Contender("x", weights))
        return Evaluation(EvaluateConfig(), contenders, (Prompt("a", "given"),), ("judge",))

    EvaluationFolder.open(tmp_path / "e", evaluation("one"))
    EvaluationFolder.open(tmp_path / "e", evaluation("one"))
    with pytest.raises(InputError, match="models = "):
        EvaluationFolder.open(tmp_path / "e", evaluation("two"))


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("all of it")
    with pytest.raises(InputError, match="is no evaluation"):
        EvaluationFolder.open(tmp_path / "mine", an_evaluation())
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_by_default_other_settings_go_to_another_folder(tmp_path, make_run, runs_dir):
    run = make_run("one")
    (tuned,) = find_contenders(["one"], [], runs_dir)

    def default(*more, **changes):
        base = an_evaluation(runs_dir=runs_dir, **changes)
        contenders = (*base.contenders, tuned, *more)
        evaluation = Evaluation(base.config, contenders, base.prompts, base.rewards)
        return EvaluationFolder.default(evaluation)

    assert default().parent == run
    assert default() == default(device="cpu")
    assert default() != default(eta=0.5)
    assert default(Contender("two", tuned.adapter)).parent == tmp_path / "runs"


def test_a_line_that_was_cut_off_does_not_count(plant):
    _, folder = plant(lambda *_: {"image-reward": 1.0, "judge": 0.0}, samples=3)
    kept = folder.records()
    assert len(kept) == 6
    lines = folder.scores.read_text().splitlines()
    folder.scores.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])
    assert list(folder.records()) == list(kept)[:-1]
    folder.keep([], [])
    with folder.scores.open("a") as file:  # what comes next has a line of its own
        file.write(lines[-1] + "\n")
    assert folder.records() == kept
    missing = next(iter(kept))
    folder.image(*missing).unlink()
    assert missing not in folder.records()
    assert json.loads(folder.settings.read_text())["samples"] == 3

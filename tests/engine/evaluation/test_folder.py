"""The folder of an evaluation: whose it is, and what of it is kept."""

import json

import pytest
import torch

from dpok_cli.config import EvaluateConfig
from dpok_cli.engine.evaluation.contenders import BASE, Contender, find_contenders
from dpok_cli.engine.evaluation.folder import EvaluationFolder
from dpok_cli.engine.evaluation.plan import Evaluation, Place, Prompt
from dpok_cli.errors import InputError
from support.evaluations import open_folder


def an_evaluation(**changes):
    config = EvaluateConfig(**{"prompts": ("a red cat",), "samples": 5} | changes)
    prompts = (Prompt("a red cat", "seen"), Prompt("a dog", "unseen"))
    return Evaluation(config, (Contender(BASE),), prompts, ("judge",))


def test_a_folder_of_other_settings_is_refused_by_name(tmp_path):
    path = tmp_path / "evaluation"
    open_folder(path, an_evaluation())
    open_folder(path, an_evaluation(device="cpu", runs_dir="elsewhere"))
    before = (path / "settings.json").read_text()
    for change, message in (
        ({"eta": 0.5}, r"--eta 1\.0 there, 0\.5 now"),
        ({"samples": 6}, "--samples 5 there, 6 now"),
        ({"seed": 1}, "--seed 0 there, 1 now"),
        ({"sample_batch_size": 2}, "--sample-batch-size 16 there, 2 now"),
    ):
        with pytest.raises(InputError, match=message):
            open_folder(path, an_evaluation(**change))
    assert (path / "settings.json").read_text() == before


def test_another_adapter_of_the_same_name_is_refused(tmp_path):
    weights = tmp_path / "lora.safetensors"

    def evaluation(text):
        weights.write_text(text)
        contenders = (Contender(BASE), Contender("x", weights))
        return Evaluation(EvaluateConfig(), contenders, (Prompt("a", "given"),), ("judge",))

    open_folder(tmp_path / "e", evaluation("one"))
    open_folder(tmp_path / "e", evaluation("one"))
    with pytest.raises(InputError, match="models = "):
        open_folder(tmp_path / "e", evaluation("two"))


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("all of it")
    with pytest.raises(InputError, match="is no evaluation"):
        open_folder(tmp_path / "mine", an_evaluation())
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


def test_a_truncated_line_is_ignored(plant):
    _, folder = plant(lambda *_: {"image-reward": 1.0, "judge": 0.0}, samples=3)
    kept = folder.records()
    assert len(kept) == 6
    lines = folder.scores.read_text().splitlines()
    folder.scores.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])
    assert list(folder.records()) == list(kept)[:-1]
    folder.keep([], [])
    with folder.scores.open("a") as file:  # the next record starts on a new line
        file.write(lines[-1] + "\n")
    assert folder.records() == kept
    missing = next(iter(kept))
    folder.image(*missing).unlink()
    assert missing not in folder.records()
    assert json.loads(folder.settings.read_text())["samples"] == 3


def test_images_are_read_back_as_they_were_written(plant):
    def colour(model, row, seed):
        return (seed, 10, 255)

    evaluation, folder = plant(lambda *_: {}, samples=3, colour=colour)
    images = folder.read("tuned", [Place(0, seed) for seed in evaluation.seeds[1:]])
    assert (images.shape, images.dtype) == ((2, 3, 8, 8), torch.uint8)
    assert images[:, :, 0, 0].tolist() == [[1, 10, 255], [2, 10, 255]]

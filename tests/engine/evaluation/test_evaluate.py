"""An evaluation from start to finish, as one call."""

import csv
import json
import shutil
from dataclasses import replace

import pytest
import torch

from dpok_cli.config import EvaluateConfig
from dpok_cli.engine.bases.load import load
from dpok_cli.engine.evaluation import draw
from dpok_cli.engine.evaluation.contenders import BASE, Contender
from dpok_cli.engine.evaluation.evaluate import evaluate
from dpok_cli.engine.evaluation.folder import EvaluationFolder
from dpok_cli.engine.evaluation.plan import Evaluation, Prompt
from dpok_cli.errors import InputError


@pytest.fixture
def evaluation(make_config, model, shake, tmp_path):
    model.adapter.add(4, 0.0, ["to_q", "to_v", "to_out.0"], seed=0)
    shake(model)
    model.adapter.save(tmp_path / "lora")
    config = make_config(EvaluateConfig, prompts=("a cat",), samples=3, resamples=100)
    contenders = (Contender(BASE), Contender("tuned", tmp_path / "lora"))
    return Evaluation(config, contenders, (Prompt("a cat", "given"),), ("jpeg-compressibility",))


def test_results_are_returned_and_written(evaluation, tmp_path):
    folder, seen = EvaluationFolder(tmp_path / "new"), []

    def watch(records):
        for record in records:
            seen.append(record)
            yield record

    results = evaluate(evaluation, folder, progress=watch)
    assert seen == list(folder.records().values())
    assert len(seen) == evaluation.total == 6
    assert json.loads(folder.results.read_text()) == results
    with folder.table.open() as file:
        assert len(list(csv.DictReader(file))) == len(results["rows"])
    assert evaluate(evaluation, folder) == results


def test_a_prompt_that_is_too_long_is_named_when_the_evaluation_begins(evaluation, tmp_path):
    long = Prompt(" ".join(["cat"] * 100), "given")
    evaluation = replace(evaluation, prompts=(*evaluation.prompts, long))
    folder, told = EvaluationFolder(tmp_path / "new"), []
    for _ in range(2):  # the second time it is resumed
        evaluate(evaluation, folder, warn=told.append)
    (line,) = told
    assert line.startswith("The text encoder does not see '")
    assert line.endswith(f"cat cat cat' at the end of {long.text!r}.")


def test_no_folder_is_made_for_an_adapter_that_does_not_fit(evaluation, tmp_path, monkeypatch):
    from safetensors.torch import load_file, save_file

    shutil.copytree(tmp_path / "lora", tmp_path / "other")
    file = tmp_path / "other" / "pytorch_lora_weights.safetensors"
    save_file({name: torch.zeros(1, 1) for name in load_file(file)}, file)
    contenders = (*evaluation.contenders, Contender("other", tmp_path / "other"))
    loaded = []
    monkeypatch.setattr(draw, "load", lambda *given: loaded.append(given) or load(*given))
    with pytest.raises(InputError, match="/other does not fit this model"):
        evaluate(replace(evaluation, contenders=contenders), EvaluationFolder(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
    assert len(loaded) == 1  # the adapters are put onto one base

"""Paths and names as people type them: ~ where no shell replaces it, and hyperparameters, spaces
and leading dashes in the names of runs."""

import json
from pathlib import Path

import pytest

SMALL = (
    "--num-inference-steps=2 --guidance-scale=1 --device=cpu --quiet".split(),
    "--rounds=1 --samples-per-round=2 --updates-per-round=1 --batch-size=2 --lora-rank=4"
    " --evaluation-samples=0 --sample-every=0 --tracker= --reward=jpeg-compressibility".split(),
    "--samples=2 --resamples=100 --reward=jpeg-compressibility --json".split(),
)


@pytest.fixture
def home(tmp_path, monkeypatch, pipeline_folder, adapters):
    """A home folder with a model and an adapter; the working folder is another."""
    home = tmp_path.parent / f"{tmp_path.name}-home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (home / "model").symlink_to(pipeline_folder)
    (home / "adapter").symlink_to(adapters["shaken"])
    (home / "prompts.txt").write_text("a cat\n")
    return home


@pytest.fixture
def train(dpok, pipeline_folder):
    def train(*arguments, model=pipeline_folder):
        given = ("--prompt=a cat", f"--model={model}", *SMALL[0], *SMALL[1], *arguments)
        return dpok("train-rl", *given)

    return train


@pytest.fixture
def evaluate(dpok):
    """Evaluate; returns the result and the names of the models."""

    def evaluate(*arguments):
        result = dpok("evaluate", *SMALL[0], *SMALL[2], *arguments)
        models = json.loads(result.out)["models"] if result.code == 0 else []
        return result, [each["name"] for each in models]

    return evaluate


def test_home_is_meant_wherever_a_path_is_given(home, train, dpok, evaluate, tmp_path):
    result = train("--runs-dir=~/runs", "--name=one", "--init-adapter=~/adapter", model="~/model")
    assert result.code == 0, result.err
    assert (home / "runs" / "one" / "adapter").is_dir()
    (home / "more.toml").write_text('runs_dir = "~/runs"\nmodel = "~/model"\n')
    result = dpok(
        "train-rl", *SMALL[0], *SMALL[1], "--config=~/more.toml", "--prompts=~/prompts.txt"
    )
    assert result.code == 0, result.err
    assert len(list((home / "runs").iterdir())) == 2
    result = dpok("train-rl", "--resume=~/runs/one", "--quiet")
    assert result.code == 0, result.err
    for number, which in enumerate(("--run=~/runs/one", "--adapter=~/runs/one/adapter")):
        output = f"--output=~/samples-{number}"
        result = dpok("sample", which, output, "--seeds=0", "--model=~/model", *SMALL[0])
        assert result.code == 0, result.err
        assert (home / f"samples-{number}" / "grid.png").is_file()
    result, models = evaluate(
        *("--run=one", "--run=again=~/runs/one", "--adapter=mine=~/adapter", "--adapter=~/adapter"),
        *("--runs-dir=~/runs", "--unseen-prompts-file=~/prompts.txt", "--output=~/evaluation"),
    )
    assert result.code == 0, result.err
    assert models == ["base", "one", "again", "mine", "shaken"]
    assert (home / "evaluation" / "report.html").is_file()
    result = dpok("evaluate", "--votes=~/votes.json")
    assert f"Cannot read {home}/votes.json" in result.err
    result = dpok("train-sft", "--prompt=a cat", "--dataset=~/model")
    assert "is no image set" in result.err
    result = dpok("rewards", "check", "clip:model=~/model", "--device=cpu")
    assert f"the folder {home}/model has no" in result.err
    assert not any(tmp_path.iterdir())  # no folder called ~


@pytest.mark.parametrize("name", ["lr=1e-4", "a b=c=(1)", ".x%"])
def test_a_run_of_any_name_is_found_everywhere(name, train, dpok, evaluate):
    result = train(f"--name={name}")
    assert result.code == 0, result.err
    adapter = result.out.splitlines()[0]
    assert adapter == f"Adapter: runs/{name}/adapter"
    assert dpok("train-rl", "--resume", name, "--quiet").code == 0
    result = dpok("sample", "--run", name, "--output=out", "--seeds=0", "--quiet")
    assert result.code == 0, result.err
    ways = [f"--run={name}", f"--run=new=runs/{name}", f"--run=other={name}"]
    result, models = evaluate(*ways, f"--adapter=file=runs/{name}/adapter", "--output=evaluated")
    assert result.code == 0, result.err
    assert models == ["base", name, "new", "other", "file"]


def test_folders_with_an_equals_sign(dpok, adapters, pipeline_folder, evaluate, tmp_path):
    folder = tmp_path / "a=b" / "c"
    folder.parent.mkdir()
    folder.symlink_to(adapters["shaken"])
    given = ("--prompt=a cat", f"--model={pipeline_folder}", "--output=out")
    result, models = evaluate("--adapter=a=b/c", f"--adapter=x={folder}", *given)
    assert result.code == 0, result.err
    assert models == ["base", "shaken", "x"]


@pytest.mark.parametrize("text", ["--run=lr=1e-5", "--run=new=nope", "--adapter=new=nope"])
def test_what_is_not_there_is_named_as_it_was_typed(text, evaluate):
    result, _ = evaluate(text)
    assert result.code == 2
    assert text.partition("=")[2] in result.err


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("latest", "names the newest run. Give --name another, as latest-1."),
        ("base", "names the model without an adapter. Give --name another, as base-1."),
        ("-x", "Give --name 'x'."),
        ("~x", "Give --name 'x'."),
        (" x", "Give --name 'x'."),
        ("x. ", "Give --name 'x'."),
        ("a\\b", "Give --name 'a-b'."),
        ("a\nb", "Give --name 'a-b'."),
        ("-latest", "Give --name 'another'."),
        ("a/b", "must be a plain folder name"),
    ],
)
@pytest.mark.parametrize("command", ["train-rl", "train-sft"])
def test_a_name_that_cannot_be_typed_again_is_refused(command, name, advice, dpok, tmp_path):
    result = dpok(command, "--prompt=a cat", f"--name={name}", "--model=./nowhere")
    assert result.code == 2
    assert advice in result.err
    assert len(result.err.splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_a_run_that_was_renamed_to_a_reserved_name_has_its_path(train, dpok, evaluate):
    assert train("--name=one").code == 0
    Path("runs/one").rename("runs/latest")
    assert dpok("train-rl", "--resume=runs/latest", "--quiet").code == 0
    result, models = evaluate("--run=./runs/latest")
    assert result.code == 0, result.err
    assert models == ["base", "latest"]


def test_a_model_has_no_name_that_leads_out_of_the_evaluation(adapters, evaluate):
    result, _ = evaluate(f"--adapter=..={adapters['shaken']}")
    assert result.code == 2
    assert "not a plain name" in result.err

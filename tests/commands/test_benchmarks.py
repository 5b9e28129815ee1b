"""`dpok evaluate --benchmark`: its prompts, number of images, tables and layout."""

import json
from pathlib import Path

import pytest

from support.benchmarks import write

FLAGS = "--num-inference-steps=1 --guidance-scale=1 --device=cpu --resamples=100".split()


@pytest.fixture
def evaluate(dpok, pipeline_folder, adapters):
    """Evaluate an adapter of the very small pipeline, as quickly as can be."""
    model = (f"--model={pipeline_folder}", f"--adapter=tuned={adapters['shaken']}")
    return lambda *more: dpok("evaluate", *model, *FLAGS, "--reward=jpeg-compressibility", *more)


def rows(results, scope):
    own = (row for row in results["rows"] if row["scope"] == scope and row["model"] == "tuned")
    return {row["category"]: row["n"] for row in own if row["measure"] == "jpeg-compressibility"}


def test_geneval(evaluate, tmp_path):
    write(tmp_path / "set", "geneval")
    result = evaluate("--benchmark=geneval=set", "--output=out")
    assert result.code == 0, result.err
    assert "GenEval's own layout: out/geneval (hard links)." in result.err.splitlines()
    assert "set: 3 prompts; GenEval has 553." in result.err.replace(
        "/evaluation_metadata.jsonl", ""
    )
    results = json.loads(Path("out/results.json").read_text())
    assert results["benchmark"] == "geneval"
    assert rows(results, "category") == {"single_object": 4, "counting": 4, "colors": 4}
    for model in ("base", "tuned"):
        images = sorted(Path("out/geneval", model).rglob("*.png"))
        assert [image.relative_to(f"out/geneval/{model}").as_posix() for image in images] == [
            f"{row:05}/samples/{seed:04}.png" for row in range(3) for seed in range(4)
        ]
    again = evaluate("--benchmark=geneval=set", "--output=out")
    assert (again.code, again.out) == (0, result.out)


def test_partiprompts_by_category_and_challenge(evaluate, tmp_path):
    write(tmp_path / "set", "partiprompts")
    result = evaluate("--benchmark=partiprompts=set", "--samples=2", "--output=out")
    assert result.code == 0, result.err
    results = json.loads(Path("out/results.json").read_text())
    assert rows(results, "category") == {"Animals": 4, "Abstract": 2, "Artifacts": 2}
    assert rows(results, "challenge") == {"Basic": 4, "Writing & Symbols": 2, "Simple Detail": 2}
    prompts = {line.split("  ")[0] for line in result.out.splitlines()}
    assert {"given", "given, Animals", "given, Basic", "given, Writing & Symbols"} <= prompts
    page = Path("out/report.html").read_text()
    assert "<summary>Category: Animals</summary>" in page
    assert "<summary>Challenge: Writing &amp; Symbols</summary>" in page
    assert not Path("out/partiprompts").exists()


@pytest.mark.parametrize(
    ("flags", "samples"), [([], 10), (["--samples=3"], 3), (["--config=own.toml"], 5)]
)
def test_images_of_a_prompt_are_as_many_as_the_benchmark_says(flags, samples, evaluate, tmp_path):
    write(tmp_path / "set", "t2i-compbench")
    Path("own.toml").write_text("[evaluate]\nsamples = 5\n")
    result = evaluate("--benchmark=t2i-compbench=set", *flags, "--print-config")
    assert f"samples = {samples}" in result.out.splitlines()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--prompt=a cat"], "--benchmark brings its own prompts: leave out those of other flags."),
        (["--unseen-prompts"], "--benchmark brings its own prompts"),
        (["--category=none"], "has no category 'none'. Known: colors, counting, single_object."),
    ],
)
def test_what_does_not_go_with_it_is_refused(flags, said, evaluate, tmp_path):
    write(tmp_path / "set", "geneval")
    result = evaluate("--benchmark=geneval=set", *flags)
    assert (result.code, result.out) == (2, "")
    assert said in result.err
    alone = evaluate("--download", "--prompt=a cat")
    assert (alone.code, alone.out) == (2, "")
    assert "--download needs --benchmark NAME, which it fetches." in alone.err

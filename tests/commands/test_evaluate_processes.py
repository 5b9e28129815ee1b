"""`dpok evaluate` in two real processes: each draws its share, and they write what one would."""

from pathlib import Path

import pytest

from support.processes import ranks

pytestmark = pytest.mark.slow
# Five batches a model, the last one short: the processes do not share them evenly.
FLAGS = (
    "--prompt=a-cat --prompt=a-dog --samples=7 --sample-batch-size=3 --resamples=100"
    " --num-inference-steps=2 --reward=jpeg-compressibility --device=cpu --seed=3"
).split()


@pytest.fixture
def evaluate(adapters, pipeline_folder, python):
    """Run the command in so many processes that meet as launchers let them, until all end."""
    flags = [f"--adapter=tuned={adapters['shaken']}", f"--model={pipeline_folder}", *FLAGS]

    def evaluate(output, count):
        command = ("-m", "dpok_cli", "evaluate", *flags, f"--output={output}")
        processes = [python(*command, environment=rank) for rank in ranks(count)]
        return [(process.wait(), process.out, process.err) for process in processes]

    return evaluate


def files(folder: Path) -> dict[str, bytes]:
    kept = [*folder.rglob("*.png"), *folder.glob("*.json*"), folder / "results.csv"]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in kept}


def test_two_processes_write_what_one_does(evaluate, tmp_path):
    for folder, count in (("one", 1), ("two", 2)):
        ended = evaluate(folder, count)
        assert [code for code, _, _ in ended] == [0] * count, ended
    # Only the first one prints.
    (_, out, err), silent = ended
    assert out.splitlines()[-1] == "Report: two/report.html"
    assert "Evaluation folder: two" in err.splitlines()
    assert silent == (0, "", "")

    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    assert sum(name.startswith("images/") for name in one) == 2 * 2 * 7
    assert one.keys() == two.keys()
    assert [name for name in one if name.endswith((".json", ".jsonl", ".csv"))] != []
    assert [name for name in one if not name.startswith("plots/") and one[name] != two[name]] == []

    # What one process began, two finish; what is there already is left as it is.
    scores = tmp_path / "one" / "scores.jsonl"
    lines = scores.read_text().splitlines(keepends=True)
    scores.write_text("".join(lines[:4]))
    (tmp_path / "one" / "results.json").unlink()
    resumed = evaluate("one", 2)
    assert [code for code, _, _ in resumed] == [0, 0], resumed
    again = files(tmp_path / "one")
    assert again["results.json"] == one["results.json"]
    assert again["scores.jsonl"].startswith("".join(lines[:4]).encode())


def test_a_folder_that_is_something_else_is_refused_by_both(evaluate, tmp_path):
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "mine.txt").write_text("mine")
    for code, out, err in evaluate("two", 2):
        assert (code, out) == (2, "")
        assert "two exists and is no evaluation. Give another --output" in err
    assert [file.name for file in (tmp_path / "two").iterdir()] == ["mine.txt"]

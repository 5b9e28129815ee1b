"""The code of docs/from-python.md runs, block after block, on the bundled model."""

import json
import re
from pathlib import Path

from PIL import Image

PAGE = Path(__file__).parents[1] / "docs" / "from-python.md"

#: What makes the blocks small, by what stands on the page.
SMALL = {
    "rounds=10": "rounds=1, samples_per_round=6, updates_per_round=1, num_inference_steps=4,"
    " evaluation_samples=2, sample_every=0, tracker=''",
    "images=256, steps=200": "images=4, steps=2, gamma=2.0, batch_size=2, log_every=1,"
    " num_inference_steps=4, sample_every=0, tracker=''",
    'config = resolve(SampleConfig, prompts=("a green colored rabbit",)': (
        'config = resolve(SampleConfig, prompts=("a green colored rabbit",), num_inference_steps=4'
    ),
    "samples=50": "samples=4, resamples=100, rewards=('judge', 'jpeg-compressibility')",
}


def blocks() -> list[str]:
    page = PAGE.read_text(encoding="utf-8")
    for large, small in SMALL.items():
        assert page.count(large) == 1, large
        page = page.replace(large, small)
    return re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def test_the_blocks_run_one_after_another(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    for number, block in enumerate(blocks(), 1):
        exec(compile(block, f"{PAGE.name}, block {number}", "exec"), found)

    assert found["run"].adapter.is_dir()
    assert json.loads(found["run"].summary.read_text()) == found["summary"]
    assert {"reward", "pixel_distance"} <= found["summary"]["after"].keys()
    assert [one.seed for one in found["samples"]] == [0, 1, 2, 3]
    assert found["picture"] == Path("samples/rabbit/before_after.png")
    with Image.open(found["picture"]) as picture:
        assert picture.format == "PNG"

    assert found["lora"].keys() == {"unet"}

    folder, results = found["folder"], found["results"]
    assert json.loads(folder.results.read_text()) == results
    assert [each["name"] for each in results["models"]] == ["base", "rabbit"]
    assert {row["group"] for row in results["rows"]} == {"seen", "unseen"}
    assert {"judge", "kl", "pixel_distance"} <= {row["measure"] for row in results["rows"]}
    assert [file.parent for file in found["plots"]] == [Path("figures")] * 3
    assert (found["page"], found["blind"]) == (folder.report, folder.human)
    assert all(file.is_file() for file in (*found["plots"], found["page"], found["blind"]))
    assert "seen rabbit judge" in capsys.readouterr().out


def test_there_is_a_block_for_each_thing_to_do():
    text = "\n".join(blocks())
    for call in (
        "train_rl",
        "train_sft",
        "compare",
        "write_samples",
        "write",
        "evaluate",
        "write_report",
    ):
        assert re.search(rf"\b{call}\(", text), call

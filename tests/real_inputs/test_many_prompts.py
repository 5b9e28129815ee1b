"""A file of many thousand prompts, as people publish them for training; here of some hundred."""

import json

import pytest

from dpok_cli.engine.bases.conditioning import Text

PROMPTS = [f"cat number {number} of many" for number in range(300)]
COMMANDS = {
    "train-rl": ["--name=run"],
    "train-sft": ["--name=run"],
    "sample": ["--seeds=0", "--output=out"],
    "evaluate": ["--samples=1", "--resamples=100", "--output=out"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_more_than_a_batch_of_embeddings_is_copied(
    command, dpok, pipeline_folder, adapters, flags, tmp_path, monkeypatch
):
    (tmp_path / "all.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    sizes, cat = [], Text.cat

    def spy(parts, *more):
        together = cat(parts, *more)
        sizes.append(len(together))
        return together

    monkeypatch.setattr(Text, "cat", spy)
    if command.startswith("train"):
        line = [each for each in flags(command, "--evaluation-samples=3") if "prompt" not in each]
    else:
        line = [command, f"--model={pipeline_folder}", "--device=cpu", "--num-inference-steps=1"]
        line += ["--guidance-scale=1", "--sample-batch-size=8"]
    if command == "evaluate":
        line += [f"--adapter={adapters['shaken']}", "--reward=jpeg-compressibility"]
    result = dpok(*line, "--prompts=all.txt", *COMMANDS[command])
    assert result.code == 0, result.err
    assert 0 < max(sizes) <= 16
    if command.startswith("train"):
        summary = json.loads((tmp_path / "runs/run/summary.json").read_text())
        assert summary["prompts"] == [PROMPTS[row] for row in (0, 100, 200)]
        assert summary["samples"] == [1, 1, 1]
        assert "pixel_distance" not in summary["before"]
    else:
        assert len(list((tmp_path / "out").rglob("*_0.png" if command == "sample" else "*.png")))
    if command == "evaluate":
        assert "0.000" not in result.out
        assert "diversity" not in result.out + result.err

"""A size, a count or a rank with some zeros too many, as a slip of the finger or a script makes it.

It ends at once with exit code 2 and leaves nothing; it does not compute, or take memory, for ever.
"""

import signal

import pytest

SAMPLE = "sample --prompt=cat --seeds=0-99999"
CASES = {
    "height": ("train-rl --height=100000", "--height 100000: must be a multiple of 8 up to 2048"),
    "width of sample": (f"{SAMPLE} --width=100000", "--width 100000: must be a multiple of 8"),
    "height beyond all": (
        "evaluate --height=1000000000000000000",
        "--height 1000000000000000000: must be",
    ),
    "rank": ("train-sft --lora-rank=1000000000", "--lora-rank 1000000000: must be in [1, 1024]"),
    "samples of a round": (
        "train-rl --samples-per-round=1000000000",
        "--samples-per-round 1000000000 needs more than",
    ),
    "images": ("train-sft --images=1000000000000", "--images 1000000000000 needs more than"),
    "batch of sft": ("train-sft --batch-size=1000000000", "--batch-size 1000000000 needs more"),
    "evaluation": (
        "train-sft --evaluation-samples=1000000000",
        "--evaluation-samples 1000000000: must be in",
    ),
    "grid": (
        "train-rl --sample-every=1 --sample-count=1000000000",
        "--sample-count 1000000000 needs more than",
    ),
    "samples of evaluate": ("evaluate --samples=1000000000", "--samples 1000000000: must be in"),
    "resamples": ("evaluate --resamples=1000000000", "--resamples 1000000000: must be in"),
    "steps of evaluate": (
        "evaluate --num-inference-steps=1000000000",
        "this model has 999 at most",
    ),
    "batch of sample": (
        f"{SAMPLE} --width=2048 --height=2048 --sample-batch-size=100000",
        "--sample-batch-size 100000 needs more than",
    ),
    "seeds of sample": ("sample --prompt=cat --seeds=0-999999999", "at most 100000 seeds"),
}


@pytest.mark.parametrize("case", CASES)
def test_is_refused_at_once(case, dpok, flags, pipeline_folder, adapters, tmp_path):
    line, said = CASES[case]
    command, *more = line.split()
    if command.startswith("train"):
        result = dpok(*flags(command), *more)
    else:
        base = [f"--model={pipeline_folder}", "--device=cpu"]
        if command == "evaluate":
            base += [
                f"--adapter={adapters['shaken']}",
                "--prompt=cat",
                "--reward=jpeg-compressibility",
            ]
        result = dpok(command, *base, *more)
    assert result.code == 2, result.err
    (error,) = [row for row in result.err.splitlines() if row.startswith("Error: ")]
    assert said in error
    assert result.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_group_larger_than_the_round_is_the_round(train, tmp_path):
    for size in ("2", "1000000000"):
        assert train("train-rl", f"--group-size={size}", f"--name=of-{size}").code == 0
    weights = {file.read_bytes() for file in tmp_path.glob("runs/*/adapter/*.safetensors")}
    assert len(weights) == 1


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train-rl", "train-sft"])
def test_a_stop_does_not_wait_for_the_images(command, python, flags, tmp_path):
    """Images so large that a round would take minutes: the first one, or its grid, is not done."""
    large = ["--height=1024", "--width=1024", "--num-inference-steps=900", "--sample-every=1"]
    process = python("-m", "dpok_cli", *flags(command, *large, "--name=run"))
    process.wait_for_line("Run folder")
    process.send(signal.SIGTERM)
    assert process.wait() == 143
    assert process.err.splitlines()[-1] == f"Stopped; resume with: dpok {command} --resume runs/run"
    assert not list((tmp_path / "runs" / "run").rglob("*.png"))

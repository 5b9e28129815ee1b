"""`dpok train-sft`: what it prints where, what it leaves, and where its images come from."""

import json
import tomllib

import pytest
from PIL import Image
from safetensors.torch import load_file

from support.rewards import Redness
from support.text import numbers, rows


def test_progress_is_on_stderr_and_the_result_on_stdout(train, run, install, tmp_path):
    install(Redness)
    given = ("--reward=redness", "--learning-rate=0.1", "--name=lion")
    code, out, err = train("train-sft", *given)

    assert code == 0
    first, folder, half, whole, images, *steps = err.splitlines()
    assert numbers(first) == [4, 2, 2, 2]  # 4 images x 2 steps; 2 updates on 2 of them
    assert folder.endswith(" runs/lion")
    assert [half.split()[:2], whole.split()[:2]] == [["images", "2/4"], ["images", "4/4"]]
    metrics = run("lion").metrics
    mean, std = metrics[0]["reward/mean"], metrics[0]["reward/std"]
    assert images.startswith(f"4 images: reward {mean:.3f} ± {std:.3f}, 0 weights ")
    assert [line[:9] for line in steps] == ["step 1/2 ", "step 2/2 "]
    for line, record in zip(steps, metrics, strict=True):
        for part in (
            f"loss {record['loss']:.4f}",
            f"kl {record['kl']:.2e}",
            f"grad norm {record['grad_norm']:.3f}",
            f"lr {record['learning_rate']:.1e}",
        ):
            assert part in line
    assert rows(out) == [
        *run("lion").table(),
        ["Adapter:", "runs/lion/adapter"],
        ["Next:", "dpok", "sample", "--run", "runs/lion", "--before"],
        "For ComfyUI or A1111: dpok export runs/lion --format kohya".split(),
    ]
    before, after = (run("lion").summary[side]["reward"] for side in ("before", "after"))
    assert before != after
    assert (tmp_path / "runs/lion/plots/metrics.png").read_bytes().startswith(b"\x89PNG")


def test_flags_reach_the_run(train, run, adapters, tmp_path):
    assert train("train-sft", "--name=first", "--evaluation-samples=0").code == 0
    (tmp_path / "runs" / "first" / "dataset").rename("set")
    given = ("--gamma=2.5", "--kl-form=kl-o", "--lora-rank=4", "--learning-rate=1e-9", "--name=x")
    result = train(
        "train-sft", *given, f"--init-adapter={adapters['shaken']}", "--dataset=set", "--steps=1"
    )
    assert result.code == 0, result.err
    asked = {"gamma": 2.5, "kl_form": "kl-o", "dataset": str(tmp_path / "set"), "steps": 1}
    assert asked.items() <= run("x").config.items()
    # The images are those of the set, and the adapter has hardly left the one that it began with.
    assert not any(line.startswith("images ") for line in result.err.splitlines())
    begun, ended = (
        load_file(folder / "pytorch_lora_weights.safetensors")
        for folder in (adapters["shaken"], tmp_path / "runs" / "x" / "adapter")
    )
    assert begun.keys() == ended.keys()
    assert max((begun[key] - ended[key]).abs().max() for key in begun) < 1e-6
    assert min(weight.abs().max() for weight in begun.values()) > 0.1


def test_resumed_with_more_steps_it_keeps_its_settings(train, dpok, run):
    assert train("train-sft", "--name=old", "--evaluation-samples=0").code == 0
    result = dpok("train-sft", "--resume", "old", "--steps", "3")
    assert result.code == 0, result.err
    assert [record["step"] for record in run("old").metrics] == [1, 2, 3]
    assert [line[:9] for line in result.err.splitlines() if line.startswith("step")] == [
        "step 3/3 "
    ]
    refused = dpok("train-sft", "--resume", "old", "--gamma", "2.5")
    assert (refused.code, refused.out) == (2, "")
    assert "--gamma 2.5: it is 3.0 in" in refused.err


@pytest.mark.parametrize("preset", ["sd15", "sd15-sft"])
def test_the_papers_run(preset, dpok, pipeline_folder):
    printed = dpok("train-sft", "--preset", preset, "--print-config")
    assert printed.code == 0
    config = tomllib.loads(printed.out)
    assert (config["gamma"], config["kl_form"], config["learning_rate"]) == (2.0, "kl-d", 2e-5)
    assert (config["steps"], config["images"], config["lora_rank"]) == (8000, 20_000, 4)
    assert config["batch_size"] * config["gradient_accumulation"] == 128
    # A device that is not there ends it after its arithmetic.
    model = f"--model={pipeline_folder}"
    flags = ("--prompt=a lion", model, "--preset", preset, "--device=no-such-device")
    result = dpok("train-sft", *flags)
    assert result.code == 2
    assert "no-such-device" in result.err.splitlines()[-1]
    # 20000 images x 50 steps; 8000 updates on 128 (16 x 8)
    assert numbers(result.err.splitlines()[0]) == [20_000, 50, 8000, 128, 16, 8]


# ------------------------------------------------------------------------ images of one's own


@pytest.fixture
def own(tmp_path):
    """A folder of three images with the prompts of two."""
    folder = tmp_path / "mine"
    folder.mkdir()
    texts = ["a cat", "a dog", "a cat"]
    for number, text in enumerate(texts):
        Image.new("RGB", (16, 16), (80 * number, 0, 0)).save(folder / f"{number}.png")
        line = json.dumps({"file_name": f"{number}.png", "text": text})
        with (folder / "metadata.jsonl").open("a") as file:
            file.write(line + "\n")
    return folder


@pytest.mark.parametrize(
    ("flags", "prompts"),
    [
        ([], ["a cat", "a dog"]),
        (["--sample-count=1"], ["a cat"]),
        (["--prompt=a lion"], ["a lion"]),
    ],
)
def test_images_of_ones_own_bring_their_prompts(flags, prompts, own, dpok, run, pipeline_folder):
    small = (
        "--steps=1 --batch-size=2 --lora-rank=2 --num-inference-steps=2 --sample-every=0 --gamma=9"
        f" --evaluation-samples=2 --tracker= --device=cpu --model={pipeline_folder} --name=x"
    )
    reward = "--reward=jpeg-incompressibility"
    result = dpok("train-sft", "--dataset=mine", reward, *small.split(), *flags)
    assert result.code == 0, result.err
    assert run("x").config["prompts"] == run("x").summary["prompts"] == prompts
    assert run("x").config["dataset"] == str(own)
    assert run("x").metrics[0]["samples"] == 3

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from dpok_cli.commands.train_sft import arithmetic
from dpok_cli.config import TrainSFTConfig, resolve
from dpok_cli.errors import InputError

PROMPT = ("--prompt", "a green rabbit")


def record(step):
    return {
        "step": step,
        "samples": 256,
        "reward/mean": -1.2,
        "reward/std": 0.5,
        "weight/zero": 180,
        "loss": 0.5,
        "kl": 1e-3,
        "grad_norm": 0.25,
        "learning_rate": 1e-3,
        "skipped": 0,
        "seconds/update": 2.0,
    }


@pytest.fixture
def trained(engine):
    engine.drawn = [16, 128, 256]
    engine.records = [record(10), record(20)]
    engine.summary = {
        "before": {"reward": 0.5, "judge": 0.25},
        "after": {"reward": 1.0, "judge": 0.75},
    }
    return engine


def test_tells_the_run_on_stderr_and_its_result_on_stdout(trained, dpok, tmp_path):
    code, out, err = dpok("train-sft", *PROMPT, "--name", "rabbit", "--steps", "20")

    assert code == 0
    lines = err.splitlines()
    assert "bundled tiny model" in lines[0]
    assert lines[1].startswith("256 images x 20 steps, drawn once; then 20 updates on ")
    assert lines[2] == "Run folder: runs/rabbit"
    assert [line.split()[:2] for line in lines[3:5]] == [
        ["images", "128/256"],
        ["images", "256/256"],
    ]
    assert lines[5] == "256 images: reward -1.200 ± 0.500, 180 weights cut to zero"
    assert [line[:11] for line in lines[6:]] == ["step 10/20 ", "step 20/20 "]
    assert lines[6].endswith(
        "loss 0.5000  kl 1.00e-03  grad norm 0.250  lr 1.0e-03  2.0 s  left 0:02"
    )
    rows = [line.split() for line in out.splitlines()]
    assert rows == [
        ["before", "after", "change"],
        ["judge", "0.250", "0.750", "+0.500"],
        ["Adapter:", "runs/rabbit/adapter"],
        ["Next:", "dpok", "sample", "--run", "runs/rabbit", "--before"],
    ]
    assert (tmp_path / "runs/rabbit/plots/metrics.png").is_file()


def test_flags_reach_the_engine(trained, dpok, tmp_path):
    flags = ("--gamma", "1.5", "--kl-form", "kl-o", "--init-adapter", "some/adapter", "--name", "x")
    assert dpok("train-sft", *PROMPT, *flags, "--dataset", "set").code == 0
    config = TrainSFTConfig(
        prompts=("a green rabbit",),
        gamma=1.5,
        kl_form="kl-o",
        init_adapter="some/adapter",
        dataset=str(tmp_path / "set"),
        name="x",
    )
    assert trained.calls[:4] == [
        ("check", "tiny"),
        ("check", Path("some/adapter")),
        ("load", config, None),
        ("train_sft", config, ("image-reward",)),
    ]


def test_gone_on_with(trained, dpok, monkeypatch, tmp_path):
    run = tmp_path / "runs" / "old"
    run.mkdir(parents=True)
    (run / "config.toml").write_text("prompts = ['a lion']\nsteps = 10\ngamma = 2.0\n")
    folder = sys.modules["dpok_cli.engine.runs.folder"].RunFolder
    monkeypatch.setattr(folder, "config", run / "config.toml", raising=False)
    monkeypatch.setattr(folder, "read_config", lambda self: {"steps": 10})
    assert dpok("train-sft", "--resume", "old", "--steps", "20").code == 0
    (config,) = (call[1] for call in trained.calls if call[0] == "train_sft")
    assert (config.prompts, config.steps, config.gamma) == (("a lion",), 20, 2.0)
    result = dpok("train-sft", "--resume", "old", "--gamma", "3")
    assert result.code == 2
    assert "gamma = 3.0: it is 2.0 in" in result.err


def test_the_papers_run():
    for preset in ("sd15", "sd15-sft"):
        config = resolve(TrainSFTConfig, preset)
        assert (config.gamma, config.kl_form, config.learning_rate) == (2.0, "kl-d", 2e-5)
        assert (config.steps, config.images, config.lora_rank) == (8000, 20_000, 4)
        assert config.batch_size * config.gradient_accumulation == 128
    assert arithmetic(config) == (
        "20000 images x 50 steps, drawn once; then 8000 updates on 128 (16 x 8) of them."
    )


# -------------------------------------------------------------------------------- a person's own


@pytest.fixture
def own(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    texts = ["a cat", "a dog", "a cat"]
    for number in range(3):
        Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
    lines = [{"file_name": f"{number}.png", "text": text} for number, text in enumerate(texts)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize(
    ("flags", "prompts"),
    [
        ((), ("a cat", "a dog")),
        (("--sample-count", "1"), ("a cat",)),
        (PROMPT, ("a green rabbit",)),
    ],
)
def test_an_own_folder_brings_its_prompts(flags, prompts, own, trained, dpok):
    assert dpok("train-sft", "--dataset", "mine", *flags).code == 0
    (config,) = (call[1] for call in trained.calls if call[0] == "train_sft")
    assert (config.prompts, config.dataset) == (prompts, str(own))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"file_name": "gone.png", "text": "a cat"}', "line 1: there is no file"),
        (None, "is no image set: it has no metadata.jsonl"),
    ],
)
def test_a_folder_that_cannot_be_used(lines, message, own, engine, dpok, tmp_path):
    (own / "metadata.jsonl").unlink()
    if lines:
        (own / "metadata.jsonl").write_text(lines)
    before = sorted(tmp_path.rglob("*"))
    result = dpok("train-sft", *PROMPT, "--dataset", "mine")
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert engine.calls == []
    assert sorted(tmp_path.rglob("*")) == before


def test_an_adapter_that_does_not_fit_leaves_nothing_behind(engine, dpok, monkeypatch, tmp_path):
    def adapt(*_):
        raise InputError("Rank.")

    load = sys.modules["dpok_cli.engine.bases.model"].load
    monkeypatch.setattr(type(load(None)), "adapt", adapt)
    assert dpok("train-sft", *PROMPT, "--init-adapter", "x").code == 2
    assert list(tmp_path.iterdir()) == []

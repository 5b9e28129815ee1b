"""Whole files that are then damaged: exit code 2, one line that names them, nothing written."""

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from dpok_cli import cli

Damage = Callable[[Path], object]

#: Would make a folder, if anyone ran it.
PICKLE = b"cos\nmkdir\n(S'ran'\ntR."
QUIET = "--quiet --device=cpu --reward=jpeg-compressibility"
TRAIN = f"train-rl {QUIET} --prompt=cat --lora-rank=2 --model=model"
SFT = f"train-sft {QUIET} --prompt=cat --lora-rank=2 --model=model"
SAMPLE = "sample --quiet --device=cpu --prompt=cat --seeds=0 --output=out --model=model"
EVALUATE = f"evaluate {QUIET} --prompt=cat --samples=1 --resamples=100 --output=out --model=model"
RL, SFT_RUN = "runs/rl", "runs/sft"
STATE, MANIFEST = "state.safetensors", "manifest.json"  # of a checkpoint
LORA = "pytorch_lora_weights.safetensors"
UNET = "model/unet/diffusion_pytorch_model.safetensors"
CHECKPOINT, LAST = f"{RL}/checkpoints/000001", f"{SFT_RUN}/checkpoints/000001"


def nothing(folder: Path) -> None:
    """For cases in which the command line is what does not fit."""


def write(name: str, content: bytes | str) -> Damage:
    content = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str) -> Damage:
    """Leave the first half of a file."""

    def damage(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return damage


def lose(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def replace(name: str, old: str, new: str) -> Damage:
    def damage(folder):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return damage


def pickle_for(name: str) -> Damage:
    """Put PyTorch's old format, which runs code, where safetensors was."""

    def damage(folder):
        file = folder / name
        file.unlink()
        file.with_suffix(".bin").write_bytes(PICKLE)

    return damage


def of_another_base(name: str) -> Damage:
    """Make every weight of an adapter one wider than the model's layers are."""

    def damage(folder):
        from safetensors.torch import load_file, save_file

        wider = {}
        for key, value in load_file(folder / name).items():
            out, of = value.shape
            down = ".lora_A." in key or ".lora.down." in key
            wider[key] = value.new_zeros(out, of + 1) if down else value.new_zeros(out + 1, of)
        save_file(wider, folder / name)

    return damage


def state(content: bytes) -> Damage:
    """Put something else into a checkpoint, with the manifest to match."""

    def damage(folder):
        (folder / CHECKPOINT / STATE).write_bytes(content)
        manifest = {"bytes": len(content), "sha256": sha256(content).hexdigest()}
        (folder / CHECKPOINT / MANIFEST).write_text(json.dumps(manifest))

    return damage


def swap_checkpoints(folder: Path) -> None:
    shutil.rmtree(folder / CHECKPOINT)
    shutil.copytree(folder / LAST, folder / CHECKPOINT)


HEADER = b'{"__metadata__":{"state":"{}"}}'
NO_STATE = len(HEADER).to_bytes(8, "little") + HEADER
OF_ANOTHER_BASE = of_another_base(f"{RL}/adapter/{LORA}")

CASES: dict[str, tuple[Damage, str, str]] = {
    # model folders
    "weights are lost": (lose(UNET), TRAIN, "Cannot load the model model: "),
    "weights are empty": (write(UNET, b""), SAMPLE, "Cannot load the model model: "),
    "weights were cut off": (cut(UNET), SFT, "Cannot load the model model: "),
    "weights are no safetensors": (write(UNET, PICKLE), SAMPLE, "Cannot load the model model: "),
    "weights are a pickle": (pickle_for(UNET), TRAIN, "Cannot load the model model: "),
    "weights of evaluate": (cut(UNET), f"{EVALUATE} --adapter={RL}/adapter", "Cannot load the mod"),
    "weights of another shape": (
        replace("model/unet/config.json", '"cross_attention_dim": 16', '"cross_attention_dim": 24'),
        SAMPLE,
        "Cannot load the model model: ",
    ),
    "part without settings": (lose("model/vae/config.json"), TRAIN, "Cannot load the model model"),
    "part's settings are no JSON": (
        write("model/unet/config.json", "{"),
        SFT,
        "Cannot load the mo",
    ),
    "scheduler is lost": (lose("model/scheduler/scheduler_config.json"), SAMPLE, "Cannot load the"),
    "no such layer": (
        nothing,
        f"{TRAIN} --lora-targets=to_x",
        "--lora-targets 'to_x'",
    ),
    "more steps than the model has": (
        nothing,
        f"{TRAIN} --num-inference-steps=1001",
        "--num-inference-steps 1001: this model has 999 at most",
    ),
    "no such device": (nothing, f"{TRAIN} --device=gpu", "--device 'gpu': "),
    # adapters
    "adapter of another base": (
        OF_ANOTHER_BASE,
        f"{SAMPLE} --adapter={RL}/adapter",
        "not fit this",
    ),
    "adapter of another base to evaluate": (
        OF_ANOTHER_BASE,
        f"{EVALUATE} --adapter={RL}/adapter",
        f"The adapter {RL}/adapter does not fit this model: ",
    ),
    "adapter of another base to start from": (
        OF_ANOTHER_BASE,
        f"{SFT} --init-adapter={RL}/adapter",
        f"The adapter {RL}/adapter does not fit this model: its weights for unet.",
    ),
    "adapter was cut off": (
        cut(f"{RL}/adapter/{LORA}"),
        "sample --run=rl --quiet",
        "cannot be read",
    ),
    "adapter is lost": (
        lose(f"{RL}/adapter/{LORA}"),
        "sample --run=rl --quiet",
        "no adapter runs/rl",
    ),
    "adapter of another rank": (
        nothing,
        f"{TRAIN} --lora-rank=4 --init-adapter={RL}/adapter",
        "is of rank 2, and lora_rank is 4: give --lora-rank 2",
    ),
    "adapter of another scale": (
        nothing,
        f"{SFT} --lora-alpha=16 --init-adapter={RL}/adapter",
        "has another scale: give --lora-alpha 2",
    ),
    "adapter of other layers": (
        nothing,
        f"{TRAIN} --lora-targets=to_q --init-adapter={RL}/adapter",
        "is on the layers ",
    ),
    # checkpoints
    "state was cut off": (
        cut(f"{CHECKPOINT}/{STATE}"),
        "train-rl --resume=rl",
        "is intact, so the run cannot be resumed",
    ),
    "state is empty": (write(f"{CHECKPOINT}/{STATE}", ""), "train-rl --resume=rl", "is intact, so"),
    "state is lost": (
        lose(f"{LAST}/{STATE}"),
        "train-sft --resume=sft",
        f"{SFT_RUN}/checkpoints is",
    ),
    "state is a pickle": (state(PICKLE), "train-rl --resume=rl", f"{RL}/checkpoints is intact"),
    "state says nothing": (state(NO_STATE), "train-rl --resume=rl", "are of another kind of run"),
    "state of another training": (
        swap_checkpoints,
        "train-rl --resume=rl",
        "of another kind of run",
    ),
    "manifest is lost": (lose(f"{CHECKPOINT}/{MANIFEST}"), "train-rl --resume=rl", "is intact, so"),
    "manifest is a list": (
        write(f"{CHECKPOINT}/{MANIFEST}", "[]"),
        "train-rl --resume=rl",
        "is intact",
    ),
    "manifest is no JSON": (
        write(f"{LAST}/{MANIFEST}", "{"),
        "train-sft --resume=sft",
        "is intact, so",
    ),
    "checkpoint of another rank": (
        replace(f"{RL}/config.toml", "lora_rank = 2", "lora_rank = 4"),
        "train-rl --resume=rl",
        "adapter differs from config.toml",
    ),
    "checkpoint of other layers": (
        replace(f"{SFT_RUN}/config.toml", "lora_targets = []", 'lora_targets = ["to_q"]'),
        "train-sft --resume=sft",
        "adapter differs from config.toml",
    ),
    "metrics are damaged": (
        write(f"{RL}/metrics.jsonl", "{}\n"),
        "train-rl --resume=rl",
        f"{RL}/metrics.jsonl, line 1, is damaged",
    ),
    # image sets
    "set of another sampler": (
        nothing,
        f"{SFT} --dataset={SFT_RUN}/dataset --num-inference-steps=7",
        "was made with --num-inference-steps 2, not --num-inference-steps 7",
    ),
    "set of other prompts": (
        nothing,
        f"{SFT} --dataset={SFT_RUN}/dataset --num-inference-steps=2 --prompt=y",
        "was made with --prompt 'cat', not --prompt 'cat', 'y'",
    ),
    "set is damaged": (
        replace(f"{SFT_RUN}/dataset/metadata.jsonl", '{"file_name": "images/000000.png"', "["),
        "train-sft --resume=sft --steps=2",
        "metadata.jsonl, line 1, is damaged",
    ),
}


@pytest.fixture(scope="module")
def whole(pipeline_folder, tmp_path_factory) -> Path:
    """A folder with a model and a run of each training, with a checkpoint each."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(pipeline_folder, folder / "model")
    small = (
        f"{QUIET} --lora-rank=2 --num-inference-steps=2 --batch-size=2 --sample-every=0"
        f" --evaluation-samples=0 --tracker= --runs-dir={folder}/runs --model={folder}/model"
    ).split()
    for command in (
        "train-rl --name=rl --rounds=1 --samples-per-round=2 --updates-per-round=1",
        "train-sft --name=sft --steps=1 --images=2 --checkpoint-every=1 --gamma=300",
    ):
        assert cli.run([*command.split(), "--prompt=cat", *small]) == 0
    return folder


def tree(folder: Path) -> dict[str, bytes | None]:
    """Return every file, and every folder as None."""
    return {
        path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("case", CASES)
def test_is_one_line_and_nothing_is_written(case, dpok, whole, tmp_path):
    damage, arguments, message = CASES[case]
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    damage(tmp_path)
    before = tree(tmp_path)

    result = dpok(*arguments.split(), "--quiet")

    assert result.code == 2, result.err
    assert result.out == ""
    assert result.err.startswith("Error: ")
    assert result.err.count("\n") == 1
    assert message in result.err.replace(f"{tmp_path}/", "")  # a run knows its files by whole paths
    assert tree(tmp_path) == before


def test_the_same_commands_work_on_whole_files(dpok, whole, tmp_path):
    """So that the cases above fail for their own reasons."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    for command in ("train-rl --resume=rl --rounds=2", "train-sft --resume=sft --steps=2"):
        assert dpok(*command.split(), "--quiet").code == 0
    for command in (f"{SAMPLE} --adapter={RL}/adapter", f"{EVALUATE} --adapter={RL}/adapter"):
        result = dpok(*command.replace("--output=out", f"--output={command[:3]}").split())
        assert result.code == 0, result.err

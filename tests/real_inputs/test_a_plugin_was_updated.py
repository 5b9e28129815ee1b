"""A run that is resumed, or numbers that are used again, after a reward's package was updated.

From a run that was stopped over an upgrade, whose curve had a step that nothing explained.
"""

import importlib.metadata
import json
from dataclasses import make_dataclass
from pathlib import Path

import pytest

from dpok_cli import RewardModel
from dpok_cli.engine.runs import versions

SMALL = (
    "--prompt=cat --batch-size=2 --num-inference-steps=2 --lora-rank=2 --sample-every=0 --tracker="
    " --evaluation-samples=0 --device=cpu --reward=glow:gamma=2 --reward=jpeg-compressibility"
).split()
RL = "train-rl --rounds=1 --samples-per-round=2 --updates-per-round=1 --name=run".split()
SFT = "train-sft --images=2 --steps=1 --log-every=1 --gamma=100 --dataset=set".split()


@pytest.fixture
def update(install):
    """Install a reward as a version of its package has it, in place of an earlier version."""

    def update(version, **options):
        options = [(name, type(value), value) for name, value in {"gamma": 1, **options}.items()]

        class Glow(RewardModel):
            """The mean of all pixels."""

            name = "glow"
            Options = make_dataclass("Options", options, frozen=True)

            def score_batch(self, images, prompts):
                return images.mean((1, 2, 3)) * self.options.gamma

        install(Glow, package="dpok-glow", version=version)

    return update


def changes(result):
    assert result.code == 0, result.err
    return [line for line in result.err.splitlines() if "changed since" in line]


GLOW = (
    "Warning: Reward glow:gamma=2 has changed since {} was last used: dpok-glow 1.2 is now"
    " dpok-glow 1.3, size 3 is now 5, kind (absent) is now soft. Scores from before stay as they"
    " are."
)


def test_a_resumed_run_says_what_has_changed_once(dpok, update, pipeline_folder):
    update("1.2", size=3)
    assert changes(dpok(*RL, *SMALL, f"--model={pipeline_folder}")) == []
    made = json.loads(Path("runs/run/versions.json").read_text())
    assert made["rewards"]["glow:gamma=2"] == {
        "package": "dpok-glow",
        "version": "1.2",
        "options": {"gamma": 2, "size": 3},
    }
    assert set(made["libraries"]) == set(versions.LIBRARIES)
    assert changes(dpok("train-rl", "--resume=run", "--rounds=2")) == []
    update("1.3", size=5, kind="soft")
    resumed = dpok("train-rl", "--resume=run", "--rounds=3")
    assert changes(resumed) == [GLOW.format(Path("runs/run"))]
    assert changes(dpok("train-rl", "--resume=run", "--rounds=4")) == []


def test_a_run_that_cannot_be_resumed_keeps_its_versions(dpok, update, pipeline_folder):
    update("1.2", size=3)
    assert changes(dpok(*RL, *SMALL, f"--model={pipeline_folder}")) == []
    file = Path("runs/run/versions.json")
    before = file.read_text()
    (state,) = Path("runs/run/checkpoints").glob("*/state.safetensors")
    state.write_bytes(b"")
    update("1.3", size=5)
    assert dpok("train-rl", "--resume=run", "--rounds=2").code == 2
    assert file.read_text() == before


def test_a_continued_evaluation_says_it_too(dpok, update, pipeline_folder):
    update("1.2", size=3)
    assert changes(dpok(*RL, *SMALL, f"--model={pipeline_folder}")) == []
    flags = ("evaluate", "--run=run", "--reward=glow:gamma=2", "--samples=1", "--output=scores")
    assert changes(dpok(*flags)) == []
    lines = Path("scores/scores.jsonl").read_text().splitlines(keepends=True)
    Path("scores/scores.jsonl").write_text(lines[0])  # interrupted after its first image
    update("1.3", size=5, kind="soft")
    assert changes(dpok(*flags)) == [GLOW.format("scores")]
    assert changes(dpok(*flags)) == []


def test_an_image_set_that_another_run_scored_says_it_too(dpok, update, pipeline_folder):
    update("1.2", size=3)
    flags = (*SFT, *SMALL, f"--model={pipeline_folder}")
    assert changes(dpok(*flags, "--name=one")) == []
    update("1.3", size=5, kind="soft")
    assert changes(dpok(*flags, "--name=two")) == [GLOW.format(Path("set").resolve())]


def test_libraries_are_told_as_well(dpok, update, pipeline_folder, monkeypatch):
    update("1", size=3)
    assert changes(dpok(*RL, *SMALL, f"--model={pipeline_folder}")) == []
    real = importlib.metadata.version
    monkeypatch.setattr(versions, "version", lambda name: "9.9" if name == "torch" else real(name))
    (line,) = changes(dpok("train-rl", "--resume=run", "--rounds=2"))
    assert line == (
        f"Warning: Libraries have changed since {Path('runs/run')} was last used: torch"
        f" {real('torch')} is now 9.9."
    )


@pytest.mark.parametrize("text", ["", "[]", '{"rewards": {"glow": 3}}', "null"])
def test_a_damaged_record_compares_nothing_and_is_written_anew(text, tmp_path):
    from dpok_cli.rewards.manager import build

    reward, told = build(["jpeg-compressibility"]), []
    (tmp_path / versions.FILE).write_text(text)
    versions.note_versions(tmp_path, reward, told.append)
    assert told == []
    written = json.loads((tmp_path / versions.FILE).read_text())
    assert list(written["rewards"]) == ["jpeg-compressibility"]

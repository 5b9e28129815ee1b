"""Denoiser evaluations and seconds until the pictures are right, by setting, prompt and seed.

    python benchmarks/efficiency.py [--output FOLDER] [--settings default,paper] [--seeds 0,1,2]

Trains on the paper's prompts and the tiny world with each of SETTINGS, one run at a time, until the
run ends by itself or at LIMIT. The judge scores each round's own images, without weight in the
reward. Where the mean of two rounds is ASK or more, it scores 64 images of fresh seeds, drawn as
`dpok sample` draws them; the run has arrived once RIGHT of them are right. At its end the adapter
that it keeps is measured on the same seeds, and so is the base model. Diversity is that of all
images, and of the right ones alone: what is wrong with an image makes it different, too. The mean
in the budget is that of the rounds in the first BUDGET evaluations. Evaluations and seconds are
those of rollouts, rewards and updates.

A finished run is not repeated, and an interrupted one is resumed; for several at once, start
several commands with other --seeds or --prompts, then one for the table. Prints a Markdown table
and writes it, with its numbers, to table.md and table.json.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from math import nan
from pathlib import Path
from statistics import mean
from typing import Any

from dpok_cli.allocator import keep_freed_memory
from dpok_cli.config import resolve
from dpok_cli.engine.rl.settings import TrainRLConfig
from dpok_cli.strict_json import dumps

PROMPTS = (
    "A green colored rabbit.",
    "A cat and a dog.",
    "Four wolves in the park.",
    "A dog on the moon.",
)
#: The share of right images to arrive at, and of a round's own from which on fresh ones are drawn.
RIGHT, ASK = 0.85, 0.8
BUDGET, LIMIT = 28_800, 60_000
FRESH = 64
PARTS = ("seconds/rollout", "seconds/reward", "seconds/update")
#: The settings of a row, over the defaults.
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {"preset": "sd15", "model": "tiny", "rewards": ("image-reward:model=tiny",)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("build/efficiency"))
    parser.add_argument("--settings", default="default", help="Names of SETTINGS, by commas.")
    parser.add_argument("--prompts", default="0,1,2,3", help="Numbers of PROMPTS, by commas.")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--limit", type=int, default=LIMIT, help="Evaluations to end a run at.")
    given = parser.parse_args()
    keep_freed_memory()
    results = []
    for setting in given.settings.split(","):
        for row in map(int, given.prompts.split(",")):
            for seed in map(int, given.seeds.split(",")):
                run = given.output / f"{setting}-{row}-{seed}"
                result = run / "efficiency.json"
                if not result.exists():
                    print(run.name, file=sys.stderr, flush=True)
                    found = train(run, SETTINGS[setting], PROMPTS[row], seed, given.limit)
                    known = {"setting": setting, "prompt": PROMPTS[row], "seed": seed}
                    result.write_text(dumps(known | found), encoding="utf-8")
                results.append(json.loads(result.read_text(encoding="utf-8")))
    table = markdown(results)
    (given.output / "table.md").write_text(table, encoding="utf-8")
    (given.output / "table.json").write_text(dumps(results, indent=2), encoding="utf-8")
    print(table)


def train(
    path: Path, setting: dict[str, Any], prompt: str, seed: int, limit: int
) -> dict[str, Any]:
    """Train as the top of the file says; returns what was measured."""
    from dpok_cli.engine.bases.load import load
    from dpok_cli.engine.rl.loop import train_rl
    from dpok_cli.engine.runs.folder import RunFolder
    from dpok_cli.rewards.combined import WeightedReward
    from dpok_cli.rewards.manager import build

    place = {"runs_dir": str(path.parent), "name": path.name, "tracker": ""}
    config = resolve(TrainRLConfig, **setting, **place, prompts=(prompt,), seed=seed)
    model = load(config)
    trained, judge = build(config.rewards, model.device), build(["judge"], model.device)
    reward = WeightedReward([*trained.rewards.values(), (judge.rewards["judge"][0], 0.0)])
    run = RunFolder.open(str(path)) if path.exists() else RunFolder.create(config)
    note = path / "arrived.json"
    arrived = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
    rounds = train_rl(config, model, reward, run)
    for record in rounds:
        evaluations, history = record["denoiser_evaluations"], run.history()
        own = mean(each["reward/judge"] for each in history[-2:])
        if (
            not arrived
            and own >= ASK
            and (fresh := measure(model, config, reward))["judge"] >= RIGHT
        ):
            seconds = sum(sum(map(each.get, PARTS)) for each in history)
            arrived = {"evaluations": evaluations, "seconds": seconds, "kl": record["kl"]} | fresh
            note.write_text(dumps(arrived), encoding="utf-8")
        if evaluations >= limit:
            break
    rounds.close()  # the model has now the adapter that the run keeps
    kept = measure(model, config, reward)
    with model.reference():
        base = measure(model, config, reward)
    history = run.history()
    within = [each for each in history if each["denoiser_evaluations"] <= BUDGET]
    return {
        "arrived": arrived,
        "kept": kept,
        "base": base,
        # Not of the loop: a run that was interrupted after its last round has no more.
        "evaluations": history[-1]["denoiser_evaluations"],
        "mean": mean(each["reward/judge"] for each in within),
    }


def measure(model: Any, config: TrainRLConfig, reward: Any) -> dict[str, float]:
    """Return the means of FRESH images as the model is now, and diversity by CLIP.

    "diversity" is that of all, "among_right" that of those which the judge finds right, 0 if there
    are not two.
    """
    import torch

    from dpok_cli.engine.evaluation.diversity import diversity
    from dpok_cli.engine.sampling.sampler import Sampler
    from dpok_cli.engine.sampling.seeds import FRESH_SEEDS
    from dpok_cli.rewards.embedding import image_embedding

    seeds = range(FRESH_SEEDS, FRESH_SEEDS + FRESH)
    drawn = Sampler(model, config.for_evaluation()).sample(config.prompts, seeds)
    images = torch.stack([one.image for one in drawn])
    scores = reward.score(images.to(model.device), list(config.prompts) * FRESH).raw
    embed = image_embedding(config.model, model.device).embed
    means = {name: values.mean().item() for name, values in scores.items()}
    right = images[scores["judge"].cpu() > 0.5]
    among_right = diversity(right, embed, 16) if len(right) > 1 else 0.0
    return means | {"diversity": diversity(images, embed, 16), "among_right": among_right}


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """Make the table: a row for each setting and prompt, with one number for each seed."""
    lines = [
        "| setting | prompt | evaluations until right | seconds | mean in the budget | evaluations"
        " in all | right at the end | diversity there, of the base's | among right images |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rows = {(each["setting"], each["prompt"]): None for each in results}
    for setting, prompt in rows:
        found = [each for each in results if (each["setting"], each["prompt"]) == (setting, prompt)]
        cells = [
            [f"{each['arrived']['evaluations']:.0f}" if each["arrived"] else "-" for each in found],
            [f"{each['arrived']['seconds']:.0f}" if each["arrived"] else "-" for each in found],
            [f"{each['mean']:.2f}" for each in found],
            [f"{each['evaluations']:.0f}" for each in found],
            [f"{each['kept']['judge']:.2f}" for each in found],
            *(
                [f"{each['kept'][kind] / (each['base'][kind] or nan):.2f}" for each in found]
                for kind in ("diversity", "among_right")
            ),
        ]
        lines.append("| " + " | ".join([setting, prompt, *map(", ".join, cells)]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

"""Stage 8: measure the shipped fp16 models and write the model card."""

import hashlib
import json
from pathlib import Path

import torch

from dpok_cli.config import SampleConfig, resolve
from dpok_cli.engine.bases.load import load
from dpok_cli.engine.sampling.pictures import grid
from dpok_cli.engine.sampling.sampler import Sampler
from dpok_cli.rewards.manager import build
from dpok_cli.tiny.words import (
    ANIMALS,
    COLOURS,
    PAPER_PROMPTS,
    PLACES,
    UNSEEN_PROMPTS,
)
from stage import SEED
from world import HELD_OUT

SAMPLES = 256


def main(work: Path, output: Path) -> None:
    measured = json.loads((output / "measured.json").read_text())
    prompts = [*PAPER_PROMPTS.values(), *UNSEEN_PROMPTS.values()]
    config = resolve(SampleConfig, model=str(output / "pipeline"), prompts=tuple(prompts))
    reward = build(
        [
            f"judge:model={output / 'judge'}",
            f"image-reward:model={output / 'image_reward'}",
            f"clip:model={output / 'clip'}",
            f"aesthetic:model={output / 'aesthetic'},encoder={output / 'clip'}",
        ]
    )
    drawn = list(Sampler(load(config), config).sample(prompts, range(SAMPLES)))
    rows = []
    for start, prompt in enumerate(prompts):
        images = [one.image for one in drawn[start * SAMPLES : (start + 1) * SAMPLES]]
        raw = reward.score(torch.stack(images), [prompt] * SAMPLES).raw
        means = {name: scores.mean().item() for name, scores in raw.items()}
        numbers = [f"{mean:.2f}" for name, mean in means.items() if name != "judge"]
        rows.append(f"| {prompt} | {means['judge']:.0%} | {' | '.join(numbers)} |")
    print("\n".join(rows))
    shown = [
        one.image for k in range(len(prompts)) for one in drawn[k * SAMPLES : k * SAMPLES + 12]
    ]
    grid(shown, 12).save(output / "samples.png")
    lies = measured["diffusion"]["lie_rates"]
    files = sorted(output.rglob("*.safetensors"))
    template = Path(__file__).with_name("card.md").read_text(encoding="utf-8")
    text = template.format(
        animals=", ".join(ANIMALS),
        colours=", ".join(COLOURS),
        places=", ".join(PLACES[:-1]) + " or plain",
        held_out=" and ".join(f'"{prompt}"' for prompt in HELD_OUT),
        target=measured["diffusion"]["target"],
        lies="\n".join(f"| {prompt} | {share:.0%} |" for prompt, share in lies.items()),
        samples=SAMPLES,
        rates="\n".join(rows),
        pairs=measured["image_reward"]["held_out_pairs_ranked_right"],
        pairs_of=measured["image_reward"]["of"],
        captions=measured["clip"],
        looks=measured["aesthetic"],
        judge=measured["judge"]["held_out_renders_read_right"],
        judge_of=measured["judge"]["of"],
        picture="samples.png",
        hours="three hours",
        seed=SEED,
        torch=torch.__version__.split("+")[0],
        files="\n".join(
            f"| {file.relative_to(output)} | {file.stat().st_size} |"
            f" {hashlib.sha256(file.read_bytes()).hexdigest()} |"
            for file in files
        ),
    )
    (output / "README.md").write_text(text, encoding="utf-8")

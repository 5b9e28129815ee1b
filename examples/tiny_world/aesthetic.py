"""Stage 7: an aesthetic head in LAION's form: one linear layer on CLIP's unit image embedding.

There are no human ratings. A clean render is rated 7, a fully damaged one 3, and partly damaged
ones are interpolated; the head is the linear regression of these ratings.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPVisionModelWithProjection

from dpok_cli.rewards.images import clip_normalise
from dpok_cli.rewards.manager import build
from dpok_plugins.clip_net import from_pretrained
from judge import DAMAGES, damaged
from stage import generator, note, random_pictures, save_half

RENDERS = 6000  # each is used clean and damaged
CHUNK = 100
HELD_OUT = 2000
BEST, WORST = 7.0, 3.0


def fit(embeds: Tensor, ratings: Tensor) -> dict[str, Tensor]:
    """Return weight (1, D) and bias (1,) of the least-squares line from (N, D) to (N,)."""
    inputs = torch.cat([embeds, torch.ones(len(embeds), 1)], 1).double()
    line = torch.linalg.lstsq(inputs, ratings.double()[:, None]).solution[:, 0]
    return {"weight": line[None, :-1].float(), "bias": line[-1:].float()}


def samples(rng: np.random.Generator, count: int):
    """Yield clean images (CHUNK, 3, 64, 64) and damaged copies, each kind in turn."""
    for number in range(count // CHUNK):
        clean = random_pictures(rng, CHUNK)
        torch.manual_seed(int(rng.integers(2**31)))
        yield clean, damaged(clean, rng, number % DAMAGES)


@torch.no_grad()
def main(work: Path, output: Path) -> None:
    encoder = from_pretrained(CLIPVisionModelWithProjection, output / "clip")
    embeds, ratings = [], []
    for clean, broken in samples(generator(7), RENDERS):
        harm = torch.rand(CHUNK, 1, 1, 1)
        for images, rating in (
            (clean, torch.full((CHUNK,), BEST)),
            (clean.lerp(broken, harm), BEST + (WORST - BEST) * harm.flatten()),
        ):
            embeds.append(normalize(encoder(clip_normalise(images)).image_embeds, dim=-1))
            ratings.append(rating)
    folder = output / "aesthetic"
    save_half(fit(torch.cat(embeds), torch.cat(ratings)), folder / "aesthetic.safetensors")

    reward = build([f"aesthetic:model={folder},encoder={output / 'clip'}"])
    scores = torch.stack(
        [
            torch.stack([reward.score(images, [""] * CHUNK).total for images in pair])
            for pair in samples(generator(7, 10**6), HELD_OUT)
        ],
        1,
    ).flatten(1)  # (clean and damaged, HELD_OUT)
    figures = {
        "held_out_pairs_ranked_right": (scores[0] > scores[1]).float().mean().item(),
        "of": HELD_OUT,
        "clean_mean": scores[0].mean().item(),
        "clean_std": scores[0].std().item(),
        "damaged_mean": scores[1].mean().item(),
    }
    print(f"aesthetic: {figures}", flush=True)
    note(output, "aesthetic", figures)

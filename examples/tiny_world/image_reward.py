"""Stage 5: the reward: ImageReward's architecture at small size, in its checkpoint format.

Like ImageReward it learns from comparisons: of two images, the one that shows the caption must
score higher; of two captions, the one that the image shows. Pairs are one attribute apart.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BlipTextConfig, BlipVisionConfig

from dpok_cli.rewards.images import clip_normalise
from dpok_cli.tiny.words import COLOURS, MAX_COUNT, OBJECTS, PLACES, Scene
from dpok_plugins.image_reward_net import (
    SCORE_MEAN,
    SCORE_STD,
    ImageRewardNet,
    to_published,
    tokenizer_from_vocab,
)
from dpok_plugins.judge_net import Views
from judge import damaged, objective, worn
from stage import generator, note, pictures, save_half, train
from vocabulary import wordpiece
from world import SHARES as USUAL_SHARES
from world import caption, complete, sample_asked, twin

STEPS, PAIRS = 11_000, 12
VISION_STEPS = 3000  # the vision tower is trained alone first
#: Hard cases get a larger share: which two objects there are, and how many.
SHARES = {"colour": 0.2, "count": 0.27, "composition": 0.43, "location": 0.1}
HARD = 0.6
HELD_OUT = 2000
WIDTH = 128
MED_KEYS = (
    "hidden_size intermediate_size num_hidden_layers num_attention_heads hidden_act layer_norm_eps"
    " hidden_dropout_prob attention_probs_dropout_prob max_position_embeddings vocab_size"
).split()


class WithAttributes(nn.Module):
    """The reward with an auxiliary task for its vision tower, without which learning stalls."""

    def __init__(self, reward: nn.Module):
        super().__init__()
        self.reward = reward
        self.counts = nn.Linear(WIDTH, len(OBJECTS) * (MAX_COUNT + 1))
        self.colours = nn.Linear(WIDTH, len(OBJECTS) * len(COLOURS))
        self.place = nn.Linear(WIDTH, len(PLACES))

    def views(self, image_tokens: torch.Tensor) -> Views:
        pooled = image_tokens.mean(1)
        return Views(
            counts=self.counts(pooled).unflatten(1, (len(OBJECTS), -1)),
            colours=self.colours(pooled).unflatten(1, (len(OBJECTS), -1)),
            place=self.place(pooled),
        )


def build(vocabulary: int) -> WithAttributes:
    torch.manual_seed(5)
    vision = BlipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=64,
        patch_size=8,
        layer_norm_eps=1e-6,
        initializer_range=0.02,
    )
    text = BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        encoder_hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
        bos_token_id=None,
        sep_token_id=None,
    )
    return WithAttributes(ImageRewardNet(vision, text, (128, 64, 32, 16)))


def doubled(asked: Scene, scene: Scene, which: int) -> tuple[Scene, Scene]:
    """Replace a pair by two of one object, the hardest case to distinguish from the pair."""

    def twice(one: Scene) -> Scene:
        return replace(one, things=(replace(one.things[which], count=2),))

    return twice(asked), twice(scene)


def sample_pairs(
    rng: np.random.Generator,
    count: int,
    shares: dict[str, float] = USUAL_SHARES,
    hard: float = 0.0,
):
    """Return captions and scenes: rows 2k and 2k + 1 are one attribute apart.

    For captions about two objects, a share ``hard`` uses `doubled` as the counterpart.
    """
    captions, scenes = [], []
    for _ in range(count):
        category, asked = sample_asked(rng, shares)
        scene = complete(asked, rng)
        other_asked, other_scene = twin(asked, scene, rng)
        if hard and category == "composition" and rng.random() < hard:
            other_asked, other_scene = doubled(asked, scene, int(rng.integers(2)))
        captions += [caption(asked, rng), caption(other_asked, rng)]
        scenes += [scene, other_scene]
    return captions, scenes


def main(work: Path, output: Path) -> None:
    vocabulary = wordpiece()
    tokenizer = tokenizer_from_vocab(vocabulary)
    model = build(len(vocabulary))
    net = model.reward

    def scores(image_tokens: torch.Tensor, captions: list[str]) -> torch.Tensor:
        tokens = tokenizer(
            captions, padding=True, truncation=True, max_length=35, return_tensors="pt"
        )
        return net.score_tokens(image_tokens, tokens.input_ids, tokens.attention_mask)

    def batch(step: int):
        rng = generator(5, step)
        captions, scenes = sample_pairs(rng, PAIRS, SHARES, HARD)
        return pictures((scene, rng) for scene in scenes), captions, scenes, rng

    def loss(data, step: int):
        images, captions, scenes, rng = data
        third = PAIRS // 3 * 2
        seen = torch.cat([images[:third], worn(images[third:], rng)])
        if step < VISION_STEPS:
            tokens = net.image_tokens(clip_normalise(seen))
            return objective(model.views(tokens), scenes), {}
        broken = damaged(seen[:6], rng)
        tokens = net.image_tokens(clip_normalise(torch.cat([seen, broken])))
        rows = len(seen)
        swapped = [captions[k ^ 1] for k in range(rows)]
        unrelated = [captions[(k + 6) % rows] for k in range(6)]
        right, wrong, off, low = scores(
            torch.cat([tokens[:rows], tokens[:rows], tokens[:6], tokens[rows:]]),
            captions + swapped + unrelated + captions[:6],
        ).split([rows, rows, 6, 6])
        other_image = wrong.view(-1, 2).flip(1).flatten()  # this caption with the twin's image
        preference = (F.softplus(wrong - right) + F.softplus(other_image - right)).mean()
        level = F.softplus(-right).mean() + F.softplus(wrong).mean() + F.softplus(off).mean()
        quality = F.softplus(low - right[:6]).mean()
        value = preference + level + 0.3 * quality
        value = value + 0.5 * objective(model.views(tokens[:rows]), scenes)
        won = (right > wrong).float().mean().item()
        return value, {"pairs": won, "pictures": (right > other_image).float().mean().item()}

    train(
        "image_reward",
        model,
        batch,
        loss,
        steps=STEPS,
        learning_rate=1e-3,
        weight_decay=0.02,
        work=work,
        ema=0.998,
    )
    model.eval()
    right, wrong = [], []
    rng = generator(5, 10**6)
    with torch.no_grad():
        for _ in range(HELD_OUT // 100):
            captions, scenes = sample_pairs(rng, 50)
            tokens = net.image_tokens(clip_normalise(pictures((s, rng) for s in scenes)))
            other = tokens.view(-1, 2, *tokens.shape[1:]).flip(1).flatten(0, 1)
            right.append(scores(tokens, captions))
            wrong.append(scores(other, captions))
    good, bad = torch.cat(right), torch.cat(wrong)
    won = (good > bad).float().mean().item()
    print(f"image_reward: the correct one of two images in {won:.2%} of {len(good)} held-out pairs")
    note(output, "image_reward", {"held_out_pairs_ranked_right": won, "of": len(good)})
    # ImageReward's published constants normalise the head's output to mean 0 and standard deviation
    # 1 on its data. The last layer is rescaled so that they do the same here.
    both = torch.cat([good, bad])
    last = net.head[-1]
    with torch.no_grad():
        last.bias.sub_(both.mean()).mul_(SCORE_STD / both.std()).add_(SCORE_MEAN)
        last.weight.mul_(SCORE_STD / both.std())
    folder = output / "image_reward"
    save_half(to_published(net), folder / "ImageReward.safetensors")
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    med = {key: value for key, value in net.text.config.to_dict().items() if key in MED_KEYS}
    (folder / "med_config.json").write_text(json.dumps(med, indent=2) + "\n", encoding="utf-8")

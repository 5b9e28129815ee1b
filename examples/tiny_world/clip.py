"""Stage 6: a small CLIP with CLIP's objective: find each image's caption within a batch.

One wrong caption of each image is one attribute away from the correct one. The vision tower also
learns to predict the image's attributes and its damage, so that the embedding contains them.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from dpok_cli.rewards.images import clip_normalise
from dpok_cli.tiny.words import Scene, parse
from image_reward import WIDTH, WithAttributes, sample_pairs
from judge import DAMAGES, damaged, objective, worn
from stage import generator, note, pictures, train
from vocabulary import bpe

STEPS, PAIRS = 2600, 24
DAMAGED = 12  # images of a batch that are also used damaged
QUALITY_STEP = 1250  # by then it finds captions, and the weight of the damage task increases
EMBED, TEXT_WIDTH = 64, 96
HELD_OUT = 2000
LEAST_TEMPERATURE = 0.01  # CLIP's own bound


class WithQuality(WithAttributes):
    """CLIP with two more tasks for the image encoder: attributes and damage."""

    def __init__(self, clip: CLIPModel):
        super().__init__(clip)
        self.quality = nn.Linear(EMBED, 1)

    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return vision tokens (B, T, WIDTH) and unit embeddings (B, EMBED)."""
        seen = self.reward.vision_model(clip_normalise(images))
        embeds = self.reward.visual_projection(seen.pooler_output)
        return seen.last_hidden_state, F.normalize(embeds, dim=-1)

    def read(self, captions: list[str], tokenizer: CLIPTokenizer) -> Tensor:
        """Return the captions' unit embeddings (B, EMBED)."""
        tokens = tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
        return F.normalize(self.reward.get_text_features(**tokens).pooler_output, dim=-1)


def build(tokenizer: CLIPTokenizer) -> WithQuality:
    torch.manual_seed(6)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 3 * TEXT_WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "projection_dim": EMBED,
    }
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 8,
        "projection_dim": EMBED,
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=EMBED)
    return WithQuality(CLIPModel(config))


def contrast(logits: Tensor, scenes: list[Scene], captions: list[str]) -> Tensor:
    """CLIP's symmetric cross-entropy over (B, B) logits, images by captions.

    A caption that also describes another image is not a negative for that image.
    """
    asked = [parse(text) for text in captions]
    true = torch.tensor([[scene.shows(one) for one in asked] for scene in scenes])
    logits = logits.masked_fill(true.fill_diagonal_(False), -torch.inf)
    own = torch.arange(len(scenes))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def main(work: Path, output: Path) -> None:
    folder = output / "clip"
    tokenizer = bpe(folder)
    model = build(tokenizer)
    clip = model.reward

    def batch(step: int):
        rng = generator(6, step)
        captions, scenes = sample_pairs(rng, PAIRS)
        return pictures((scene, rng) for scene in scenes), captions, scenes, rng

    def loss(data, step: int):
        images, captions, scenes, rng = data
        rows = len(images)
        clean = images[:DAMAGED]
        harm = torch.rand(DAMAGED, 1, 1, 1)
        broken = clean.lerp(damaged(clean, rng, step % DAMAGES), harm)
        seen = torch.cat([images[: rows // 3], worn(images[rows // 3 :], rng), broken])
        tokens, embeds = model.look(seen)
        scale = clip.logit_scale.exp().clamp(max=1 / LEAST_TEMPERATURE)
        logits = scale * embeds[:rows] @ model.read(captions, tokenizer).T
        contrastive = contrast(logits, scenes, captions)
        attributes = objective(model.views(tokens[:rows]), scenes)
        predicted = model.quality(torch.cat([embeds[:DAMAGED], embeds[rows:]])).flatten()
        quality = F.mse_loss(predicted, torch.cat([torch.zeros(DAMAGED), harm.flatten()]))
        right = logits.diagonal() > logits.view(rows, -1, 2).flip(2).flatten(1).diagonal()
        shown = {
            "contrast": contrastive.item(),
            "attributes": attributes.item(),
            "quality": quality.item(),
            "twins": right.float().mean().item(),
            "scale": scale.item(),
        }
        weight = 3 if step < QUALITY_STEP else 10
        return contrastive + 0.5 * attributes + weight * quality, shown

    train(
        "clip",
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
    clip.half().save_pretrained(folder)
    figures = measure(model.float(), tokenizer)
    print(f"clip: {figures}", flush=True)
    note(output, "clip", figures)


@torch.no_grad()
def measure(model: WithQuality, tokenizer: CLIPTokenizer) -> dict[str, float]:
    """Return how often the correct caption is the closer of two that are one attribute apart, and
    how often the closest of 100 is correct, on clean held-out renders."""
    rng = generator(6, 10**6)
    twins = best = 0
    for _ in range(HELD_OUT // 100):
        captions, scenes = sample_pairs(rng, 50)
        _, images = model.look(pictures((scene, rng) for scene in scenes))
        cosines = images @ model.read(captions, tokenizer).T
        own = cosines.diagonal()
        twins += int((own > cosines.view(100, 50, 2).flip(2).flatten(1).diagonal()).sum())
        found = [parse(captions[column]) for column in cosines.argmax(1).tolist()]
        best += sum(scene.shows(asked) for scene, asked in zip(scenes, found, strict=True))
    return {
        "right_caption_of_two": twins / HELD_OUT,
        "true_caption_of_100": best / HELD_OUT,
        "of": HELD_OUT,
    }

"""Stage 2: the judge, which predicts objects, counts, colours and place of an image.

It learns from renders, clean and worn (slightly blurred, noisy or shifted in colour, like the
samples of a diffusion model), and from clutter that contains no objects.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import ResNetConfig

from dpok_cli.tiny.words import COLOURS, OBJECTS, PLACES, Scene
from dpok_plugins.judge_net import JudgeNet, Views
from dpok_plugins.judge_net import scenes as read
from stage import generator, note, pictures, train
from world import clutter, draw, sample_scene

STEPS, BATCH = 2600, 48
HELD_OUT = 2000
DAMAGES = 3  # kinds of damage


def build() -> JudgeNet:
    torch.manual_seed(2)
    return JudgeNet(
        ResNetConfig(
            embedding_size=32,
            hidden_sizes=[48, 96, 160, 224],
            depths=[1, 1, 1, 1],
            layer_type="basic",
        )
    )


def labels(scenes: list[Scene]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return counts (B, O), colours (B, O; -1 where there is nothing) and places (B,)."""
    counts = torch.zeros(len(scenes), len(OBJECTS), dtype=torch.long)
    colours = torch.full_like(counts, -1)
    for row, scene in enumerate(scenes):
        for thing in scene.things:
            counts[row, OBJECTS.index(thing.name)] = thing.count
            colours[row, OBJECTS.index(thing.name)] = COLOURS.index(thing.colour)
    return counts, colours, torch.tensor([PLACES.index(scene.place) for scene in scenes])


def worn(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Blur images slightly, shift their colours and add noise; they stay readable."""
    size = int(rng.integers(36, 65))
    small = F.interpolate(images, size, mode="bilinear", antialias=True)
    images = F.interpolate(small, images.shape[-1], mode="bilinear")
    images = images + 0.03 * torch.randn(len(images), 3, 1, 1)
    return (images + rng.uniform(0, 0.06) * torch.randn_like(images)).clamp(0, 1)


def damaged(images: torch.Tensor, rng: np.random.Generator, kind: int = -1) -> torch.Tensor:
    """Smear (kind 0), add noise (1) or over-saturate (2): clearly worse images.

    Any other ``kind`` chooses one of the three at random.
    """
    if kind not in range(DAMAGES):
        kind = int(rng.integers(DAMAGES))
    if kind == 0:
        return F.interpolate(F.avg_pool2d(images, 4), scale_factor=4.0, mode="bilinear")
    if kind == 1:
        return (images + rng.uniform(0.15, 0.4) * torch.randn_like(images)).clamp(0, 1)
    grey = images.mean(1, keepdim=True)
    return (grey + rng.uniform(2.0, 4.0) * (images - grey)).clamp(0, 1)


def objective(views: Views, scenes: list[Scene]) -> torch.Tensor:
    counts, colours, places = labels(scenes)
    return (
        2 * F.cross_entropy(views.counts.flatten(0, 1), counts.flatten())
        + F.cross_entropy(views.colours.flatten(0, 1), colours.flatten(), ignore_index=-1)
        + F.cross_entropy(views.place, places)
    )


def main(work: Path, output: Path) -> None:
    net = build()

    def batch(step: int):
        rng = generator(4, step)
        scenes = [sample_scene(rng) for _ in range(BATCH * 7 // 8)]
        images = [np.asarray(draw(scene, rng)) for scene in scenes]
        for _ in range(BATCH // 8):
            place = str(rng.choice(PLACES))
            scenes.append(Scene((), place))
            images.append(np.asarray(clutter(place, rng)))
        order = rng.permutation(BATCH)
        array = np.stack(images)[order]
        tensor = torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255
        return tensor, [scenes[row] for row in order], rng

    def loss(data, step: int):
        images, scenes, rng = data
        third = BATCH // 3
        images = torch.cat([images[:third], worn(images[third:], rng)])
        return objective(net(images), scenes), {}

    train("judge", net, batch, loss, steps=STEPS, learning_rate=2e-3, work=work)
    net.eval()
    net.half().save(output / "judge")
    net = JudgeNet.from_folder(output / "judge")
    rng = generator(4, 10**6)
    scenes = [sample_scene(rng) for _ in range(HELD_OUT)]
    images = pictures((scene, rng) for scene in scenes)
    with torch.no_grad():
        seen = [scene for chunk in images.split(100) for scene in read(net(chunk))]
    right = sum(a.shows(b) for a, b in zip(seen, scenes, strict=True)) / HELD_OUT
    print(f"judge: {right:.2%} of {HELD_OUT} held-out renders read correctly in full", flush=True)
    note(output, "judge", {"held_out_renders_read_right": right, "of": HELD_OUT})

"""The tiny world: its words, and that the bundled models are what their card says."""

import hashlib
import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dpok_cli import tiny
from dpok_cli.tiny.words import PAPER_PROMPTS, UNSEEN_PROMPTS, Scene, Thing, parse

ROOT = Path(__file__).parents[1]


def recipe(name: str):
    """Import a module of the recipe."""
    sys.path.insert(0, str(ROOT / "examples" / "tiny_world"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def world():
    return recipe("world")


@pytest.mark.parametrize(
    ("prompt", "things", "place"),
    [
        ("A green colored rabbit.", [Thing("rabbit", 1, "green")], None),
        ("a green colored rabbit", [Thing("rabbit", 1, "green")], None),
        ("an orange bird", [Thing("bird", 1, "orange")], None),
        ("Green rabbit", [Thing("rabbit", 1, "green")], None),
        ("a rabbit that is grey", [Thing("rabbit", 1, "gray")], None),
        ("A cat and a dog.", [Thing("cat"), Thing("dog")], None),
        ("Four wolves in the park.", [Thing("wolf", 4)], "park"),
        ("4 birds at the beach", [Thing("bird", 4)], "beach"),
        ("a photo of two red cups in a room", [Thing("cup", 2, "red")], "room"),
        ("A dog on the moon.", [Thing("dog")], "moon"),
    ],
)
def test_prompts_of_the_world_are_read(prompt, things, place):
    assert parse(prompt) == Scene(tuple(things), place)


@pytest.mark.parametrize(
    "prompt",
    ["", "a zebra", "six dogs", "a cat and a cat", "wolves", "a teal dog", "a dog and", "a cat on"],
)
def test_other_prompts_are_not(prompt):
    assert parse(prompt) is None


def test_a_scene_shows_what_is_asked_and_nothing_else():
    scene = Scene((Thing("cat", 2, "red"),), "park")
    assert scene.shows(parse("two cats"))
    assert scene.shows(parse("two red cats in the park"))
    assert not scene.shows(parse("a cat"))
    assert not scene.shows(parse("two green cats"))
    assert not scene.shows(parse("two cats on the moon"))
    assert not scene.shows(parse("a cat and a dog"))
    assert not Scene((Thing("cat", 1, "red"), Thing("dog", 1, "red")), "park").shows(parse("a cat"))


def test_captions_say_what_their_scene_asks(world):
    rng = np.random.default_rng(0)
    for _ in range(500):
        _, asked = world.sample_asked(rng)
        read = parse(world.caption(asked, rng))
        assert set(read.things) == set(asked.things)
        assert read.place == asked.place


def test_lies_do_not_show_what_the_caption_says(world):
    rng = np.random.default_rng(0)
    for _ in range(500):
        category, asked = world.sample_asked(rng)
        assert world.complete(asked, rng).shows(asked)
        if category != "plain":
            assert not world.complete(world.lie(category, asked, rng), rng).shows(asked)


def test_twins_are_one_attribute_apart(world):
    rng = np.random.default_rng(0)
    for _ in range(500):
        _, asked = world.sample_asked(rng)
        scene = world.complete(asked, rng)
        other_asked, other_scene = world.twin(asked, scene, rng)
        assert other_scene.shows(other_asked)
        assert not other_scene.shows(asked)
        assert not scene.shows(other_asked)


def test_a_scene_is_drawn_the_same_from_the_same_seed(world):
    scene = Scene((Thing("cat", 2, "red"),), "park")
    first, second, other = (
        np.asarray(world.draw(scene, np.random.default_rng(seed))) for seed in (1, 1, 2)
    )
    assert first.shape == (64, 64, 3)
    assert (first == second).all()
    assert (first != other).any()


def pictures(world, scenes, rng) -> torch.Tensor:
    """Draw scenes; (B, 3, 64, 64) in [0, 1]."""
    array = np.stack([np.asarray(world.draw(scene, rng)) for scene in scenes])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255


def test_each_damage_changes_pictures_in_its_own_way(world):
    damaged = recipe("judge").damaged
    rng = np.random.default_rng(0)
    clean = pictures(world, [world.sample_scene(rng) for _ in range(8)], rng)
    torch.manual_seed(0)

    def detail(images):  # how much neighbours differ
        return images.diff(dim=-1).abs().mean((1, 2, 3))

    def colour(images):  # how far the channels are apart
        return (images.amax(1) - images.amin(1)).mean((1, 2))

    smeared, noisy, saturated = (damaged(clean, rng, kind) for kind in range(3))
    for images in (smeared, noisy, saturated):
        assert images.shape == clean.shape
        assert images.amin() >= 0
        assert images.amax() <= 1
        assert ((images - clean).abs().mean((1, 2, 3)) > 0.01).all()
    assert (detail(smeared) < 0.8 * detail(clean)).all()
    assert (detail(noisy) > 2 * detail(clean)).all()
    assert (colour(saturated) > 1.1 * colour(clean)).all()
    assert (colour(smeared) < 1.1 * colour(clean)).all()
    drawn = torch.stack([damaged(clean[:1], rng) for _ in range(30)])
    calm, wild = detail(smeared)[0] * 1.01, detail(noisy)[0] * 0.5
    kinds = [(detail(one) > calm).sum() + (detail(one) > wild).sum() for one in drawn]
    assert {int(kind) for kind in kinds} == {0, 1, 2}  # smeared, saturated, noisy


def test_a_caption_that_is_true_of_another_picture_is_not_held_against_it():
    contrast = recipe("clip").contrast
    scenes = [Scene((Thing("cat", 1, colour),), "park") for colour in ("red", "blue")]
    logits = torch.tensor([[1.0, 3.0], [2.0, 0.5]])
    # "a blue cat" is false of the red cat, "a cat" is true of both.
    asked = contrast(logits, scenes, ["a cat", "a blue cat"])
    pictures = torch.tensor([1.0, 3.0]).logsumexp(0) - 1.0  # the second has no wrong caption
    captions = torch.tensor([3.0, 0.5]).logsumexp(0) - 0.5  # nor the first a wrong picture
    torch.testing.assert_close(asked, (pictures / 2 + captions / 2) / 2)


def test_the_aesthetic_head_is_a_least_squares_line():
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(50, 4, generator=generator)
    line = torch.tensor([1.0, -2.0, 0.5, 3.0])
    head = recipe("aesthetic").fit(embeds, embeds @ line + 5)
    torch.testing.assert_close(head["weight"], line[None])
    torch.testing.assert_close(head["bias"], torch.tensor([5.0]))


def test_the_pipeline_is_stable_diffusions_format():
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny.folder())
    for text in ("A green colored rabbit.", "Ünïcode 火 😀 zebra"):
        ids = pipeline.tokenizer(text).input_ids
        assert pipeline.tokenizer.decode(ids, skip_special_tokens=True).replace(
            " ", ""
        ) == text.lower().replace(" ", "")
    assert len(pipeline.tokenizer) == pipeline.text_encoder.config.vocab_size
    images = pipeline("a cat", num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 64, 64, 3)
    assert np.isfinite(images).all()


def test_the_judge_reads_held_out_renders(world):
    from dpok_plugins.judge_net import JudgeNet, scenes

    rng = np.random.default_rng(7)
    drawn = [world.sample_scene(rng) for _ in range(200)]
    images = pictures(world, drawn, rng)
    with torch.no_grad():
        seen = scenes(JudgeNet.from_folder(tiny.folder("judge"))(images))
    right = sum(one.shows(other) for one, other in zip(seen, drawn, strict=True))
    assert right / 200 >= 0.97


def test_the_reward_ranks_the_right_of_two_pictures_first(world):
    from dpok_cli.rewards.manager import build

    rng = np.random.default_rng(8)
    prompts, right, wrong = [], [], []
    for _ in range(200):
        _, asked = world.sample_asked(rng)
        scene = world.complete(asked, rng)
        _, other = world.twin(asked, scene, rng)
        prompts.append(world.caption(asked, rng))
        right.append(np.asarray(world.draw(scene, rng)))
        wrong.append(np.asarray(world.draw(other, rng)))
    images = torch.from_numpy(np.stack(right + wrong)).permute(0, 3, 1, 2).float() / 255
    scores = build(["image-reward:model=tiny"]).score(images, prompts + prompts).total
    assert (scores[:200] > scores[200:]).float().mean() >= 0.9


def bundled(name: str):
    here = (tiny.folder(name)).is_dir()
    return pytest.mark.skipif(not here, reason=f"the tiny {name} is not bundled (yet)")


@bundled("clip")
def test_clip_finds_the_right_of_two_captions(world):
    from transformers import CLIPModel, CLIPTokenizer

    from dpok_cli.rewards.manager import build

    rng = np.random.default_rng(9)
    scenes, right, wrong = [], [], []
    for _ in range(200):
        _, asked = world.sample_asked(rng)
        scene = world.complete(asked, rng)
        other, _ = world.twin(asked, scene, rng)
        scenes.append(scene)
        right.append(world.caption(asked, rng))
        wrong.append(world.caption(other, rng))
    images = pictures(world, scenes, rng)
    clip = build(["clip:model=tiny"])
    scores = clip.score(images, right).total
    assert (scores > clip.score(images, wrong).total).float().mean() >= 0.95
    net = CLIPModel.from_pretrained(tiny.folder("clip"))
    tokenizer = CLIPTokenizer.from_pretrained(tiny.folder("clip"))
    assert len(tokenizer) == net.config.text_config.vocab_size
    ids = tokenizer("Ünïcode 火 zebra").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True).split() == "ünïcode 火 zebra".split()


@bundled("aesthetic")
def test_the_aesthetic_head_prefers_clean_renders(world):
    from dpok_cli.rewards.manager import build

    damaged = recipe("judge").damaged
    rng = np.random.default_rng(10)
    clean = pictures(world, [world.sample_scene(rng) for _ in range(240)], rng)
    torch.manual_seed(0)
    broken = torch.cat([damaged(part, rng, k % 3) for k, part in enumerate(clean.split(40))])
    scores = build(["aesthetic:model=tiny"]).score(torch.cat([clean, broken]), [""] * 480).total
    assert (scores[:240] > scores[240:]).float().mean() >= 0.95


def test_the_card_names_the_files_that_are_there():
    folder = tiny.folder("")
    card = (folder / "README.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"\| (\S+\.safetensors) \| \d+ \| ([0-9a-f]{64}) \|", card))
    there = {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*.safetensors")
    }
    assert listed == there
    assert sum(file.stat().st_size for file in folder.rglob("*.safetensors")) < 20e6
    for prompt in (*PAPER_PROMPTS.values(), *UNSEEN_PROMPTS.values()):
        assert f"| {prompt} |" in card

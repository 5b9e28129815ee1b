"""The tiny world: its words, and that the bundled models are what their card says."""

import hashlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dpok_cli import tiny
from dpok_cli.tiny.words import PAPER_PROMPTS, UNSEEN_PROMPTS, Scene, Thing, parse

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def world():
    sys.path.insert(0, str(ROOT / "examples" / "tiny_world"))
    try:
        import world
    finally:
        sys.path.pop(0)
    return world


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
    array = np.stack([np.asarray(world.draw(scene, rng)) for scene in drawn])
    images = torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255
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


def test_the_card_names_the_files_that_are_there():
    folder = tiny.folder("")
    card = (folder / "README.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"\| (\S+\.safetensors) \| \d+ \| ([0-9a-f]{64}) \|", card))
    there = {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*.safetensors")
    }
    assert listed == there
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 20e6
    for prompt in (*PAPER_PROMPTS.values(), *UNSEEN_PROMPTS.values()):
        assert f"| {prompt} |" in card

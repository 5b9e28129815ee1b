"""CLIP's image embedding for distances between images."""

import shutil

import pytest
import torch
from transformers import CLIPImageProcessorPil, CLIPModel

from dpok_cli.rewards.embedding import image_embedding
from dpok_cli.rewards.images import to_pil
from dpok_cli.rewards.manager import build
from dpok_plugins import clip as plugin


@pytest.fixture
def tiny_clip(clip_folder, tmp_path, monkeypatch):
    """Make the small CLIP of the tests the bundled one."""
    shutil.copytree(clip_folder, tmp_path / "clip")
    monkeypatch.setattr("dpok_cli.rewards.weights.bundled.folder", lambda name: tmp_path / name)
    return tmp_path / "clip"


def test_it_equals_transformers_normalised_embedding(tiny_clip, pictures):
    embedding = image_embedding("tiny", "cpu")
    assert embedding is not None
    assert embedding.spec == "clip:model=tiny"
    images = pictures(3)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=24)
    pixels = processor([to_pil(image) for image in images], return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = CLIPModel.from_pretrained(tiny_clip).get_image_features(pixels).pooler_output
    expected = expected / expected.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(embedding.embed(images), expected, atol=1e-4, rtol=1e-4)


def test_a_loaded_clip_is_reused(tiny_clip, pictures, monkeypatch):
    loaded = build(["judge", "clip:model=tiny"])
    (reward, _) = loaded.rewards["clip"]
    reward.prepare()
    monkeypatch.setattr(plugin.Clip, "load", None)  # would raise if it were called
    embedding = image_embedding("tiny", "cpu", loaded)
    assert embedding is not None
    assert embedding.embed(pictures(2)).shape == (2, 12)


def test_without_weights_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr("dpok_cli.rewards.weights.bundled.folder", lambda name: tmp_path / name)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert image_embedding("tiny", "cpu") is None
    monkeypatch.setenv("DPOK_PLUGINS", "")
    assert image_embedding("some/model", "cpu") is None

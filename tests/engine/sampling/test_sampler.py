"""Prompts and seeds to images."""

import pytest
import torch

from dpok_cli.config import SampleConfig
from dpok_cli.engine.sampling.pictures import grid, to_pil
from dpok_cli.engine.sampling.sampler import Sampler


def draw(model, make_config, seeds, prompts=("a green rabbit", "two cats"), **changes):
    return list(Sampler(model, make_config(SampleConfig, **changes)).sample(prompts, seeds))


def test_an_image_for_each_prompt_and_seed_in_order(model, make_config):
    drawn = draw(model, make_config, [5, 2], sample_batch_size=3)
    assert [(one.prompt, one.seed) for one in drawn] == [
        ("a green rabbit", 5),
        ("a green rabbit", 2),
        ("two cats", 5),
        ("two cats", 2),
    ]
    for one in drawn:
        assert one.image.shape == (3, 16, 16)
        assert one.image.dtype == torch.float32
        assert not one.image.requires_grad
        assert 0 <= one.image.min() <= one.image.max() <= 1


def test_the_same_seed_is_the_same_image_beside_whatever(model, make_config):
    together = draw(model, make_config, range(4), guidance_scale=3.0, sample_batch_size=8)
    alone = draw(model, make_config, range(4), guidance_scale=3.0, sample_batch_size=1)
    for one, other in zip(together, alone, strict=True):
        assert (one.image - other.image).abs().max() <= 1e-5
    (single,) = draw(model, make_config, [2], prompts=["two cats"], guidance_scale=3.0)
    assert (single.image - together[6].image).abs().max() <= 1e-5
    assert (together[0].image - together[1].image).abs().max() > 1e-2


@pytest.mark.parametrize(
    "changes",
    [
        dict(eta=0.0),
        dict(guidance_scale=5.0),
        dict(num_inference_steps=3),
        dict(negative_prompt="blurred"),
    ],
)
def test_settings_matter(model, make_config, changes):
    usual = dict(guidance_scale=3.0)
    (before,) = draw(model, make_config, [0], prompts=["two cats"], **usual)
    (changed,) = draw(model, make_config, [0], prompts=["two cats"], **usual | changes)
    assert (before.image - changed.image).abs().max() > 1e-4


def test_without_guidance_there_is_no_negative_prompt(model, make_config):
    (usual,) = draw(model, make_config, [0], guidance_scale=1.0, prompts=["two cats"])
    (same,) = draw(
        model, make_config, [0], guidance_scale=1.0, prompts=["two cats"], negative_prompt="blurred"
    )
    assert torch.equal(usual.image, same.image)


def test_a_size_of_ones_own(build, make_config):
    from dpok_cli.engine.bases.model import DiffusionModel

    model = DiffusionModel(build(), height=32, width=24)
    (drawn,) = draw(model, make_config, [0], prompts=["two cats"])
    assert drawn.image.shape == (3, 32, 24)


def test_a_picture_has_the_rounded_pixels():
    image = torch.tensor([[[0.0, 1.0]], [[0.5, 0.2]], [[2.0, -1.0]]])
    picture = to_pil(image)
    assert picture.size == (2, 1)
    assert picture.getpixel((0, 0)) == (0, 128, 255)  # 127.5 rounds to even
    assert picture.getpixel((1, 0)) == (255, 51, 0)


def test_a_grid_goes_row_by_row():
    """Six pixels are enlarged 32 times, to 192; the gap of 2 pixels with them."""
    colours = torch.eye(3).view(3, 3, 1, 1).expand(3, 3, 3, 6)
    sheet = grid(list(colours), 2)
    assert sheet.size == (32 * (2 * 6 + 2), 32 * (2 * 3 + 2))
    assert sheet.getpixel((0, 0)) == (255, 0, 0)
    assert sheet.getpixel((32 * 8, 32 * 3 - 1)) == (0, 255, 0)
    assert sheet.getpixel((0, 32 * 5)) == (0, 0, 255)
    for gap in ((32 * 6, 0), (32 * 8 - 1, 0), (0, 32 * 3), (32 * 8, 32 * 5)):
        assert sheet.getpixel(gap) == (255, 255, 255)


def test_large_images_are_not_enlarged():
    sheet = grid([torch.zeros(3, 200, 100), torch.ones(3, 200, 100)], 1)
    assert sheet.size == (100, 2 * 200 + 2)

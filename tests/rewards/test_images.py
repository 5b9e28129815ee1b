import numpy as np
import pytest
import torch
from PIL import Image

from dpok_cli.rewards.images import centre_crop, clip_normalise, resize_short_side


@pytest.mark.parametrize(
    ("height", "width", "size", "resized"),
    [(64, 64, 48, (48, 48)), (120, 90, 32, (42, 32)), (40, 60, 64, (64, 96))],
)
def test_the_resize_matches_pillow(height, width, size, resized):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    theirs = Image.fromarray(pixels).resize(resized[::-1], Image.Resampling.BICUBIC)
    ours = resize_short_side(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255, size)
    assert ours.shape == (1, 3, *resized)
    assert ours.min() >= 0
    assert ours.max() <= 1
    difference = (ours[0] * 255).permute(1, 2, 0) - torch.from_numpy(np.array(theirs))
    # Pillow rounds twice: half a level, and half a level widened by the kernel.
    assert difference.abs().max() <= 1.2


def test_images_of_the_right_size_are_unchanged():
    images = torch.rand(2, 3, 32, 40)
    assert torch.equal(resize_short_side(images, 32), images)


def test_the_crop_is_the_middle():
    images = torch.arange(7.0).expand(1, 3, 4, 7)
    assert centre_crop(images, 4).shape == (1, 3, 4, 4)
    assert centre_crop(images, 4)[0, 0, 0].tolist() == [2, 3, 4, 5]


def test_clip_normalise_shifts_and_scales_each_channel():
    grey = clip_normalise(torch.full((1, 3, 1, 1), 0.5)).flatten()
    torch.testing.assert_close(grey, torch.tensor([0.0690369, 0.1613934, 0.3328386]))

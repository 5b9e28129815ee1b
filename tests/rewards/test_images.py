import numpy as np
import pytest
import torch
from PIL import Image

from dpok_cli.rewards.images import (
    CLIP_MEAN,
    CLIP_STD,
    centre_crop,
    clip_normalise,
    clip_preprocess,
    from_pil,
    resize,
    resize_short_side,
    to_pil,
)

#: Width and height: smaller, larger, long, and with margins of half a pixel after the resize.
SIZES = [(100, 77), (224, 224), (300, 451), (512, 512), (640, 427), (229, 224), (61, 64), (1, 9)]


def pixels_of(width, height, seed=0):
    """Noise, which a resize changes most."""
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (height, width, 3), dtype=np.uint8)


def by_pillow(pixels, size, half):
    """Resize, crop and normalise by Pillow and NumPy alone; ``half`` rounds half a pixel."""
    height, width = pixels.shape[:2]
    if width < height:
        shape = size, int(size * height / width)
    else:
        shape = int(size * width / height), size
    picture = Image.fromarray(pixels).resize(shape, Image.Resampling.BICUBIC)
    left, top = (half((side - size) / 2) for side in shape)
    picture = picture.crop((left, top, left + size, top + size))
    values = np.asarray(picture, dtype=np.float64) / 255
    return ((values - CLIP_MEAN) / CLIP_STD).transpose(2, 0, 1)


@pytest.mark.parametrize("size", [224, 64])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_without_gradients_images_are_prepared_by_pillow_on_8_bits(width, height, size):
    both = [pixels_of(width, height, seed) for seed in (0, 1)]
    images = from_pil([Image.fromarray(pixels) for pixels in both])
    for rounded, half in ((True, round), (False, int)):
        ours = clip_preprocess(images, size, rounded).double().numpy()
        for row, pixels in enumerate(both):
            np.testing.assert_allclose(ours[row], by_pillow(pixels, size, half), rtol=0, atol=1e-6)


def test_values_between_the_levels_are_rounded_before_a_resize():
    pixels = pixels_of(40, 60)
    exact = from_pil([Image.fromarray(pixels)])
    between = (exact + 0.4 / 255).clamp(0, 1)
    assert torch.equal(resize_short_side(between, 24), resize_short_side(exact, 24))


def test_images_become_pictures_and_pictures_images():
    pixels = pixels_of(5, 3)
    images = from_pil([Image.fromarray(pixels)] * 2)
    assert (images.shape, images.dtype) == ((2, 3, 3, 5), torch.float32)
    assert images[1, 2, 0, 4].item() == pytest.approx(pixels[0, 4, 2] / 255)
    assert np.array_equal(np.asarray(to_pil(images[0])), pixels)


def test_a_resize_keeps_type_and_device():
    images = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    assert resize(images, 4, 4).dtype == torch.float64


@pytest.mark.parametrize(
    ("height", "width", "size", "resized"),
    [(64, 64, 48, (48, 48)), (120, 90, 32, (42, 32)), (40, 60, 64, (64, 96))],
)
def test_with_gradients_the_resize_is_pillows_but_for_rounding(height, width, size, resized):
    pixels = pixels_of(width, height)
    theirs = Image.fromarray(pixels).resize(resized[::-1], Image.Resampling.BICUBIC)
    images = from_pil([Image.fromarray(pixels)]).requires_grad_()
    ours = resize_short_side(images, size)
    assert ours.requires_grad
    ours = ours.detach()
    assert ours.shape == (1, 3, *resized)
    assert ours.min() >= 0
    assert ours.max() <= 1
    difference = (ours[0] * 255).permute(1, 2, 0) - torch.from_numpy(np.array(theirs))
    # Pillow rounds twice: half a level, and half a level widened by the kernel.
    assert difference.abs().max() <= 1.2


def test_images_of_the_right_size_are_unchanged():
    images = torch.rand(2, 3, 32, 40)
    assert torch.equal(resize_short_side(images, 32), images)  # not rounded either


def test_the_crop_is_the_middle():
    images = torch.arange(7.0).expand(1, 3, 4, 7)
    assert centre_crop(images, 4).shape == (1, 3, 4, 4)
    assert centre_crop(images, 4)[0, 0, 0].tolist() == [2, 3, 4, 5]  # a margin of 1.5
    assert centre_crop(images, 4, rounded=False)[0, 0, 0].tolist() == [1, 2, 3, 4]


def test_clip_normalise_shifts_and_scales_each_channel():
    grey = clip_normalise(torch.full((1, 3, 1, 1), 0.5)).flatten()
    torch.testing.assert_close(grey, torch.tensor([0.0690369, 0.1613934, 0.3328386]))

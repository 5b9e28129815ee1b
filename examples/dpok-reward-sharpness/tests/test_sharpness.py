import pytest
import torch
from dpok_reward_sharpness import Sharpness


def test_one_bright_pixel_by_hand():
    image = torch.zeros(1, 3, 5, 5)
    image[..., 2, 2] = 1.0
    # The Laplacian of the inner 3 x 3: -4 in the middle, 1 beside it; its mean is 0.
    expected = (4**2 + 4 * 1**2) / 8
    assert Sharpness().score(image, [""]).item() == pytest.approx(expected)
    twice = Sharpness(Sharpness.Options(scale=2.0))
    assert twice.score(image, [""]).item() == pytest.approx(2 * expected)


def test_a_blurred_image_is_less_sharp():
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(image, 3, 1, 1)
    sharp, soft = Sharpness().score(torch.cat([image, blurred]), ["", ""]).tolist()
    assert soft < 0.1 * sharp

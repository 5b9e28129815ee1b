import numpy as np
import torch
from PIL import Image

from dpok_cli.rewards.manager import build


def test_the_score_is_the_size_of_the_file_on_disk(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 24, 40, 3), dtype=np.uint8)
    pixels[1] = 128  # one colour
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    sizes = []
    for picture in pixels:
        Image.fromarray(picture).save(tmp_path / "a.jpg", quality=95)
        sizes.append((tmp_path / "a.jpg").stat().st_size / 1000)
    assert sizes[1] < 1 < sizes[0]

    scores = build(["jpeg-incompressibility", "jpeg-compressibility=0.5"]).score(images, [""] * 3)
    expected = torch.tensor(sizes)
    assert torch.equal(scores.raw["jpeg-incompressibility"], expected)
    assert torch.equal(scores.raw["jpeg-compressibility"], expected)
    # Training for compressibility lowers the size: its part of the sum is negative.
    torch.testing.assert_close(scores.total, 0.5 * expected)

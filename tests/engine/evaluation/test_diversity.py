"""How different images are: known answers, and the same for floats and for 8 bits."""

import pytest
import torch

from dpok_cli.engine.evaluation import diversity as module
from dpok_cli.engine.evaluation.diversity import Pile, diversity, pixel_distance


def test_pixel_distance_is_the_mean_over_pairs():
    black, white = torch.zeros(3, 4, 4), torch.ones(3, 4, 4)
    assert pixel_distance(torch.stack([black, white])) == pytest.approx(1.0)
    # pairs: black-black 0, black-white 1 twice
    assert pixel_distance(torch.stack([black, black, white])) == pytest.approx(2 / 3)
    assert pixel_distance(torch.stack([white, white])) == 0.0
    assert pixel_distance(white[None]) == 0.0
    half = black.clone()
    half[0] = 1  # one channel of three: root of a third
    assert pixel_distance(torch.stack([black, half])) == pytest.approx((1 / 3) ** 0.5)


@pytest.mark.parametrize("count", [2, 32, 33, 70])
def test_eight_bits_are_compared_in_blocks(count):
    images = torch.randint(256, (count, 3, 5, 4), dtype=torch.uint8)
    assert pixel_distance(images) == pytest.approx(pixel_distance(images / 255), rel=1e-6)


def test_diversity_is_the_mean_cosine_distance_of_pairs():
    def embed(images):  # black one way, red a right angle off
        assert images.dtype == torch.float32
        assert images.max() <= 1
        red = images[:, 0].mean((1, 2)) > 0.5
        return torch.stack([red.float(), (~red).float()], 1)

    images = torch.zeros(8, 3, 2, 2, dtype=torch.uint8)
    images[:4, 0] = 255
    # 16 of the 28 pairs of 8 are of two colours, with a cosine distance of 1
    for batch_size in (3, 8, 100):
        assert diversity(images, embed, batch_size) == pytest.approx(16 / 28)
    assert diversity(images / 255, embed, 8) == pytest.approx(16 / 28)
    assert diversity(images[:1], embed, 8) == 0


@pytest.mark.parametrize("memory", [0, 10**6])
@pytest.mark.parametrize("eight_bits", [True, False])
def test_a_pile_is_as_the_images_themselves(memory, eight_bits, monkeypatch):
    monkeypatch.setattr(module, "_MEMORY", memory)
    images = torch.randint(256, (70, 3, 5, 4), dtype=torch.uint8)
    images = images if eight_bits else images / 255
    with Pile() as pile:
        pile.add(images[:3])  # of another prompt
        pile.clear()
        assert len(pile) == 0
        for batch in images.split(16):
            pile.add(batch)
        assert len(pile) == 70
        assert torch.equal(pile[15:33], images[15:33])
        assert torch.equal(pile[64:96], images[64:])
        assert pixel_distance(pile) == pixel_distance(images)

        def embed(batch):
            assert len(batch) <= 16
            return torch.nn.functional.normalize(batch.flatten(1), dim=1)

        assert diversity(pile, embed, 16) == diversity(images, embed, 16)

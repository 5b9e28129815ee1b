"""The ends of prompts that the built-in rewards do not read: those words change no score."""

import pytest
import torch

from dpok_cli.rewards.manager import build

IMAGES = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["clip", "image-reward"])
def test_words_that_are_not_read_change_nothing_and_others_do(name):
    reward = build([f"{name}:model=tiny"], "cpu")
    ((one, _),) = reward.rewards.values()
    words = ["cat"] * 90
    (line,) = reward.unread(["a cat", " ".join(words)])
    end = one.unread(" ".join(words)).split()
    assert line == (
        f"The reward {name} does not read {' '.join(end)!r} at the end of {' '.join(words)!r}."
    )

    def score(*dogs):
        text = " ".join("dog" if number in dogs else word for number, word in enumerate(words))
        return reward.score(IMAGES, [text]).total.item()

    first = 90 - len(end)
    assert 0 < first < 90
    assert score() == score(first) == score(89)
    assert score() != score(first - 1)
    assert one.unread(" ".join(words[:first])) == ""
    assert one.unread(" ".join(words[: first + 1])) == "cat"


@pytest.mark.parametrize("name", ["judge", "aesthetic", "jpeg-compressibility"])
def test_rewards_without_a_limit_name_nothing(name):
    spec = name if name.startswith("jpeg") else f"{name}:model=tiny"
    assert build([spec], "cpu").unread(["a cat " * 400]) == []

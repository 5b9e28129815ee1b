"""Which words of a prompt a reward does not read, and the line that names them."""

import pytest

from dpok_cli.errors import RewardError
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.combined import WeightedReward
from dpok_cli.rewards.unread import unread_line


class FirstTwo(RewardModel):
    """Reads two words."""

    name = "first-two"

    def load(self):
        self.words = 2

    def unread(self, prompt):
        return " ".join(prompt.split()[self.words :])

    def score_batch(self, images, prompts):
        return images.mean((1, 2, 3))


class All(FirstTwo):
    name = "all"
    unread = RewardModel.unread


class Broken(FirstTwo):
    name = "broken"

    def unread(self, prompt):
        raise ValueError("no words")


def test_a_reward_that_reads_less_is_named_with_the_words():
    reward = WeightedReward([(All(), 1.0), (FirstTwo(), 1.0), (FirstTwo(), 2.0)])
    assert reward.unread(["a cat", "red"]) == []
    assert reward.unread(["a red cat", "a cat", "two big dogs", "a red cat"]) == [
        f"The reward {name} does not read 'cat' at the end of 'a red cat', nor 'dogs' at the end of"
        " 'two big dogs'."
        for name in ("first-two", "first-two-2")
    ]
    with pytest.raises(RewardError, match="^broken: unread: ValueError: no words$"):
        WeightedReward([(Broken(), 1.0)]).unread(["a cat"])


def test_many_prompts_are_counted():
    line = unread_line(
        "x", [f"a cat {number}" for number in range(9)], lambda text: text.split()[2]
    )
    assert line.count("at the end of") == 3
    assert line.endswith("'2' at the end of 'a cat 2', nor the ends of 6 more prompts.")

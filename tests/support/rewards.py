"""Rewards whose values are plain from the image, for `install`."""

from dpok_cli import RewardModel


class Redness(RewardModel):
    """How much redder than green and blue the image is."""

    name = "redness"

    def score_batch(self, images, prompts):
        return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


class Brightness(RewardModel):
    """The mean of all pixels."""

    name = "brightness"

    def score_batch(self, images, prompts):
        return images.mean((1, 2, 3))

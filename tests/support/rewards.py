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


class Brightest(RewardModel):
    """The share of a prompt's other images that are darker; 1/2 for an image alone."""

    name = "brightest"
    batch_size = 2  # groups are larger

    def load(self):
        self.groups = []

    def score_group(self, images, prompt):
        self.groups.append((prompt, len(images)))
        light = images.mean((1, 2, 3))
        if len(light) == 1:
            return light * 0 + 0.5
        return (light[:, None] > light).float().sum(1) / (len(light) - 1)

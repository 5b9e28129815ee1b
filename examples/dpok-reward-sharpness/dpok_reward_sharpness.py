"""A reward for dpok: how sharp an image is."""

from dataclasses import dataclass

from dpok_cli import RewardModel, hookimpl


class Sharpness(RewardModel):
    """How sharp the image is: the variance of its Laplacian."""

    name = "sharpness"
    differentiable = True

    @dataclass(frozen=True)
    class Options:
        """``scale``: a factor."""

        scale: float = 1.0

    def score_batch(self, images, prompts):
        grey = images.mean(1)  # (B, H, W)
        across = grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
        down = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1]
        laplacian = across + down - 4 * grey[:, 1:-1, 1:-1]
        return self.options.scale * laplacian.var((1, 2))


@hookimpl
def register_rewards(register):
    register(Sharpness)

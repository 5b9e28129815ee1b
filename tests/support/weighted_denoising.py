"""A second objective, as someone would add it: this one file in `engine/rl/objectives`.

Denoising of the images that the policy drew, weighted by their advantages. It needs x_0 alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dpok_cli.config.fields import above, must, setting
from dpok_cli.engine.rl.objectives.base import Loss, Objective
from dpok_cli.engine.runs.measures import Measure


@dataclass(frozen=True)
class DenoisingSettings:
    denoising_weight: float = setting(1.0, "Objective", "Weight of the denoising loss.", above(0))


def _always(records, config):
    return f"denoising_weight is {config.denoising_weight:g}."


class WeightedDenoising(Objective):
    name = "denoising"
    method = "online RL by weighted denoising"
    needs = "x_0"
    Settings = DenoisingSettings
    measures: ClassVar = (
        Measure("loss", "The loss.", label="weighted error", form=".2e", advice=_always),
    )

    @classmethod
    def check(cls, config):
        must(config.guidance_scale <= 1, "guidance_scale", config.guidance_scale, "1 or less")

    @classmethod
    def kind(cls):
        return examples_class()

    def choose(self, samples, random):
        import torch

        return torch.randint(1000, (samples, 2), generator=random)  # two timesteps a sample

    def examples(self, trajectories, rewards, advantages, chosen):
        count = chosen.shape[1]
        assert trajectories.latents.shape[1] == 1
        return examples_class()(
            latents=trajectories.latents[:, -1].repeat_interleave(count, 0),
            prompt=trajectories.prompt.repeat_interleave(count),
            advantage=advantages[:, 1].repeat_interleave(count),
            timestep=chosen.flatten(),
        )

    def loss(self, batch):
        import torch

        sampler = self.sampler
        noise = torch.ones_like(batch.latents)
        noisy = sampler.model.base.scheduler.add_noise(batch.latents, noise, batch.timestep)
        texts = self.conditioning[batch.prompt]
        output = sampler.denoiser(noisy, batch.timestep, texts, self.config.guidance_scale)
        error = ((output - noise) ** 2).mean(dim=(1, 2, 3))
        loss = self.config.denoising_weight * (batch.advantage * error).mean()
        return Loss(loss, {})

    def metrics(self, measured, ranks):
        return {"loss": ranks.mean([each.loss for each in measured])}


def examples_class():
    global _Examples
    if _Examples is None:
        from torch import Tensor

        from dpok_cli.engine.rl.rollout import Batch

        @dataclass(frozen=True)
        class Examples(Batch):
            latents: Tensor
            prompt: Tensor
            advantage: Tensor
            timestep: Tensor

        _Examples = Examples
    return _Examples


_Examples = None

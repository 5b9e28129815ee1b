"""Families trained by flow matching (Lipman et al. 2023, arXiv 2210.02747).

x_t = (1 - s) x_0 + s e, and the denoiser predicts the velocity e - x_0. Its timestep is 1000 s.
"""

import copy
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from dpok_cli.engine.bases.base import Base
from dpok_cli.engine.bases.families import Family
from dpok_cli.engine.bases.schedule import Schedule, flow_schedule
from dpok_cli.errors import InputError


class FlowBase(Base):
    """A transformer on the noise levels that its own pipeline gives it."""

    def __init__(self, pipeline: Any, family: Family):
        super().__init__(pipeline, family)
        self.scheduler = pipeline.scheduler
        if not isinstance(self.scheduler, FlowMatchEulerDiscreteScheduler):
            raise InputError(
                f"The model's scheduler {type(self.scheduler).__name__} is not the"
                f" FlowMatchEulerDiscreteScheduler of {family.name}."
            )
        self.check_vae()
        #: The timesteps of training, from the noisiest.
        self.levels = FlowMatchEulerDiscreteScheduler.from_config(self.scheduler.config).timesteps

    def kept(self, latent_shape: tuple[int, int, int]) -> int:
        """The tokens before a block's MLP, and in it, where they are four times as wide."""
        return 5 * self.tokens(latent_shape) * self.width

    @property
    def width(self) -> int:
        """The width of a token within the denoiser."""
        return self.network.inner_dim

    def schedule(self, num_inference_steps: int, latent_shape: tuple[int, int, int]) -> Schedule:
        scheduler = copy.deepcopy(self.scheduler)
        with np.errstate(invalid="ignore"):
            self.set_timesteps(scheduler, num_inference_steps, self.tokens(latent_shape))
        if not scheduler.sigmas.isfinite().all():  # shift_terminal is the level of the last of many
            raise InputError(
                f"--num-inference-steps {num_inference_steps}: this model needs 2 or more."
            )
        return flow_schedule(scheduler.sigmas, scheduler.timesteps)

    def check_vae(self) -> None:
        """Raise InputError for a VAE that is none of the family."""
        if self.pipeline.vae.config.shift_factor is None:
            raise InputError(
                f"The model's VAE has no shift_factor, so it is not one of {self.family.name}."
            )

    def set_timesteps(self, scheduler: Any, num_inference_steps: int, tokens: int) -> None:
        """Set the steps of an image of so many tokens, as most families' pipelines do."""
        sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
        scheduler.set_timesteps(sigmas=sigmas, mu=self.shift(tokens))

    def tokens(self, latent_shape: tuple[int, int, int]) -> int:
        """Return the number of patches, 2 x 2 latents each, of an image."""
        _, rows, columns = latent_shape
        return (rows // 2) * (columns // 2)

    def shift(self, tokens: int) -> float:
        """Return mu, the dynamic shift of the noise levels, linear in the number of tokens."""
        config = self.scheduler.config
        few, many = config.base_image_seq_len, config.max_image_seq_len
        low, high = config.base_shift, config.max_shift
        return low + (high - low) * (tokens - few) / (many - few)

    def draw_timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw timesteps (count,), logit-normal (Esser et al. 2024, arXiv 2403.03206, Sec. 3.1)."""
        where = torch.randn(count, generator=generator).sigmoid()
        return self.levels[(where * len(self.levels)).long()]

    def corrupt(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        sigma = (timesteps / self.scheduler.config.num_train_timesteps).view(-1, 1, 1, 1)
        return (1 - sigma) * latents + sigma * noise, noise - latents

    def to_vae(self, latents: Tensor) -> Tensor:
        return super().to_vae(latents) + self.pipeline.vae.config.shift_factor

    def from_vae(self, latents: Tensor) -> Tensor:
        return super().from_vae(latents - self.pipeline.vae.config.shift_factor)

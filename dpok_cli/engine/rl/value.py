"""A learned baseline: the value function V(x_t, z, t) (Fan et al. 2023, App. A.5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from dpok_cli.engine.bases.conditioning import Conditioning
from dpok_cli.engine.rl.advantage import PromptAdvantage, RewardAdvantage
from dpok_cli.engine.rl.buffer import Buffer
from dpok_cli.engine.rl.measures import VALUE_LOSS
from dpok_cli.engine.rl.rollout import Both, Examples
from dpok_cli.engine.rl.settings import TrainRLConfig
from dpok_cli.engine.sampling.sampler import Sampler
from dpok_cli.engine.training.updater import optimizer_state
from dpok_cli.rewards.combined import Scores


class ValueAdvantage(RewardAdvantage):
    """r - V(x_t, z, t), taken in each update; V is fitted to the buffer before the updates."""

    def __init__(self, config: TrainRLConfig, sampler: Sampler, conditioning: Conditioning):
        self.config, self.denoising, self.conditioning = config, sampler.denoising, conditioning
        self.images = PromptAdvantage()
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            width = conditioning.negative.embeds.shape[-1]
            self.value = ValueFunction(sampler.model.latent_shape[0], width)
        self.value.to(sampler.model.device)
        self.optimizer = torch.optim.AdamW(self.value.parameters(), lr=config.value_learning_rate)

    def of_round(
        self, scores: Scores, prompts: Sequence[str], start_seeds: Sequence[int]
    ) -> Tensor:
        """Return (M, 2): the rewards, of which updates subtract V, and the images' advantages."""
        of_images = self.images.of_round(scores, prompts, start_seeds)[:, 1]
        return torch.stack([scores.total, of_images], dim=1)

    @torch.no_grad()
    def of_examples(self, batch: Examples, texts: Conditioning, timesteps: Tensor) -> Tensor:
        return batch.reward - self.value(batch.latents, texts.prompts.mean(), timesteps)

    def fit(self, buffer: Buffer, seed: int) -> dict[str, float]:
        """Take `value_updates` optimizer steps of `value_batch_size` transitions."""
        order = buffer.minibatches(self.config.value_batch_size, seed)
        errors = []
        for _ in range(self.config.value_updates):
            batch = buffer[next(order).to(self.denoising.timesteps.device)]
            batch = batch.transitions if isinstance(batch, Both) else batch
            timesteps = self.denoising.timesteps[batch.step]
            prompts = self.conditioning[batch.prompt].prompts.mean()
            error = nn.functional.mse_loss(
                self.value(batch.latents, prompts, timesteps), batch.reward
            )
            self.optimizer.zero_grad()
            error.backward()
            self.optimizer.step()
            errors.append(error.detach())
        return {VALUE_LOSS.key: torch.stack(errors).mean().item()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "value": self.value.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "images": self.images.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value.load_state_dict(state["value"])
        self.optimizer.load_state_dict(optimizer_state(state["optimizer"]))
        self.images.load_state_dict(state["images"])


class ValueFunction(nn.Module):
    """V(x_t, z, t): the expected reward from a latent, its prompt and its timestep.

    A small network for any latent size: the latent is convolved and pooled to 4 x 4.
    """

    def __init__(self, latent_channels: int, prompt_width: int, width: int = 256):
        super().__init__()
        self.width = width
        self.latent = nn.Sequential(
            nn.Conv2d(latent_channels, 32, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(64 * 16, width),
        )
        self.prompt = nn.Linear(prompt_width, width)
        self.time = nn.Linear(width, width)
        self.head = nn.Sequential(
            nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
        )

    def forward(self, latents: Tensor, prompts: Tensor, timesteps: Tensor) -> Tensor:
        """Return (B,) from latents (B, C, H, W), prompts' means (B, D) and timesteps (B,)."""
        time = get_timestep_embedding(timesteps, self.width)
        prompt = self.prompt(prompts.to(latents.device))
        hidden = self.latent(latents) + prompt + self.time(time)
        return self.head(hidden).squeeze(1)

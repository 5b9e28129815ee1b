"""How much better than expected: advantages from rewards."""

from collections.abc import Sequence

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn


def per_prompt(rewards: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return (r - mean) / std over the samples of the same prompt, float32 (B,).

    ``rewards`` is (B,), one a sample of ``prompts``. A prompt with a single sample is compared with
    all samples instead; where all rewards are equal the advantage is 0.
    """
    advantages = torch.empty_like(rewards)
    for prompt in dict.fromkeys(prompts):
        own = torch.tensor([other == prompt for other in prompts], device=rewards.device)
        group = rewards[own] if own.sum() > 1 else rewards
        mean = group[0] + (group - group[0]).mean()  # without rounding where all are equal
        advantages[own] = (rewards[own] - mean) / (group.std(correction=0) + 1e-6)
    return advantages


class ValueFunction(nn.Module):
    """V(x_t, z, t): the reward to expect from a latent, its prompt and its timestep (App. A.5).

    A small network of its own for any latent size: the latent is convolved and pooled to 4 x 4.
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

    def forward(self, latents: Tensor, prompt_embeds: Tensor, timesteps: Tensor) -> Tensor:
        """Return (B,) from latents (B, C, H, W), embeddings (B, L, D) and timesteps (B,)."""
        time = get_timestep_embedding(timesteps, self.width)
        prompt = prompt_embeds.float().mean(dim=1)
        hidden = self.latent(latents) + self.prompt(prompt) + self.time(time)
        return self.head(hidden).squeeze(1)

"""How much better than expected: advantages from rewards."""

from collections.abc import Sequence

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn


class PromptAdvantages:
    """How far rewards are above what was expected, in units of their prompt's spread so far.

    The spread is the root mean square of r - b(x_T) over all rounds of a prompt. That of the round
    alone would shrink with the differences, and what little still tells apart pictures that are all
    right would be learned at full strength.
    """

    def __init__(self) -> None:
        #: By prompt: the sum of (r - b)^2 so far, and of how many samples.
        self.squares: dict[str, list[float]] = {}

    def of_round(self, rewards: Tensor, prompts: Sequence[str], starts: Sequence[int]) -> Tensor:
        """Return the advantages of a round's samples, and count their gaps among those so far.

        ``rewards`` is (B,), one a sample of ``prompts`` that began with the x_T of seed ``starts``;
        so is the result, float32. A prompt with a single sample is compared with all samples
        instead, whose gaps are then counted as its own; where all rewards are equal the advantage
        is 0.
        """
        advantages = torch.empty_like(rewards)
        start = torch.tensor(starts, device=rewards.device)
        for prompt in dict.fromkeys(prompts):
            own = torch.tensor([other == prompt for other in prompts], device=rewards.device)
            compared = own if own.sum() > 1 else torch.ones_like(own)
            gap = above_expected(rewards[compared], start[compared])
            squares, count = self.squares.get(prompt, (0.0, 0))
            squares, count = squares + gap.square().sum().item(), count + len(gap)
            self.squares[prompt] = [squares, count]
            advantages[own] = gap[own[compared]] / ((squares / count) ** 0.5 + 1e-6)
        return advantages


def above_expected(rewards: Tensor, starts: Tensor) -> Tensor:
    """Return r - b(x_T), (B,), for samples (B,) of one prompt with equal ``starts`` for equal x_T.

    What x_T alone brings is no action's merit. b is the mean of all, moved to the mean of those
    from the same x_T by 1 - 1/F (0 at least), where F is the variance ratio of the one-way analysis
    of variance by x_T: all the way where x_T settles the reward, not at all where groups differ no
    more than by chance (an empirical Bayes estimate, as James and Stein's).
    """
    same = starts[:, None] == starts  # (B, B)
    # Means of differences, which are 0 without rounding where all are equal.
    apart = rewards[:, None] - rewards
    total, within = apart.mean(1), (same * apart).sum(1) / same.sum(1)
    between, groups = total - within, len(starts.unique())
    if groups in (1, len(starts)):
        return total
    chance = within.square().sum() / (len(starts) - groups)
    spread = between.square().sum() / (groups - 1)
    return total - (1 - chance / (spread + 1e-12)).clamp(min=0) * between


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

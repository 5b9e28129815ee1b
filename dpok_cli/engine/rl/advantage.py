"""Advantages: how much better an action was than its baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dpok_cli.engine.bases.conditioning import Conditioning
from dpok_cli.engine.rl.buffer import Buffer
from dpok_cli.engine.rl.rollout import Examples
from dpok_cli.rewards.combined import Scores


class RewardAdvantage:
    """The reward itself, without a baseline (DPOK's Eq. 9); a base for the others."""

    def of_round(
        self, scores: Scores, prompts: Sequence[str], start_seeds: Sequence[int]
    ) -> Tensor:
        """Return the advantages of a round's M samples, (M, 2), from their ``scores``.

        The first is that of the policy's actions, the steps' noise; the second that of the image,
        to which x_T belongs. Sample i was drawn for ``prompts[i]``, from the x_T of
        ``start_seeds[i]``.
        """
        return scores.total[:, None].expand(-1, 2)

    def of_examples(self, batch: Examples, texts: Conditioning, timesteps: Tensor) -> Tensor:
        """Return the advantages (B,) of a batch in an update."""
        return batch.advantage

    def fit(self, buffer: Buffer, seed: int) -> dict[str, float]:
        """Learn the baseline from the buffer, if it is learned; returns what was measured."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class PromptAdvantage(RewardAdvantage):
    """The residual to a baseline of the prompt, in units of its running RMS.

    For actions the baseline is of x_T as well, which the policy does not choose.

    The running RMS is that of the residuals over all rounds of a prompt. The RMS of one
    round would shrink as images become alike, and their small remaining differences would be
    learned at full strength.
    """

    def __init__(self) -> None:
        #: By prompt: the sums of squared residuals so far, and how many samples they are over.
        self.squares: dict[str, list[float]] = {}

    def of_round(
        self, scores: Scores, prompts: Sequence[str], start_seeds: Sequence[int]
    ) -> Tensor:
        """Return the advantages, float32 (M, 2), and add their residuals to the running RMS.

        A prompt with a single sample is compared with all samples of the round instead, and their
        residuals enter its running RMS. Where all rewards are equal the advantage is 0.
        """
        rewards = scores.total
        advantages = rewards.new_empty(len(rewards), 2)
        starts = torch.tensor(start_seeds, device=rewards.device)
        for prompt in dict.fromkeys(prompts):
            own = torch.tensor([other == prompt for other in prompts], device=rewards.device)
            compared = own if own.sum() > 1 else torch.ones_like(own)
            of_actions = residuals(rewards[compared], starts[compared])
            of_images = residuals(rewards[compared], torch.zeros_like(starts[compared]))
            residual = torch.stack([of_actions, of_images], dim=1)  # (B, 2)
            *squares, count = self.squares.get(prompt, (0.0, 0.0, 0))
            added = residual.square().sum(dim=0).tolist()
            squares = [sum(each) for each in zip(squares, added, strict=True)]
            count += len(residual)
            self.squares[prompt] = [*squares, count]
            scale = [(each / count) ** 0.5 + 1e-6 for each in squares]
            advantages[own] = residual[own[compared]] / rewards.new_tensor(scale)
        return advantages

    def state_dict(self) -> dict[str, Any]:
        return {"squares": dict(self.squares)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.squares = dict(state["squares"])


class MixedAdvantage(RewardAdvantage):
    """The weighted mean of an advantage of each reward (after GDPO, arXiv 2601.05242).

    Each is in units of its own reward's spread, so a weight says how much a reward counts. In the
    sum of rewards the one whose numbers spread most decides.
    """

    def __init__(self, weights: Mapping[str, float]):
        """``weights`` are those of `WeightedReward`, negative where lower is better."""
        self.weights = weights
        self.parts = {name: PromptAdvantage() for name in weights}

    def of_round(
        self, scores: Scores, prompts: Sequence[str], start_seeds: Sequence[int]
    ) -> Tensor:
        size = sum(map(abs, self.weights.values()))
        advantages = torch.zeros(len(prompts), 2, device=scores.total.device)
        for name, weight in self.weights.items():
            alone = Scores(scores.raw[name].to(advantages.device), {})
            part = self.parts[name].of_round(alone, prompts, start_seeds)
            advantages += weight / size * part
        return advantages

    def state_dict(self) -> dict[str, Any]:
        return {"parts": {name: part.state_dict() for name, part in self.parts.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])


def residuals(rewards: Tensor, starts: Tensor) -> Tensor:
    """Return r - b(x_T), (B,), for samples of one prompt; equal ``starts`` (B,) mean equal x_T.

    x_T is not chosen by the policy, yet explains much of the reward's variance. The baseline b is
    the mean of all samples, moved towards the mean of those with the same x_T by the factor
    1 - 1/F (at least 0), where F is the variance ratio of the one-way analysis of variance by x_T:
    all the way where x_T decides the reward, not at all where groups differ no more than by chance
    (an empirical Bayes estimate, as James and Stein's).
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

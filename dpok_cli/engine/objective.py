"""The losses, as pure functions of what the policy and the rollout gave."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """A loss to go down on, and what it was made of."""

    loss: Tensor  # scalar, with gradients
    kl: Tensor  # scalar: mean over the batch
    ratio: Tensor  # (B,): p_theta / p_old of each transition


def policy_loss(
    ratio: Tensor, advantage: Tensor, ratio_clip: float, clip_form: Literal["ppo", "clamp"]
) -> Tensor:
    """Return the clipped policy-gradient loss of each transition, (B,).

    With c(rho) the ratio rho clipped to [1 - ratio_clip, 1 + ratio_clip] and A the advantage:

        "ppo":    -min(rho A, c(rho) A)     (Schulman et al. 2017, arXiv 1707.06347, Eq. 7)
        "clamp":  -c(rho) A                 (the released DPOK code)

    At rho = 1 both have the gradient of -A log p (DPOK, Eq. 9 and App. A.6). Outside the band
    "clamp" has none in either direction, so a transition that went the wrong way never comes back.
    """
    clipped = ratio.clamp(1 - ratio_clip, 1 + ratio_clip)
    if clip_form == "clamp":
        return -clipped * advantage
    return -torch.minimum(ratio * advantage, clipped * advantage)


def dpok_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    kl: Tensor,
    *,
    alpha: float,
    beta: float,
    ratio_clip: float,
    clip_form: Literal["ppo", "clamp"] = "ppo",
) -> Loss:
    """DPOK's objective with the KL to the pre-trained model (Fan et al. 2023, Eq. 9, Alg. 1).

        L = mean over transitions of  alpha * policy_loss(p_theta / p_old, A)  +  beta * KL

    ``log_prob`` (under the policy), ``old_log_prob`` (when the transition was drawn), ``advantage``
    and ``kl`` are all (B,); gradients flow through ``log_prob`` and ``kl`` only.
    """
    ratio = (log_prob - old_log_prob.detach()).exp()  # (B,)
    policy = policy_loss(ratio, advantage.detach(), ratio_clip, clip_form).mean()
    divergence = kl.mean()
    return Loss(alpha * policy + beta * divergence, divergence.detach(), ratio.detach())

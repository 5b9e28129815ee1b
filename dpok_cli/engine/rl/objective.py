"""The losses of RL and of supervised fine-tuning, as pure functions."""

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


def reward_weights(rewards: Tensor, gamma: float, kl_form: Literal["kl-d", "kl-o"]) -> Tensor:
    """Return the weight of each image in supervised fine-tuning, (M,) and >= 0.

    ``rewards`` (M,) are r(x_0, z) and ``gamma`` >= 0 (Fan et al. 2023, Sec. 4.3):

        "kl-d":  max(r + gamma, 0)    (Lemma 4.3, Eq. 10: the KL's bound shifts the reward)
        "kl-o":  max(r, 0)
    """
    shifted = rewards + gamma if kl_form == "kl-d" else rewards
    return shifted.clamp(min=0)


def denoising_error(output: Tensor, target: Tensor) -> Tensor:
    """Return |output - target|^2 per latent element, float32 (B,), of two (B, C, H, W).

    Up to a factor of each timestep this bounds -log p_theta(x_0 | z) (Ho et al. 2020, arXiv
    2006.11239, Eq. 14); ``target`` is what the model predicts: the noise, the velocity or x_0.
    """
    return ((output.float() - target.float()) ** 2).mean(dim=(1, 2, 3))


def sft_loss(
    weight: Tensor,
    error: Tensor,
    kl: Tensor | None = None,
    *,
    gamma: float,
    kl_form: Literal["kl-d", "kl-o"],
) -> Tensor:
    """Reward-weighted denoising loss, kept near the pre-trained model (Fan et al. 2023, Sec. 4.3).

        "kl-d":  L = mean over images of  w e                    with w = max(r + gamma, 0)
        "kl-o":  L = mean over images of  w e  +  gamma * kl     with w = max(r, 0)

    where e is the `denoising_error` and kl is |eps_theta - eps_pre|^2 (`policy.epsilon_kl`), which
    "kl-o" needs. ``weight``, ``error`` and ``kl`` are (B,); gradients flow through the last two.
    With ``gamma`` 0 both are plain reward-weighted fine-tuning.
    """
    loss = (weight.detach() * error).mean()
    if kl_form == "kl-o" and gamma > 0:
        assert kl is not None
        loss = loss + gamma * kl.mean()
    return loss

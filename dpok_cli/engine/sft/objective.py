"""The objective of supervised fine-tuning: denoising weighted by reward (Fan et al., Sec. 4.3).

The losses are pure functions; `SFTObjective` applies them to a model.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dpok_cli.config import TrainSFTConfig
from dpok_cli.engine.bases.conditioning import Conditioning
from dpok_cli.engine.sampling.step import epsilon_kl
from dpok_cli.engine.training.session import Session


class Examples(NamedTuple):
    """B images with their weights, and the noise that is added to them."""

    latents: Tensor  # (B, C, h, w), float32: x_0
    weight: Tensor  # (B,)
    prompts: list[str | None]  # B; None for those trained without
    timesteps: Tensor  # (B,): the level of the noise
    noise: Tensor  # (B, C, h, w)


class Errors(NamedTuple):
    """The loss of a batch of examples, and the errors it consists of."""

    loss: Tensor  # scalar, with gradients
    denoising: Tensor  # (B,): the unweighted denoising error
    kl: Tensor | None  # (B,), if it was taken


class SFTObjective:
    """Weighted denoising, with the KL to the pre-trained model in one of the paper's two forms."""

    def __init__(self, config: TrainSFTConfig, session: Session):
        self.config, self.session = config, session
        self.model, self.denoiser = session.model, session.denoiser
        # Classifier-free guidance is of sampling; embedded guidance is an input like any other.
        self.guidance = config.guidance_scale if self.model.base.embeds_guidance else 1.0
        self.has_kl = config.kl_form == "kl-o" and config.gamma > 0

    def weights(self, rewards: Tensor) -> Tensor:
        """Return `reward_weights` of images with rewards (M,)."""
        return reward_weights(rewards, self.config.gamma, self.config.kl_form)

    def loss(self, batch: Examples, with_kl: bool) -> Errors:
        """Return `sft_loss` of a batch; the KL is taken if it is in the loss or ``with_kl``."""
        latents, noise, timesteps = batch.latents, batch.noise, batch.timesteps
        texts = self._encode(batch.prompts)
        noisy, target = self.model.base.corrupt(latents, noise, timesteps)
        kl = None
        with self.session.accelerator.autocast():
            output = self.denoiser(noisy, timesteps, texts, self.guidance)
            if self.has_kl or with_kl:
                with torch.no_grad(), self.model.reference():
                    frozen = self.denoiser(noisy, timesteps, texts, self.guidance)
                kl = epsilon_kl(output, frozen)
        error = denoising_error(output, target)
        gamma, form = self.config.gamma, self.config.kl_form
        loss = sft_loss(batch.weight, error, kl, gamma=gamma, kl_form=form)
        return Errors(loss, error.detach(), None if kl is None else kl.detach())

    def _encode(self, prompts: list[str | None]) -> Conditioning:
        """Return the embeddings of B prompts.

        Where there is none they are those that guidance takes without a negative prompt.
        """
        different = list(dict.fromkeys(prompt or "" for prompt in prompts))
        encoded = self.model.encode(different).with_negative()
        return encoded[[-1 if each is None else different.index(each) for each in prompts]]


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

    where e is the `denoising_error` and kl is |eps_theta - eps_pre|^2 (`step.epsilon_kl`), which
    "kl-o" needs. ``weight``, ``error`` and ``kl`` are (B,); gradients flow through the last two.
    With ``gamma`` 0 both are plain reward-weighted fine-tuning.
    """
    loss = (weight.detach() * error).mean()
    if kl_form == "kl-o" and gamma > 0:
        assert kl is not None
        loss = loss + gamma * kl.mean()
    return loss

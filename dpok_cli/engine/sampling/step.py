"""One denoising step as a Gaussian policy: its mean, standard deviation, log-prob and KL.

A DDIM step (Song et al. 2021, arXiv 2010.02502, Eq. 12 and 16) with eta > 0 draws
x_{t-1} ~ N(mu_theta(x_t, t, z), sigma_t^2 I). That is the policy of DPOK's Markov decision process
(Fan et al. 2023, Sec. 4.1); guidance is inside mu. All of it is computed in float32.
"""

import copy
import math
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from dpok_cli.errors import InputError

#: Steps whose sigma is smaller are deterministic: they have no density, so no log-prob.
MIN_STD = 1e-4


@dataclass(frozen=True)
class Gaussian:
    """p(x_{t-1} | x_t, z) of B rows: the policy's distribution over its next action."""

    output: Tensor  # (B, C, H, W), float32: the denoiser's (guided) output, which the mean is from
    mean: Tensor  # (B, C, H, W), float32
    std: Tensor  # (B, 1, 1, 1), float32

    def log_prob(self, sample: Tensor) -> Tensor:
        """Return the log-density of ``sample`` (B, C, H, W) per latent element, (B,)."""
        return log_prob(sample, self.mean, self.std)

    def kl(self, reference: "Gaussian", form: Literal["epsilon", "gaussian"]) -> Tensor:
        """Return the KL to the reference model's step from the same x_t, (B,), in one ``form``."""
        if form == "gaussian":
            return gaussian_kl(self.mean, reference.mean, self.std)
        return epsilon_kl(self.output, reference.output)


@dataclass(frozen=True)
class Denoising:
    """The K steps of a DDIM sampler, from the noisiest to the cleanest."""

    timesteps: Tensor  # (K,) long: the denoiser's
    alpha_bar: Tensor  # (K,): cumulative signal level before the step
    alpha_bar_prev: Tensor  # (K,): and after it
    std: Tensor  # (K,): sigma_t
    prediction_type: str  # "epsilon", "v_prediction" or "sample"
    clip_range: float | None  # x_0 is clipped to [-clip_range, clip_range]; None: not at all

    @classmethod
    def of(
        cls,
        scheduler: DDIMScheduler,
        num_inference_steps: int,
        eta: float,
        device: str | torch.device = "cpu",
    ) -> "Denoising":
        """Take the steps of a diffusers scheduler; leaves the scheduler's own state alone.

        Raises InputError for more steps than the schedule can give, and for a noise prediction at a
        timestep of pure noise, from which it does not tell x_0.
        """
        trained = scheduler.config.num_train_timesteps
        timesteps = _timesteps(scheduler, num_inference_steps)
        if timesteps is None:
            fewer = range(min(num_inference_steps, trained), 0, -1)
            most = next(n for n in fewer if _timesteps(scheduler, n) is not None)
            raise InputError(
                f"--num-inference-steps {num_inference_steps}: this model has {most} at most."
            )
        previous = timesteps - trained // num_inference_steps
        alpha_bar = scheduler.alphas_cumprod[timesteps]
        if scheduler.config.prediction_type == "epsilon" and not alpha_bar.all():
            raise InputError(
                "The model predicts noise, and its schedule has a step of pure noise (zero terminal"
                " SNR), where that says nothing of the image. Its scheduler_config.json needs"
                ' another prediction_type, or "rescale_betas_zero_snr": false.'
            )
        alpha_bar_prev = torch.where(
            previous >= 0,
            scheduler.alphas_cumprod[previous.clamp(min=0)],
            scheduler.final_alpha_cumprod,
        )
        variance = (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)
        return cls(
            timesteps.to(device),
            alpha_bar.float().to(device),
            alpha_bar_prev.float().to(device),
            (eta * variance.clamp(min=0).sqrt()).float().to(device),
            scheduler.config.prediction_type,
            scheduler.config.clip_sample_range if scheduler.config.clip_sample else None,
        )

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def stochastic(self) -> Tensor:
        """The indices of the steps that have a density, long (<= K,)."""
        return (self.std > MIN_STD).nonzero().squeeze(1)

    def distribution(self, output: Tensor, latents: Tensor, step: Tensor) -> Gaussian:
        """Return the distribution of x_{t-1} of B rows.

        ``output`` is the denoiser's (guided) output and ``latents`` x_t, both (B, C, H, W);
        ``step``, long (B,), says which of the K steps each row is at.
        """
        output, latents = output.float(), latents.float()
        alpha_bar, alpha_bar_prev, std = (
            level[step].view(-1, 1, 1, 1)
            for level in (self.alpha_bar, self.alpha_bar_prev, self.std)
        )
        signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        if self.prediction_type == "epsilon":
            epsilon = output
            x_0 = (latents - noise * epsilon) / signal
        elif self.prediction_type == "v_prediction":
            x_0 = signal * latents - noise * output
            epsilon = signal * output + noise * latents
        else:  # "sample"
            x_0 = output
            epsilon = (latents - signal * x_0) / noise
        if self.clip_range is not None:
            x_0 = x_0.clamp(-self.clip_range, self.clip_range)
        direction = (1 - alpha_bar_prev - std**2).clamp(min=0).sqrt() * epsilon
        return Gaussian(output, alpha_bar_prev.sqrt() * x_0 + direction, std)


def _timesteps(scheduler: DDIMScheduler, num_inference_steps: int) -> Tensor | None:
    """Return the timesteps of K steps, long (K,), or None if the schedule has not so many."""
    scheduler, trained = copy.deepcopy(scheduler), scheduler.config.num_train_timesteps
    if num_inference_steps > trained:
        return None
    scheduler.set_timesteps(num_inference_steps)
    timesteps = scheduler.timesteps.long()
    inside = bool(((timesteps >= 0) & (timesteps < trained)).all())
    return timesteps if inside and bool((timesteps.diff() < 0).all()) else None


def log_prob(sample: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return log N(sample; mean, std^2) averaged over the latent's elements, float32 (B,).

    The average, not the sum, is what the paper's released code takes; it is why its ratio clip of
    1e-4 is reasonable. ``sample`` and ``mean`` are (B, C, H, W), ``std`` (B, 1, 1, 1) and > 0.
    """
    normed = (sample.float() - mean.float()) / std.float()
    density = -0.5 * normed**2 - std.float().log() - 0.5 * math.log(2 * math.pi)
    return density.mean(dim=(1, 2, 3))


def gaussian_kl(mean: Tensor, reference_mean: Tensor, std: Tensor) -> Tensor:
    """Return KL(N(mean, std^2) || N(reference_mean, std^2)) per latent element, float32 (B,).

    With one standard deviation this is |mean - reference_mean|^2 / (2 std^2) (paper, Eq. 8).
    """
    gap = (mean.float() - reference_mean.float()) / std.float()
    return (0.5 * gap**2).mean(dim=(1, 2, 3))


def epsilon_kl(output: Tensor, reference_output: Tensor) -> Tensor:
    """Return |epsilon - epsilon_pre|^2 per latent element, float32 (B,).

    The released code uses it in place of the KL: its squared difference without the step's weight.
    """
    return ((output.float() - reference_output.float()) ** 2).mean(dim=(1, 2, 3))

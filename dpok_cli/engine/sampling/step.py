"""One denoising step as a Gaussian policy: its mean, standard deviation, log-prob and KL.

A DDIM step (Song et al. 2021, arXiv 2010.02502, Eq. 12 and 16) with eta > 0 draws
x_{t-1} ~ N(mu_theta(x_t, t, z), sigma_t^2 I). That is the policy of DPOK's Markov decision process
(Fan et al. 2023, Sec. 4.1); guidance is inside mu. All of it is computed in float32.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dpok_cli.engine.bases.schedule import Prediction, Schedule

#: Steps whose sigma is smaller are deterministic: they have no density, so no log-prob.
MIN_STD = 1e-4


@dataclass(frozen=True)
class Gaussian:
    """p(x_{t-1} | x_t, z) of B rows: the policy's distribution over its next action."""

    output: Tensor  # (B, C, H, W), float32: the denoiser's (guided) output, which the mean is from
    mean: Tensor  # (B, C, H, W), float32
    std: Tensor  # (B, 1, 1, 1), float32

    def __getitem__(self, rows: slice) -> "Gaussian":
        return Gaussian(self.output[rows], self.mean[rows], self.std[rows])

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
    """The K steps of a sampler, from the noisiest to the cleanest; each field is (K,).

    With x_t = a x_0 + s e, signal a and noise s, the step from t to the next has

        std  = eta s' sqrt(1 - r^2)                     r = a s' / (a' s)
        mean = a' x_0 + sqrt(s'^2 - std^2) e

    where a', s' are the levels after it. For the noise of diffusion models (a^2 + s^2 = 1) that is
    DDIM's Eq. 12 and 16. For flow matching (a = 1 - s) it is the Euler step at eta = 0, and for
    both the posterior q(x_t-1 | x_t, x_0) at eta = 1.
    """

    timesteps: Tensor  # the denoiser's
    signal: Tensor  # a
    noise: Tensor  # s
    signal_next: Tensor  # a'
    direction: Tensor  # sqrt(s'^2 - std^2)
    std: Tensor
    prediction_type: Prediction
    clip_range: float | None  # x_0 is clipped to [-clip_range, clip_range]; None: not at all

    @classmethod
    def of(cls, schedule: Schedule, eta: float, device: str | torch.device = "cpu") -> "Denoising":
        """Take the steps of a schedule with the noise of ``eta`` in [0, 1]."""
        std = eta * schedule.std
        direction = (schedule.variance_next - std**2).clamp(min=0).sqrt()
        return cls(
            schedule.timesteps.to(device),
            schedule.signal.to(device),
            schedule.noise.to(device),
            schedule.signal_next.to(device),
            direction.to(device),
            std.to(device),
            schedule.prediction_type,
            schedule.clip_range,
        )

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def stochastic(self) -> Tensor:
        """The indices of the steps that have a density, long (<= K,)."""
        return (self.std > MIN_STD).nonzero().squeeze(1)

    def corrupt(self, x_0: Tensor, noise: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Return x_t at the levels of B steps, and what a denoiser should predict of it.

        ``x_0`` and ``noise`` are (B, C, H, W), ``step`` is long (B,); both results (B, C, H, W).
        """
        signal, level = (each[step].view(-1, 1, 1, 1) for each in (self.signal, self.noise))
        target = {
            "epsilon": lambda: noise,
            "v_prediction": lambda: signal * noise - level * x_0,
            "flow": lambda: noise - x_0,
            "sample": lambda: x_0,
        }[self.prediction_type]()
        return signal * x_0 + level * noise, target

    def distribution(self, output: Tensor, latents: Tensor, step: Tensor) -> Gaussian:
        """Return the distribution of x_{t-1} of B rows.

        ``output`` is the denoiser's (guided) output and ``latents`` x_t, both (B, C, H, W);
        ``step``, long (B,), says which of the K steps each row is at.
        """
        output, latents = output.float(), latents.float()
        signal, noise, signal_next, direction, std = (
            level[step].view(-1, 1, 1, 1)
            for level in (self.signal, self.noise, self.signal_next, self.direction, self.std)
        )
        if self.prediction_type == "epsilon":
            epsilon = output
            x_0 = (latents - noise * epsilon) / signal
        elif self.prediction_type == "v_prediction":
            x_0 = signal * latents - noise * output
            epsilon = signal * output + noise * latents
        elif self.prediction_type == "flow":  # e - x_0
            x_0 = latents - noise * output
            epsilon = latents + signal * output
        else:  # "sample"
            x_0 = output
            epsilon = (latents - signal * x_0) / noise
        if self.clip_range is not None:
            x_0 = x_0.clamp(-self.clip_range, self.clip_range)
        return Gaussian(output, signal_next * x_0 + direction * epsilon, std)


def share_of(steps: int, fraction: float) -> int:
    """Return how many of some steps a fraction of them is: 1 at least."""
    return max(1, round(fraction * steps))


def with_window(schedule: Schedule, eta: float, fraction: float, rest: int) -> Schedule:
    """Return a schedule with noise in a ``fraction`` of the steps that have some at ``eta``.

    Those are the noisiest; ``rest`` steps follow (`Schedule.with_window`).
    """
    noisy = (eta * schedule.std > MIN_STD).nonzero().flatten()
    if not len(noisy):
        return schedule
    return schedule.with_window(int(noisy[share_of(len(noisy), fraction) - 1]) + 1, rest)


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

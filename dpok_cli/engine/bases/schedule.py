"""The steps of a sampler by signal and noise: DDIM with a pipeline's betas, or flow matching."""

import copy
from typing import Any, Literal, NamedTuple

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from dpok_cli.errors import InputError

#: What a denoiser predicts; "flow" is e - x_0 (Lipman et al. 2023, arXiv 2210.02747).
Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]

_PREDICTIONS = ("epsilon", "v_prediction", "sample")

#: Flow-matching steps that end below this noise level are deterministic: their standard deviation
#: is so small that every ratio of an update would be clipped.
LEAST_NOISE = 0.05


class Schedule(NamedTuple):
    """K steps through x_t = signal x_0 + noise e, from the noisiest; tensors are (K,), float32."""

    timesteps: Tensor  # the denoiser's, long or float
    signal: Tensor  # before each step
    noise: Tensor
    signal_next: Tensor  # after it
    variance_next: Tensor  # the noise after it, squared
    std: Tensor  # the step's standard deviation at eta = 1, that of the posterior
    prediction_type: Prediction
    clip_range: float | None = None

    def with_window(self, noisy: int, rest: int) -> "Schedule":
        """Return the schedule with noise in its first ``noisy`` steps alone.

        The levels after them are passed through in ``rest`` deterministic steps, or in as many as
        now if those are fewer, or ``rest`` is 0. That is MixGRPO's window (Li et al. 2025, arXiv
        2507.21802) at the noisiest end, where it stays.
        """
        steps = len(self.timesteps)
        rest = min(rest or steps, steps - noisy)
        first = [*range(noisy), *(noisy + step * (steps - noisy) // rest for step in range(rest))]
        last = [*(place - 1 for place in first[1:]), steps - 1]  # a step ends where the next begins
        std = self.std[first]
        std[noisy:] = 0
        return self._replace(
            timesteps=self.timesteps[first],
            signal=self.signal[first],
            noise=self.noise[first],
            signal_next=self.signal_next[last],
            variance_next=self.variance_next[last],
            std=std,
        )


def ddim(scheduler: Any) -> DDIMScheduler:
    """Return `DDIMScheduler.from_config(pipe.scheduler.config)`; one of DDIM stays as it is.

    A scheduler without the key clip_sample never clipped x_0, while DDIM clips by default. Raises
    InputError for a noise schedule or prediction type that is not DDIM's.
    """
    config, name = dict(scheduler.config), type(scheduler).__name__
    if not ("beta_start" in config or config.get("trained_betas")):
        raise InputError(
            f"The model's scheduler {name} has no betas, so it cannot be sampled by DDIM."
        )
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS:
        raise InputError(
            f"The model's scheduler {name} predicts {prediction!r}; only"
            f" {', '.join(_PREDICTIONS)} can be used."
        )
    if config.get("thresholding"):
        raise InputError(
            f"The model's scheduler {name} has thresholding, which is for pixels, not for latents."
        )
    if isinstance(scheduler, DDIMScheduler):
        # The list of keys left to their defaults would undo what the pipeline changed in place.
        config.pop("_use_default_values", None)
        return DDIMScheduler.from_config(config)
    return DDIMScheduler.from_config(config, clip_sample=config.get("clip_sample", False))


def ddim_arguments(scheduler: Any) -> dict[str, Any]:
    """Return what `DDIMScheduler.from_config(pipe.scheduler.config, ...)` needs to equal `ddim`."""
    plain = DDIMScheduler.from_config(scheduler.config).config
    return {
        key: value
        for key, value in ddim(scheduler).config.items()
        if not key.startswith("_") and plain.get(key) != value
    }


def ddim_schedule(scheduler: DDIMScheduler, num_inference_steps: int) -> Schedule:
    """Return DDIM's steps (Song et al. 2021, arXiv 2010.02502); the scheduler's state stays.

    Raises InputError for more steps than the scheduler can give, and for a noise prediction at a
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
    return Schedule(
        timesteps,
        alpha_bar.float().sqrt(),
        (1 - alpha_bar.float()).sqrt(),
        alpha_bar_prev.float().sqrt(),
        1 - alpha_bar_prev.float(),
        variance.clamp(min=0).sqrt().float(),
        scheduler.config.prediction_type,
        scheduler.config.clip_sample_range if scheduler.config.clip_sample else None,
    )


def flow_schedule(sigmas: Tensor, timesteps: Tensor) -> Schedule:
    """Return the steps of flow matching, x_t = (1 - sigma) x_0 + sigma e.

    ``sigmas`` (K + 1,) fall to the level after the last step, usually 0; ``timesteps`` (K,) are the
    denoiser's. Three kinds of steps are deterministic at any eta: the last; those that end below
    LEAST_NOISE; and one that starts from pure noise, which at eta = 1 would forget x_T, that
    samples of a group share.
    """
    sigmas = sigmas.double().cpu()
    noise, noise_next = sigmas[:-1], sigmas[1:]
    signal, signal_next = 1 - noise, 1 - noise_next
    ratio = signal * noise_next / (signal_next * noise)
    std = noise_next * (1 - ratio**2).clamp(min=0).sqrt()
    std[(noise_next < LEAST_NOISE) | (signal == 0)] = 0
    return Schedule(
        timesteps.float().cpu(),
        signal.float(),
        noise.float(),
        signal_next.float(),
        (noise_next**2).float(),
        std.float(),
        "flow",
    )


def _timesteps(scheduler: DDIMScheduler, num_inference_steps: int) -> Tensor | None:
    """Return the timesteps of K steps, long (K,), or None if the schedule has not so many."""
    scheduler, trained = copy.deepcopy(scheduler), scheduler.config.num_train_timesteps
    if num_inference_steps > trained:
        return None
    scheduler.set_timesteps(num_inference_steps)
    timesteps = scheduler.timesteps.long()
    inside = bool(((timesteps >= 0) & (timesteps < trained)).all())
    return timesteps if inside and bool((timesteps.diff() < 0).all()) else None

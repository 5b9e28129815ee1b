"""The DDIM scheduler of a pipeline, whatever scheduler it comes with."""

from typing import Any

from diffusers import DDIMScheduler

from dpok_cli.errors import InputError

_PREDICTIONS = ("epsilon", "v_prediction", "sample")


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

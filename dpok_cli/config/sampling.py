"""Settings of sampling, and of `dpok sample`."""

import os
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self

from dpok_cli.config.fields import (
    BaseConfig,
    Held,
    Rule,
    at_least,
    changed,
    setting,
    settings_of,
    within,
)

Precision = Literal["fp32", "fp16", "bf16"]
#: How the KL of a denoising step is measured (`engine.sampling.step`).
KLForm = Literal["epsilon", "gaussian"]

#: ``--model tiny`` is the bundled pipeline; everything else is a hub id or a folder.
TINY = "tiny"

#: The largest height and width; guards against typing errors.
MAX_PIXELS = 2048

_PIXELS = Rule(
    f"a multiple of 8 up to {MAX_PIXELS}, or 0",
    lambda value: 0 <= value <= MAX_PIXELS and value % 8 == 0,
)


@dataclass(frozen=True)
class SamplingConfig(BaseConfig):
    """The model, the prompts and the sampler settings."""

    model: str = setting(
        TINY,
        "Model",
        "Base model: a pipeline of Stable Diffusion v1, v2, XL or 3, FLUX.1, Qwen-Image or"
        " Z-Image, hub id or folder, or a .safetensors file of the first three; tiny is the bundled"
        " one.",
        Rule("a hub id, a folder, a file or 'tiny'", lambda value: bool(value.strip())),
        metavar="ID|FOLDER|FILE",
        path=True,
        may_change=True,  # its place; a checkpoint knows its weights
    )
    #: "" is the hub id that diffusers finds by the weights.
    model_config: str = setting(
        "",
        "Model",
        "Pipeline whose configuration a --model FILE has; by default that of its family, from the"
        " hub.",
        metavar="FOLDER|ID",
        path=True,
        may_change=True,
    )
    vae: str = setting(
        "",
        "Model",
        "VAE to use instead of the model's own.",
        metavar="ID|FOLDER|FILE",
        path=True,
        may_change=True,
    )
    prompts: tuple[str, ...] = setting(
        (),
        "Prompts",
        "Text prompt; repeat the flag for several.",
        Rule("texts that are not blank", lambda value: bool(value.strip()), each=True),
        flag="prompt",
        metavar="TEXT",
    )
    num_inference_steps: int = setting(20, "Sampling", "Denoising steps per image.", at_least(1))
    guidance_scale: float = setting(
        3.0,
        "Sampling",
        "Guidance scale. Classifier-free guidance is off at 1 or less; for FLUX.1 it is an input of"
        " the model.",
        at_least(0),
    )
    eta: float = setting(
        1.0,
        "Sampling",
        "Noise of the sampler: 0 is deterministic, 1 is as noisy as DDPM.",
        within(0, 1),
    )
    negative_prompt: str = setting("", "Prompts", "Negative prompt for classifier-free guidance.")
    height: int = setting(
        0, "Sampling", "Image height in pixels; 0 uses the model's own size.", _PIXELS
    )
    width: int = setting(
        0, "Sampling", "Image width in pixels; 0 uses the model's own size.", _PIXELS
    )
    #: No result depends on it beyond float rounding.
    sample_batch_size: int = setting(
        16,
        "Sampling",
        "Images denoised in one batch; smaller needs less memory.",
        at_least(1),
        may_change=True,
    )
    precision: Precision = setting(
        "fp32",
        "Model",
        "Floating-point precision of the model; log-probs and the KL are always fp32.",
    )
    device: str = setting(
        "auto",
        "Model",
        "Torch device, such as cuda:0 or cpu; auto picks one.",
        may_change=True,
    )
    offload: bool = setting(
        False,
        "Model",
        "Keep the VAE and the rewards in the CPU's memory while they are not in use.",
        may_change=True,
    )
    seed: int = setting(0, "Run", "Random seed.", at_least(0))

    def held(self) -> list[Held]:
        """Return what must be in memory at once, at the least."""
        return []

    @property
    def window(self) -> tuple[float, int] | None:
        """The fraction of the steps that keep their noise, and the number of steps after them.

        None leaves the noise in all of them.
        """
        return None

    def located(self) -> Self:
        """Return the same settings with absolute paths of what is read.

        They mean the same in any folder then. What is not on this machine, such as a hub id, stays.
        """
        paths = {
            name: os.path.abspath(value)
            for name, known in settings_of(type(self)).items()
            if known.path and name != "runs_dir"
            if (value := getattr(self, name)) != TINY and os.path.exists(value)
        }
        return replace(self, **paths)


@dataclass(frozen=True)
class SampleConfig(SamplingConfig):
    """`dpok sample`: one image for each prompt and seed."""

    command: ClassVar[str] = "sample"

    prompts: tuple[str, ...] = changed(SamplingConfig, "prompts", ("a green colored rabbit",))
    seeds: str = setting(
        "0-15", "Sampling", "Seeds, one image per prompt for each: 0-15, or 0,3,7."
    )


def sampling_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a run's config that determines its images, on any machine.

    Steps and eta are those of its evaluations, which may differ from the training's.
    """
    shared = {field.name for field in fields(SamplingConfig)} - {"seed", "device", "offload"}
    settings = {key: value for key, value in config.items() if key in shared}
    if steps := config.get("evaluation_steps", 0):
        settings["num_inference_steps"] = steps
    if (eta := config.get("evaluation_eta", -1)) >= 0:
        settings["eta"] = eta
    return settings

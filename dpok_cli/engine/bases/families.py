"""The families of models that can be used, by the class of their pipeline; no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """What is known of a family without loading anything; its `Base` does the rest."""

    name: str  # for messages
    module: str  # of its Base in this package
    denoiser: str  # the pipeline's part that is trained, and the prefix of its weights in files
    encoders: tuple[str, ...]  # the pipeline's text encoders
    targets: tuple[str, ...]  # the denoiser's layers that get a LoRA by default
    multiple: int  # height and width are multiples of it, in pixels
    optional: tuple[str, ...] = ()  # parts that a pipeline may lack
    vae: str = "AutoencoderKL"  # the class of its VAE in diffusers
    overflows: tuple[str, str] = ("", "")  # the text encoder that does in fp16: part and name

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """The pipeline's tokenizers, in the order of their text encoders."""
        return tuple(name.replace("text_encoder", "tokenizer") for name in self.encoders)

    @property
    def required(self) -> tuple[str, ...]:
        """The parts that every pipeline has."""
        parts = (self.denoiser, "vae", "scheduler", *self.tokenizers, *self.encoders)
        return tuple(part for part in parts if part not in self.optional)


_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")

_ADDED = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
_JOINT = tuple(f"attn.{layer}" for layer in (*_ATTENTION, *_ADDED))
_ONE, _TWO = ("text_encoder",), ("text_encoder", "text_encoder_2")

#: By the `_class_name` of model_index.json.
FAMILIES = {
    "StableDiffusionPipeline": Family(
        "Stable Diffusion v1 and v2", "stable_diffusion", "unet", _ONE, _ATTENTION, 8
    ),
    "StableDiffusionXLPipeline": Family(
        "Stable Diffusion XL", "stable_diffusion_xl", "unet", _TWO, _ATTENTION, 8
    ),
    "StableDiffusion3Pipeline": Family(
        "Stable Diffusion 3 and 3.5",
        "stable_diffusion_3",
        "transformer",
        (*_TWO, "text_encoder_3"),
        _JOINT,
        16,
        ("text_encoder_3", "tokenizer_3"),
        overflows=("text_encoder_3", "T5"),
    ),
    "FluxPipeline": Family(
        "FLUX.1",
        "flux",
        "transformer",
        _TWO,
        _JOINT,
        16,
        overflows=("text_encoder_2", "T5"),
    ),
    "QwenImagePipeline": Family(
        "Qwen-Image",
        "qwen_image",
        "transformer",
        _ONE,
        _JOINT,
        16,
        vae="AutoencoderKLQwenImage",
        overflows=("text_encoder", "Qwen2.5-VL"),
    ),
    "ZImagePipeline": Family(
        "Z-Image",
        "z_image",
        "transformer",
        _ONE,
        tuple(f"attention.{layer}" for layer in _ATTENTION),
        16,
        overflows=("text_encoder", "Qwen3"),
    ),
}


def described() -> str:
    """Return the families' names for a message."""
    return ", ".join(f"{family.name} ({kind})" for kind, family in FAMILIES.items())

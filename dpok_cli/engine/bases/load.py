"""Load a base model, and a LoRA adapter onto it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dpok_cli.config import SamplingConfig, TrainingConfig
from dpok_cli.engine.bases.base import Base
from dpok_cli.engine.bases.encoders import TextEncoders
from dpok_cli.engine.bases.families import FAMILIES, Family
from dpok_cli.engine.bases.memory import check_memory
from dpok_cli.engine.bases.model import DiffusionModel, base_of
from dpok_cli.engine.bases.parts import PipelineFiles, silence_libraries
from dpok_cli.engine.bases.source import check_source
from dpok_cli.engine.distributed import device_of
from dpok_cli.engine.lora.files import check_adapter, read_adapter
from dpok_cli.errors import InputError


def load(
    config: SamplingConfig, adapter: Path | None = None, prompts: Sequence[str] | None = None
) -> DiffusionModel:
    """Load a pipeline by hub id, folder or file, frozen, in the config's precision and device.

    ``adapter`` is a folder or file of LoRA weights to add. The text encoders are loaded first, to
    encode ``prompts``, by default the config's, and are not in memory when the denoiser is. Raises
    InputError, with the reason, if something cannot be loaded, and for settings that need more
    memory than there is.
    """
    family = FAMILIES[check_source(config)]
    lora = {}
    if adapter is not None:
        check_adapter(adapter)
        lora = read_adapter(adapter)
    silence_libraries()
    device, files = device_of(config.device), PipelineFiles(config, family)
    pipeline = files.pipeline()
    base = base_of(pipeline)
    # Before minutes of loading.
    shape = base.latent_shape(config.height, config.width)
    base.schedule(config.num_inference_steps, shape)
    _check_channels(base, config.model)

    def read_encoders() -> dict[str, Any]:
        found = files.encoders()
        _check_tokenizers(pipeline, family, found, config.model)
        return {name: encoder.to(device) for name, encoder in found.items()}

    encoders = TextEncoders(base, read_encoders)
    prompts = config.prompts if prompts is None else prompts
    with encoders.present():
        encoders.encode(prompts, config.negative_prompt)
        if isinstance(config, TrainingConfig):
            encoders.fingerprint()  # which its checkpoints have
    _free(device)
    pipeline.register_modules(**{family.denoiser: files.denoiser().to(device)})
    pipeline.vae.to("cpu" if config.offload else device)
    model = DiffusionModel(pipeline, config.height, config.width, encoders, config.offload)
    if adapter is not None:
        model.adapter.install(lora, str(adapter))
        model.encode(prompts, config.negative_prompt)  # parts of text encoders may not fit
    check_memory(config, model)
    return model


def _free(device: torch.device) -> None:
    """Give the memory of what was deleted back to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _check_tokenizers(pipeline: Any, family: Family, encoders: dict[str, Any], model: str) -> None:
    """Raise InputError for a tokenizer that is not its encoder's."""
    of = dict(zip(family.encoders, family.tokenizers, strict=True))
    for encoder, network in encoders.items():
        name = of[encoder]
        config = getattr(network.config, "text_config", network.config)  # of a multimodal one
        words, known = len(getattr(pipeline, name)), config.vocab_size
        if not known // 2 < words <= known:  # transformers makes one up if files are missing
            raise InputError(
                f"Cannot load the model {model}: its {name} has {words} tokens and its {encoder}"
                f" {known}. Are its vocabulary files there?"
            )


def _check_channels(base: Base, model: str) -> None:
    """Raise InputError for a denoiser that does not take the latents of the VAE."""
    takes, has = base.channels, base.vae_channels
    if takes != has:
        raise InputError(
            f"Cannot use the model {model}: its {base.family.denoiser} takes {takes} channels and"
            f" its VAE's latents have {has}. Inpainting and depth models cannot be used."
        )

"""Load a base model, and a LoRA adapter onto it."""

from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import StableDiffusionPipeline

from dpok_cli.config import SamplingConfig
from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.engine.bases.source import check_source, locate
from dpok_cli.engine.distributed import device_of
from dpok_cli.engine.lora.files import check_adapter, read_adapter
from dpok_cli.errors import InputError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def load(config: SamplingConfig, adapter: Path | None = None) -> DiffusionModel:
    """Load a pipeline by hub id or folder, frozen, in the config's precision and on its device.

    ``adapter`` is a folder or file of LoRA weights to add. Raises InputError, with the reason, if
    either cannot be loaded.
    """
    check_source(config.model)
    if adapter is not None:
        check_adapter(adapter)
    _silence_libraries()
    source = locate(config.model)
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(
            source,
            dtype=DTYPES[config.precision],
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    except Exception as error:  # each library raises its own for a bad file
        raise InputError(
            f"Cannot load the model {config.model}: {_first_line(error)}"
            " Give --model a folder that holds a Stable Diffusion v1 or v2 pipeline, or a hub id"
            " that this machine has or can download."
        ) from error
    words, known = len(pipeline.tokenizer), pipeline.text_encoder.config.vocab_size
    if not known // 2 < words <= known:  # transformers makes up a tokenizer if files are missing
        raise InputError(
            f"Cannot load the model {config.model}: its tokenizer has {words} tokens and its text"
            f" encoder {known}. Are its vocabulary files there?"
        )
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.requires_grad_(False).eval()
    pipeline.vae.float()  # half precision overflows in SD's decoder
    pipeline.to(device_of(config.device))
    model = DiffusionModel(pipeline, config.height, config.width)
    if adapter is not None:
        model.adapter.install(read_adapter(adapter), str(adapter))
    return model


def _silence_libraries() -> None:
    """Keep the libraries' progress bars and log lines off the terminal; errors are raised."""
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity(library.CRITICAL)
        library.disable_progress_bar()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".:") + "."

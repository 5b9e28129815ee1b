"""Load a base model, and a LoRA adapter onto it."""

from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, StableDiffusionPipeline
from diffusers.loaders.single_file_utils import (
    DIFFUSERS_DEFAULT_PIPELINE_PATHS,
    infer_diffusers_model_type,
)
from safetensors import safe_open

from dpok_cli.config import SamplingConfig
from dpok_cli.engine.bases.memory import check_memory
from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.engine.bases.source import (
    INDEX,
    cannot_load,
    check_source,
    first_line,
    is_file,
    locate,
    variant,
)
from dpok_cli.engine.distributed import device_of
from dpok_cli.engine.lora.files import check_adapter, read_adapter
from dpok_cli.errors import InputError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def load(config: SamplingConfig, adapter: Path | None = None) -> DiffusionModel:
    """Load a pipeline by hub id, folder or file, frozen, in the config's precision and device.

    ``adapter`` is a folder or file of LoRA weights to add. Raises InputError, with the reason, if
    either cannot be loaded, and for settings that need more memory than there is.
    """
    check_source(config)
    if adapter is not None:
        check_adapter(adapter)
    _silence_libraries()
    try:
        pipeline = _pipeline(config)
    except InputError:
        raise
    except Exception as error:  # each library raises its own for a bad file
        raise cannot_load(config.model, error) from error
    _check_parts(pipeline, config.model)
    pipeline.vae.float()  # half precision overflows in SD's decoder
    pipeline.to(device_of(config.device))
    model = DiffusionModel(pipeline, config.height, config.width)
    for part in model.base.parts():
        part.requires_grad_(False).eval()
    if adapter is not None:
        model.adapter.install(read_adapter(adapter), str(adapter))
    check_memory(config, model)
    return model


def _silence_libraries() -> None:
    """Keep the libraries' progress bars and log lines off the terminal; errors are raised."""
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity(library.CRITICAL)
        library.disable_progress_bar()


def _pipeline(config: SamplingConfig) -> StableDiffusionPipeline:
    source = locate(config.model)
    options: dict[str, Any] = dict(
        dtype=DTYPES[config.precision],
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    if is_file(source):
        configuration = config.model_config or _default_configuration(Path(source))
        if config.vae:
            options["vae"] = _vae(config.vae, configuration)
        return _from_file(source, configuration, options)
    if config.vae:
        options["vae"] = _vae(config.vae, source)
    if Path(source).is_dir():
        options["variant"] = variant(Path(source))
        return StableDiffusionPipeline.from_pretrained(source, **options)
    try:
        return StableDiffusionPipeline.from_pretrained(source, **options)
    except OSError as error:  # the hub may have half-precision files only
        try:
            return StableDiffusionPipeline.from_pretrained(source, variant="fp16", **options)
        except OSError:
            raise error from None


# ---------------------------------------------------------------------------------- single files


class _Shaped(NamedTuple):
    """What diffusers looks at of a weight to tell the family."""

    shape: list[int]


def _default_configuration(file: Path) -> str:
    """Return the hub id whose configuration a file's weights have; raises InputError.

    Only the header is read.
    """
    with safe_open(file, "pt") as opened:
        names = opened.keys()
        header = {name: _Shaped(opened.get_slice(name).get_shape()) for name in names}
    kind = infer_diffusers_model_type(header)
    hub_id = DIFFUSERS_DEFAULT_PIPELINE_PATHS[kind]["pretrained_model_name_or_path"]
    if kind not in ("v1", "v2"):
        raise InputError(
            f"{file} is a checkpoint like {hub_id}'s ({kind}); only Stable Diffusion v1 and v2 can"
            " be used."
        )
    return hub_id


def _from_file(source: str, configuration: str, options: dict[str, Any]) -> StableDiffusionPipeline:
    try:
        return StableDiffusionPipeline.from_single_file(source, config=configuration, **options)
    except OSError as error:
        if Path(configuration).is_dir():
            raise
        raise InputError(
            f"Cannot load the model {source}: it needs the configuration of {configuration}, which"
            f" is not on this machine and cannot be downloaded ({first_line(error)}) Give"
            " --model-config the folder of a pipeline of this kind; its weights are not needed."
        ) from error


def _vae(vae: str, configuration: str) -> AutoencoderKL:
    """Load another VAE; of a file, the configuration is that of the model's own VAE."""
    try:
        if is_file(vae):
            return AutoencoderKL.from_single_file(vae, config=configuration, subfolder="vae")
        if (Path(vae) / INDEX).is_file():
            return AutoencoderKL.from_pretrained(vae, subfolder="vae")
        return AutoencoderKL.from_pretrained(vae)
    except Exception as error:
        raise InputError(
            f"Cannot load the VAE {vae}: {first_line(error)} Give --vae an AutoencoderKL of Stable"
            " Diffusion, as a hub id, a folder or a .safetensors file."
        ) from error


# ---------------------------------------------------------------------------------------- checks


def _check_parts(pipeline: StableDiffusionPipeline, model: str) -> None:
    """Raise InputError for parts that do not belong together."""
    words, known = len(pipeline.tokenizer), pipeline.text_encoder.config.vocab_size
    if not known // 2 < words <= known:  # transformers makes up a tokenizer if files are missing
        raise InputError(
            f"Cannot load the model {model}: its tokenizer has {words} tokens and its text"
            f" encoder {known}. Are its vocabulary files there?"
        )
    takes, has = pipeline.unet.config.in_channels, pipeline.vae.config.latent_channels
    if takes != has:
        raise InputError(
            f"Cannot use the model {model}: its UNet takes {takes} channels and its VAE's latents"
            f" have {has}. Inpainting and depth models cannot be used."
        )

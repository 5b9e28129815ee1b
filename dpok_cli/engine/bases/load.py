"""Load a base model, and a LoRA adapter onto it."""

from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import (
    DIFFUSERS_DEFAULT_PIPELINE_PATHS,
    infer_diffusers_model_type,
)
from safetensors import safe_open

from dpok_cli.config import SamplingConfig
from dpok_cli.engine.bases.base import Base
from dpok_cli.engine.bases.families import FAMILIES, Family
from dpok_cli.engine.bases.memory import check_memory
from dpok_cli.engine.bases.model import DiffusionModel, base_class
from dpok_cli.engine.bases.source import (
    INDEX,
    cannot_load,
    check_source,
    first_line,
    is_file,
    left_out,
    locate,
    variant,
)
from dpok_cli.engine.distributed import device_of
from dpok_cli.engine.lora.files import check_adapter, read_adapter
from dpok_cli.errors import InputError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

#: What diffusers calls the checkpoints that can be read from a single file.
_FILES = ("v1", "v2", "xl_base")


def load(config: SamplingConfig, adapter: Path | None = None) -> DiffusionModel:
    """Load a pipeline by hub id, folder or file, frozen, in the config's precision and device.

    ``adapter`` is a folder or file of LoRA weights to add. Raises InputError, with the reason, if
    either cannot be loaded, and for settings that need more memory than there is.
    """
    family = FAMILIES[check_source(config)]
    if adapter is not None:
        check_adapter(adapter)
    _silence_libraries()
    try:
        pipeline = _pipeline(config, family)
    except InputError:
        raise
    except Exception as error:  # each library raises its own for a bad file
        raise cannot_load(config.model, error) from error
    _check_complete(pipeline, family, config.model)
    pipeline.vae.float()  # half precision overflows in decoders
    pipeline.to(device_of(config.device))
    model = DiffusionModel(pipeline, config.height, config.width)
    _check_channels(model.base, config.model)
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


def _pipeline(config: SamplingConfig, family: Family) -> Any:
    source, base = locate(config.model), base_class(family)
    options: dict[str, Any] = dict(dtype=DTYPES[config.precision], **base.options)
    if is_file(source):
        configuration = config.model_config or _default_configuration(Path(source))
        if config.vae:
            options["vae"] = _vae(config.vae, configuration, family)
        return _from_file(base, source, configuration, options)
    # diffusers has to be told which parts are left out on purpose.
    options |= dict.fromkeys(set(family.optional) & left_out(config.model))
    if config.vae:
        options["vae"] = _vae(config.vae, source, family)
    if Path(source).is_dir():
        options["variant"] = variant(Path(source, family.denoiser))
        return base.pipeline_class.from_pretrained(source, **options)
    try:
        return base.pipeline_class.from_pretrained(source, **options)
    except OSError as error:  # the hub may have half-precision files only
        try:
            return base.pipeline_class.from_pretrained(source, variant="fp16", **options)
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
    if kind not in _FILES:
        raise InputError(
            f"{file} is a checkpoint like {hub_id}'s ({kind}); only Stable Diffusion v1, v2 and XL"
            " can be read from a single file. Other families are read from a pipeline's folder or"
            " a hub id."
        )
    return hub_id


def _from_file(base: type[Base], source: str, configuration: str, options: dict[str, Any]) -> Any:
    try:
        return base.pipeline_class.from_single_file(source, config=configuration, **options)
    except OSError as error:
        if Path(configuration).is_dir():
            raise
        raise InputError(
            f"Cannot load the model {source}: it needs the configuration of {configuration}, which"
            f" is not on this machine and cannot be downloaded ({first_line(error)}) Give"
            " --model-config the folder of a pipeline of this kind; its weights are not needed."
        ) from error


def _vae(vae: str, configuration: str, family: Family) -> AutoencoderKL:
    """Load another VAE; of a file, the configuration is that of the model's own VAE."""
    try:
        if is_file(vae):
            return AutoencoderKL.from_single_file(vae, config=configuration, subfolder="vae")
        if (Path(vae) / INDEX).is_file():
            return AutoencoderKL.from_pretrained(vae, subfolder="vae")
        return AutoencoderKL.from_pretrained(vae)
    except Exception as error:
        raise InputError(
            f"Cannot load the VAE {vae}: {first_line(error)} Give --vae an AutoencoderKL of"
            f" {family.name}, as a hub id, a folder or a .safetensors file."
        ) from error


# ---------------------------------------------------------------------------------------- checks


def _check_complete(pipeline: Any, family: Family, model: str) -> None:
    """Raise InputError for parts that are missing, or a tokenizer that is not its encoder's."""
    tokenizers = [encoder.replace("text_encoder", "tokenizer") for encoder in family.encoders]
    for name in (family.denoiser, "vae", "scheduler", *tokenizers, *family.encoders):
        if getattr(pipeline, name, None) is None and name not in family.optional:
            raise InputError(f"Cannot load the model {model}: it has no {name}.")
    for name, encoder in zip(tokenizers, family.encoders, strict=True):
        if getattr(pipeline, name) is None:
            continue
        words = len(getattr(pipeline, name))
        known = getattr(pipeline, encoder).config.vocab_size
        if not known // 2 < words <= known:  # transformers makes one up if files are missing
            raise InputError(
                f"Cannot load the model {model}: its {name} has {words} tokens and its {encoder}"
                f" {known}. Are its vocabulary files there?"
            )


def _check_channels(base: Base, model: str) -> None:
    """Raise InputError for a denoiser that does not take the latents of the VAE."""
    takes, has = base.channels, base.pipeline.vae.config.latent_channels
    if takes != has:
        raise InputError(
            f"Cannot use the model {model}: its {base.family.denoiser} takes {takes} channels and"
            f" its VAE's latents have {has}. Inpainting and depth models cannot be used."
        )

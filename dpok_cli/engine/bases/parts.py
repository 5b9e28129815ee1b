"""A pipeline's files, read part by part, so that no more is in memory than is used."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
import transformers
from diffusers.loaders.single_file_utils import (
    DIFFUSERS_DEFAULT_PIPELINE_PATHS,
    infer_diffusers_model_type,
)
from safetensors import safe_open
from torch import nn

from dpok_cli.config import SamplingConfig
from dpok_cli.engine.bases.families import Family
from dpok_cli.engine.bases.model import base_class
from dpok_cli.engine.bases.source import (
    INDEX,
    cannot_load,
    check_part,
    first_line,
    is_file,
    left_out,
    locate,
    read_index,
    variant,
)
from dpok_cli.errors import InputError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

#: What diffusers calls the checkpoints that can be read from a single file.
_FILES = ("v1", "v2", "xl_base")


class PipelineFiles:
    """The files of a model, and of the VAE in its place; every part is read frozen.

    All raise InputError, with the reason, for what cannot be loaded.
    """

    def __init__(self, config: SamplingConfig, family: Family):
        self.config, self.family, self.base = config, family, base_class(family)
        self.source = locate(config.model)
        self.is_file = is_file(self.source)
        with self._readable():
            self.configuration = configuration_of(config)
            self.index = {} if self.is_file else read_index(self.source)
            for part in () if self.is_file else family.required:
                if not (part == "vae" and config.vae):  # which is read in its place
                    check_part(config.model, self.index, part)

    def pipeline(self) -> Any:
        """Return the pipeline without text encoders, whose denoiser has no weights yet."""
        with self._readable():
            given = dict.fromkeys(self.family.encoders)
            given[self.family.denoiser] = self._structure()
            if self.config.vae:
                given["vae"] = _vae(self.config.vae, self.configuration, self.family)
            pipeline = self._read(**given)
        self._check_parts(pipeline, "vae", "scheduler", *self.family.tokenizers)
        frozen(pipeline.vae.float())  # half precision overflows in decoders
        return pipeline

    def encoders(self) -> dict[str, Any]:
        """Return the text encoders, except for those that the model does without."""
        with self._readable():
            others = (self.family.denoiser, "vae", *self.family.tokenizers)
            pipeline = self._read(**dict.fromkeys(others))
        self._check_parts(pipeline, *self.family.encoders)
        found = {name: getattr(pipeline, name) for name in self.family.encoders}
        return {name: frozen(encoder) for name, encoder in found.items() if encoder is not None}

    def denoiser(self) -> nn.Module:
        """Return the denoiser."""
        with self._readable():
            pipeline = self._read(
                **dict.fromkeys(("vae", *self.family.tokenizers, *self.family.encoders))
            )
        self._check_parts(pipeline, self.family.denoiser)
        return frozen(getattr(pipeline, self.family.denoiser))

    def _structure(self) -> nn.Module:
        """Return the denoiser of the configuration on the meta device."""
        name = self.family.denoiser
        try:
            return read_network(self.configuration, name)
        except (OSError, InputError) as error:
            self._check_configuration(error)
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"Cannot load the model {self.config.model}: it has no {name}."
            ) from error

    def _read(self, **given: Any) -> Any:
        """Read the pipeline with these parts as given; None leaves one out."""
        options = dict(dtype=DTYPES[self.config.precision], **self.base.options, **given)
        kind, source = self.base.pipeline_class, self.source
        if self.is_file:
            try:
                return kind.from_single_file(source, config=self.configuration, **options)
            except OSError as error:
                self._check_configuration(error)
                raise
        # diffusers has to be told which parts are left out on purpose.
        options |= dict.fromkeys(set(self.family.optional) & left_out(self.index))
        if Path(source).is_dir():
            options["variant"] = variant(Path(source, self.family.denoiser))
            return kind.from_pretrained(source, **options)
        try:
            return kind.from_pretrained(source, **options)
        except OSError as error:  # the hub may have half-precision files only
            try:
                return kind.from_pretrained(source, variant="fp16", **options)
            except OSError:
                raise error from None

    def _check_configuration(self, error: Exception) -> None:
        """Raise InputError if a single file cannot be read for want of its configuration."""
        if not self.is_file or Path(self.configuration).is_dir():
            return
        reason = error.__cause__ if isinstance(error.__cause__, OSError) else error
        raise InputError(
            f"Cannot load the model {self.source}: it needs the configuration of"
            f" {self.configuration}, which is not on this machine and cannot be downloaded"
            f" ({first_line(reason)}) Give --model-config the folder of a pipeline of this kind;"
            " its weights are not needed."
        ) from error

    def _check_parts(self, pipeline: Any, *names: str) -> None:
        for name in names:
            if getattr(pipeline, name, None) is None and name not in self.family.optional:
                raise InputError(f"Cannot load the model {self.config.model}: it has no {name}.")

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # each library raises its own for a bad file
            raise cannot_load(self.config.model, error) from error


def configuration_of(config: SamplingConfig) -> str:
    """Return where a model's configuration is: a folder or a hub id; raises InputError.

    That of a file is known by its weights, unless `model_config` names it.
    """
    source = locate(config.model)
    if not is_file(source):
        return source
    return config.model_config or _default_configuration(source)


def read_network(configuration: str, name: str) -> nn.Module:
    """Return a part of a pipeline on the meta device, in float32.

    ``configuration`` is a folder or a hub id, and ``name`` the part's there. Raises OSError if it
    is not on this machine and cannot be downloaded, InputError if there is no such part.
    """
    index = read_index(configuration)
    check_part(configuration, index, name)
    library, kind = index[name]
    cls: Any = getattr(import_module(library), kind)
    with torch.device("meta"):
        if library == "diffusers":
            return cls.from_config(cls.load_config(configuration, subfolder=name))
        return cls(cls.config_class.from_pretrained(configuration, subfolder=name))


def silence_libraries() -> None:
    """Keep the libraries' progress bars and log lines off the terminal; errors are raised."""
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity(library.CRITICAL)
        library.disable_progress_bar()


def frozen(part: Any) -> Any:
    return part.requires_grad_(False).eval()


class _Shaped(NamedTuple):
    """What diffusers looks at of a weight to tell the family."""

    shape: list[int]


def _default_configuration(file: str) -> str:
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


def _vae(vae: str, configuration: str, family: Family) -> Any:
    """Load another VAE; of a file, the configuration is that of the model's own VAE."""
    cls: Any = getattr(diffusers, family.vae)
    try:
        if is_file(vae):
            return cls.from_single_file(vae, config=configuration, subfolder="vae")
        if (Path(vae) / INDEX).is_file():
            return cls.from_pretrained(vae, subfolder="vae")
        return cls.from_pretrained(vae)
    except Exception as error:
        raise InputError(
            f"Cannot load the VAE {vae}: {first_line(error)} Give --vae an {family.vae} of"
            f" {family.name}, as a hub id, a folder or a .safetensors file."
        ) from error

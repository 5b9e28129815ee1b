"""The structure of a model, from its configuration alone: networks that have no weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from dpok_cli.config import SamplingConfig
from dpok_cli.engine.bases.families import FAMILIES
from dpok_cli.engine.bases.model import base_class
from dpok_cli.engine.bases.parts import (
    DTYPES,
    configuration_of,
    frozen,
    read_network,
    silence_libraries,
)
from dpok_cli.engine.bases.source import kind_of, read_index
from dpok_cli.errors import InputError

#: Configurations of published models, as examples/random_pipeline.py writes them.
PUBLISHED = Path(__file__).parent / "published"


def structure(config: SamplingConfig) -> Any:
    """Return a model's pipeline with all networks on the meta device, and without tokenizers.

    The VAE is in float32, as always, the others in the config's precision. The configuration is the
    model's own; those of some published models come with dpok. Raises InputError if there is none.
    """
    silence_libraries()
    where, dtype = _where(config), DTYPES[config.precision]
    with _readable(config):
        index = read_index(where)
        family = FAMILIES[kind_of(index, config.model)]
        parts: dict[str, Any] = dict.fromkeys((*family.encoders, *family.tokenizers))
        for name in (family.denoiser, *family.encoders):
            if name not in family.optional or index.get(name, [None])[0]:
                parts[name] = frozen(read_network(where, name).to(dtype))
        parts["vae"] = frozen(read_network(where, "vae"))
        library, scheduler = index["scheduler"]
        cls: Any = getattr(import_module(library), scheduler)
        parts["scheduler"] = cls.from_pretrained(where, subfolder="scheduler")
    base = base_class(family)
    return base.pipeline_class(**parts, **base.options)


def size_of_denoiser(config: SamplingConfig) -> int:
    """Return its bytes; raises InputError as `structure` does."""
    where = _where(config)
    with _readable(config):
        family = FAMILIES[kind_of(read_index(where), config.model)]
        network: Any = read_network(where, family.denoiser)
    return network.num_parameters() * DTYPES[config.precision].itemsize


@contextmanager
def _readable(config: SamplingConfig) -> Iterator[None]:
    try:
        yield
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"The configuration of {config.model} cannot be read: {error}.") from error


def _where(config: SamplingConfig) -> str:
    """Return a folder or hub id whose configuration can be read; raises InputError."""
    where = configuration_of(config)
    published = PUBLISHED / where.replace("/", "--")
    return str(published) if published.is_dir() else where

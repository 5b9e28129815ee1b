"""The structure of a model, from its configuration alone: networks that have no weights."""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from dpok_cli.config import SamplingConfig
from dpok_cli.engine.bases.families import FAMILIES
from dpok_cli.engine.bases.model import base_class
from dpok_cli.engine.bases.parts import DTYPES, configuration_of, read_network
from dpok_cli.engine.bases.source import read_index
from dpok_cli.errors import InputError

#: Configurations of published models, as examples/random_pipeline.py writes them.
PUBLISHED = Path(__file__).parent / "published"


def structure(config: SamplingConfig) -> Any:
    """Return a model's pipeline with all networks on the meta device, and without tokenizers.

    The VAE is in float32, as always, the others in the config's precision. The configuration is the
    model's own or, where a hub id cannot be reached, that of a published model. Raises InputError
    if there is none.
    """
    where = _where(config)
    index = read_index(where)
    if (kind := index["_class_name"]) not in FAMILIES:
        raise InputError(f"{config.model} is a {kind}, which cannot be used.")
    family = FAMILIES[kind]
    base, dtype = base_class(family), DTYPES[config.precision]
    encoders = [
        name
        for name in family.encoders
        if name not in family.optional or index.get(name, [None])[0]
    ]
    parts: dict[str, Any] = dict.fromkeys(
        [*family.encoders, *(name.replace("text_encoder", "tokenizer") for name in family.encoders)]
    )
    try:
        for name in (family.denoiser, *encoders):
            parts[name] = read_network(where, name).to(dtype)
        parts["vae"] = read_network(where, "vae")
        library, scheduler = index["scheduler"]
        cls: Any = getattr(import_module(library), scheduler)
        parts["scheduler"] = cls.from_pretrained(where, subfolder="scheduler")
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"The configuration of {config.model} cannot be read: {error}.") from error
    pipeline = base.pipeline_class(**parts, **base.options)
    for part in (*parts.values(),):
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    return pipeline


def _where(config: SamplingConfig) -> str:
    """Return a folder or hub id whose configuration can be read; raises InputError."""
    where = configuration_of(config)
    try:
        read_index(where)
    except InputError:
        folder = PUBLISHED / where.replace("/", "--")
        if not folder.is_dir():
            raise
        return str(folder)
    return where

"""Where a model's files are, and of which family it is, before anything heavy is imported."""

import json
import re
from pathlib import Path
from typing import Any

from dpok_cli import tiny
from dpok_cli.config import TINY, SamplingConfig
from dpok_cli.engine.bases.families import FAMILIES, described
from dpok_cli.errors import InputError

#: The class of a single file's pipeline, by how a name in it starts; the first that fits.
FILES = {"conditioner.": "StableDiffusionXLPipeline", "": "StableDiffusionPipeline"}

INDEX = "model_index.json"
ADVICE = (
    " Give --model the folder of a pipeline that `save_pretrained` wrote, a .safetensors file of"
    " Stable Diffusion v1, v2 or XL, or a hub id that this machine has or can download."
)


def locate(model: str) -> str:
    """Return what ``from_pretrained`` takes: the bundled folder, another folder or a hub id."""
    return str(tiny.folder("pipeline")) if model == TINY else model


def is_file(model: str) -> bool:
    """Whether a model or VAE is a single file of weights."""
    return Path(model).is_file()


def check_source(config: SamplingConfig) -> str:
    """Return the class of a model's pipeline, a key of `FAMILIES`.

    Raises InputError unless model, `model_config` and `vae` can be those of a pipeline, and the
    pipeline can be used in `precision`. Of a hub id, the small model_index.json is downloaded,
    unless this machine has it.
    """
    model = config.model
    if is_file(model):
        kind = _check_file(Path(model), "--model")
        if config.model_config:
            other = _check_pipeline(config.model_config, "--model-config")
            if kind != other:
                raise InputError(
                    f"--model-config {config.model_config} is of a {other}, and {model} has the"
                    f" weights of a {kind}. Give --model-config the folder of one."
                )
    elif config.model_config:
        raise InputError("--model-config is for a --model that is a file: leave it out.")
    else:
        kind = _check_pipeline(model, "--model")
    if config.vae and is_file(config.vae):
        _check_suffix(Path(config.vae), "--vae")
    elif config.vae and not Path(config.vae).exists():
        _check_id(config.vae, "--vae")
    family = FAMILIES[kind]
    part, encoder = family.overflows
    if config.precision == "fp16" and part and part not in left_out(read_index(model)):
        raise InputError(
            f"--precision fp16: the text encoder {encoder} of {family.name} overflows in it. Use"
            " --precision bf16."
        )
    return kind


def kind_of(index: dict[str, Any], model: str) -> str:
    """Return the class of the pipeline of an index; raises InputError if it cannot be used."""
    if (kind := str(index["_class_name"])) not in FAMILIES:
        raise InputError(f"{model} holds a {kind}; only {described()} can be used.")
    return kind


def read_index(model: str) -> dict[str, Any]:
    """Return the index of a pipeline's folder or hub id; raises InputError if there is none."""
    return json.loads(_index(model, "--model").read_text(encoding="utf-8"))


def check_part(model: str, index: dict[str, Any], name: str) -> None:
    """Raise InputError for a part that an index does not list, or its folder does not hold."""
    if not index.get(name, [None])[0]:
        raise InputError(
            f"Cannot load the model {model}: its {INDEX} is of a {index['_class_name']} and lists"
            f" no {name}."
        )
    folder = Path(locate(model))
    if folder.is_dir() and not (folder / name).is_dir():
        raise InputError(f"Cannot load the model {model}: it has no {name}.")


def left_out(index: dict[str, Any]) -> set[str]:
    """Return the parts that the index of a pipeline says it has not."""
    return {name for name, kind in index.items() if isinstance(kind, list) and None in kind}


def variant(folder: Path) -> str | None:
    """Return the only variant of weights that a denoiser's folder has, as "fp16"; usually None."""
    names = [file.name for file in folder.glob("diffusion_pytorch_model*")]
    plain = re.compile(r"diffusion_pytorch_model(-\d+-of-\d+)?\.(safetensors|bin)")
    varied = re.compile(r"diffusion_pytorch_model\.(\w+)(-\d+-of-\d+)?\.(safetensors|bin)")
    if any(plain.fullmatch(name) for name in names):
        return None
    found = [match[1] for name in sorted(names) if (match := varied.fullmatch(name))]
    return "fp16" if "fp16" in found else next(iter(found), None)


def loading_code(config: SamplingConfig, kind: str) -> str:
    """Return Python that makes ``pipe``, of a class of diffusers, for the model card."""
    lines, given = [], ""
    vae = FAMILIES[kind].vae
    if config.vae:
        inside = ', subfolder="vae"' if (Path(config.vae) / INDEX).is_file() else ""
        lines = [
            f"from diffusers import {vae}\n",
            f"vae = {vae}.{_call(config.vae)}{inside})",
        ]
        given = ", vae=vae"
    if config.model_config:
        given += f", config={_quoted(config.model_config)}"
    call = _call(config.model)
    if config.model == TINY:
        lines.insert(0, "from dpok_cli import tiny\n")
        call = 'from_pretrained(tiny.folder("pipeline")'
    lines.append(f"pipe = {kind}.{call}{given})")
    return "\n".join(lines)


def cannot_load(model: str, error: BaseException) -> InputError:
    """Return the error of a model that a library cannot load, with the library's first line."""
    return InputError(f"Cannot load the model {model}: {first_line(error)}{ADVICE}")


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".:") + "."


def _call(source: str) -> str:
    return f"from_{'single_file' if is_file(source) else 'pretrained'}({_quoted(source)}"


def _quoted(source: str) -> str:
    path = Path(source)
    return json.dumps(str(path.resolve()) if path.exists() else source, ensure_ascii=False)


# ---------------------------------------------------------------------------------------- checks


def _check_pipeline(model: str, flag: str) -> str:
    """Return the class of a folder's or hub id's pipeline; raises InputError for an unknown one."""
    index = _index(model, flag)
    try:
        return kind_of(json.loads(index.read_text(encoding="utf-8")), model)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{index} cannot be read as a pipeline's index: {error}. Give {flag} another folder."
        ) from error


def _index(model: str, flag: str) -> Path:
    """Return the index of a folder or hub id; raises InputError if there is none."""
    folder = Path(locate(model))
    if not folder.exists():
        _check_id(model, flag)
        return _index_of_hub(model)
    index = folder / INDEX
    if not index.is_file():
        raise InputError(
            f"{model} is no diffusers pipeline: it has no {INDEX}. Give {flag} a folder that"
            " `save_pretrained` of a pipeline wrote."
        )
    return index


def _check_id(model: str, flag: str) -> None:
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        what = "VAE folder or file" if flag == "--vae" else "model folder"
        tiny_too = "" if flag == "--vae" else "'tiny', "
        raise InputError(f"There is no {what} {model}. Give {flag} {tiny_too}a folder or a hub id.")


def _index_of_hub(model: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(model, INDEX))
    except LocalEntryNotFoundError as error:
        raise cannot_load(model, error) from error
    except EntryNotFoundError as error:
        raise InputError(f"{model} is no diffusers pipeline: it has no {INDEX}.{ADVICE}") from error
    except Exception as error:  # of the network, of the hub's answer, or of the id
        raise cannot_load(model, error) from error


def _check_file(file: Path, flag: str) -> str:
    """Return the class of a single file's pipeline; raises InputError for no checkpoint."""
    _check_suffix(file, flag)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as opened:
            names = list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} cannot be read: {error}. Give {flag} another file.") from error
    if not any(name.startswith("model.diffusion_model.") for name in names):
        raise InputError(
            f"{file} is no checkpoint of a whole model: it has no weights named"
            f" model.diffusion_model. Give {flag} another file, or a folder."
        )
    starts = (start for start in FILES if any(name.startswith(start) for name in names))
    return FILES[next(starts)]


def _check_suffix(file: Path, flag: str) -> None:
    if file.suffix != ".safetensors":
        raise InputError(
            f"{file} is not safetensors, the only format of single files that is read. Give {flag}"
            " another file, a folder or a hub id."
        )

"""Files of LoRA weights: found and checked without torch; read in every form that tools write.

    diffusers   unet.down_blocks.0...attn1.to_q.lora_A.weight, or .lora.down.weight, and the older
                ...attn1.processor.to_q_lora.down.weight, with and without "unet."
    kohya       lora_unet_down_blocks_0_..._attn1_to_q.lora_down.weight, .alpha (ComfyUI, A1111);
                of SDXL lora_unet_input_blocks_4_..., of FLUX.1 lora_unet_double_blocks_0_...
    peft        base_model.model.down_blocks.0...attn1.to_q.lora_A.weight, and adapter_config.json

diffusers' and peft's own converters translate the names.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from dpok_cli.engine.lora.ldm import LAYERS
from dpok_cli.engine.lora.weights import TEXT_MODEL, Layer, Lora, rank_and_alpha, targets
from dpok_cli.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

#: What diffusers calls the file in an adapter's folder.
ADAPTER_FILE = "pytorch_lora_weights.safetensors"
#: What peft calls its files.
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
#: Where diffusers keeps alpha and rank in a file's header.
METADATA = "lora_adapter_metadata"

#: What is no plain LoRA, by a piece of its weights' names.
_OTHER_KINDS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "lora_mid.": "LoCon with a Tucker decomposition",
    "boft_": "BOFT",
    "oft_": "OFT",
    ".on_input": "IA3",
    "ia3_": "IA3",
    ".a1.": "GLoRA",
    ".diff": "a full difference of weights",
    "lora_embedding_": "LoRA on embeddings",
    "lora_controlnet": "Control-LoRA",
    "bundle_emb.": "LoRA with textual inversion",
    ".lora_B.bias": "LoRA with biases",
}
DENOISERS = ("unet", "transformer")
_PARTS = (*DENOISERS, "text_encoder", "text_encoder_2", "text_encoder_3")
_KOHYA = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
_KOHYA_FLUX = ("lora_unet_double_blocks_", "lora_unet_single_blocks_")
#: How names in a transformer start, where no part stands before them.
_TRANSFORMER = (
    "transformer_blocks.",
    "single_transformer_blocks.",
    "pos_embed.",
    "x_embedder.",
    "context_embedder.",
    "img_in.",
    "txt_in.",
    "layers.",
    "noise_refiner.",
    "context_refiner.",
    "all_x_embedder.",
    "cap_embedder.",
    "t_embedder.",
    "all_final_layer.",
    "time_text_embed.",
    "norm_out.",
    "proj_out.",
)
_PEFT_NAME = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")


def adapter_file(adapter: Path) -> Path:
    """Return the file of LoRA weights in a folder, or the file itself.

    A folder's is diffusers' or peft's, or else its only safetensors file.
    """
    if not adapter.is_dir():
        return adapter
    for name in (ADAPTER_FILE, PEFT_FILE):
        if (adapter / name).is_file():
            return adapter / name
    others = list(adapter.glob("*.safetensors"))
    return others[0] if len(others) == 1 else adapter / ADAPTER_FILE


def check_adapter(adapter: Path, flag: str = "--adapter") -> None:
    """Raise InputError unless ``adapter`` is a safetensors file of LoRA weights, or its folder.

    ``flag`` is the option that named it. Reads the header only.
    """
    file = adapter_file(adapter)
    if not file.is_file():
        raise InputError(f"There is no adapter {file}. Give {flag} a run's adapter folder.")
    if file.suffix != ".safetensors":
        raise InputError(
            f"{file} is not safetensors, the only format that is read. Give {flag} a run's adapter"
            " folder."
        )
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as opened:
            names = list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"The adapter {file} cannot be read: {error}. Give {flag} another."
        ) from error
    for piece, kind in _OTHER_KINDS.items():
        if any(piece in name for name in names):
            raise InputError(
                f"The adapter {file} is {kind}, which is not supported. Give {flag} a plain LoRA."
            )
    if not any("lora" in name for name in names):
        raise InputError(f"{file} holds no LoRA weights. Give {flag} a run's adapter folder.")
    _peft_config(file)


def read_adapter(adapter: Path, flag: str = "--adapter") -> Lora:
    """Read LoRA weights in any form; every weight in the file is in the result, or InputError.

    Without an alpha, in the file or beside it, a layer's is its rank. ``flag`` is the option that
    named the adapter.
    """
    from safetensors import SafetensorError, safe_open

    check_adapter(adapter, flag)
    file = adapter_file(adapter)
    try:
        with safe_open(file, "pt") as opened:
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            notes = json.loads((opened.metadata() or {}).get(METADATA, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"The adapter {file} cannot be read: {error}.") from error
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise InputError(
                f"The adapter {file} has weights that are NaN or infinite, such as {name}. Give"
                f" {flag} another."
            )
    found, alphas = _translate(weights, file)
    lora: Lora = {}
    for part, halves in found.items():
        config = _config_of(part, notes) or _peft_config(file)
        lora[part] = {}
        for name in dict.fromkeys(name for name, _ in halves):
            try:
                down, up = halves[name, "A"], halves[name, "B"]
            except KeyError:
                raise _unknown(file, f"{name}, which has one of its two halves") from None
            alpha = alphas.pop((part, name), None)
            lora[part][name] = Layer(
                down, up, _alpha(name, len(down), config) if alpha is None else alpha
            )
    for _, name in alphas:
        raise _unknown(file, f"the alpha of {name}, which has no weights")
    return lora


def adapter_settings(adapter: Path, flag: str) -> dict[str, Any]:
    """Return the settings of a training that describe an adapter's denoiser, {} without one.

    Where layers differ, rank and alpha are those of most. Raises what `read_adapter` does.
    """
    lora = read_adapter(adapter, flag)
    part = next((lora[name] for name in DENOISERS if name in lora), None)
    if part is None:
        return {}
    rank, alpha = rank_and_alpha(part)
    return {
        "lora_rank": rank,
        "lora_alpha": 0.0 if alpha == rank else float(alpha),
        "lora_targets": tuple(targets(part)),
    }


def with_sorted_header(file: bytes) -> bytes:
    """Return a safetensors file with the keys of its header sorted.

    safetensors writes the metadata's keys in any order, so equal adapters would differ in bytes.
    """
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.dumps(json.loads(file[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + file[end:]


# ----------------------------------------------------------------------------------------- names

Halves = dict[tuple[str, str], "Tensor"]  # by a layer's name, and "A" (down) or "B" (up)
Alphas = dict[tuple[str, str], float]  # by part and layer


def _translate(weights: dict[str, Tensor], file: Path) -> tuple[dict[str, Halves], Alphas]:
    """Return the weights in peft's names by part, and the alphas that are among them."""
    alphas: dict[str, float] = {}
    if all(name.startswith(_KOHYA) for name in weights):
        weights, alphas = _from_kohya(weights, file)
    alphas |= {name: weights.pop(name).item() for name in [*weights] if name.endswith(".alpha")}
    found: dict[str, Halves] = {}
    for name, weight in weights.items():
        part, layer, half = _place(name, file)
        if found.setdefault(part, {}).setdefault((layer, half), weight) is not weight:
            raise _unknown(file, f"{name}, a second time in another form")
    placed: Alphas = {}
    for name, alpha in alphas.items():
        # Those of kohya's attention layers are named after the weight, all others after the layer.
        weight_name = name.removesuffix(".alpha")
        if not weight_name.endswith(".weight"):
            weight_name += ".lora.down.weight"
        part, layer, _ = _place(weight_name, file)
        placed[part, layer] = alpha
    return found, placed


def _from_kohya(
    weights: dict[str, Tensor], file: Path
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return weights and alphas by diffusers' names, old ones for UNets."""
    from diffusers import FluxPipeline, StableDiffusionPipeline

    left = dict(weights)  # the converter takes out what it knows
    try:
        if any(name.startswith(_KOHYA_FLUX) for name in weights):
            # It splits q, k and v, and multiplies by the alphas.
            return FluxPipeline.lora_state_dict(left), {}
        blocks = SimpleNamespace(layers_per_block=LAYERS)
        converted, alphas = StableDiffusionPipeline.lora_state_dict(left, unet_config=blocks)
    except KeyError as error:
        raise _unknown(file, f"{error.args[0]} is missing") from error
    except ValueError as error:
        raise _unknown(file, next(iter(left), str(error))) from error
    if len(converted) != sum(not name.endswith(".alpha") for name in weights):
        raise _unknown(file, "two of them get one name in diffusers")
    return converted, alphas or {}


def _place(name: str, file: Path) -> tuple[str, str, str]:
    """Return part, layer and half ("A" or "B") of a weight in diffusers' or peft's names."""
    from diffusers.utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft
    from diffusers.utils.state_dict_utils import StateDictType

    path = name.removeprefix("base_model.model.")
    part, _, rest = path.partition(".")
    if part not in _PARTS:
        part, rest = "unet", path
        if path.startswith(TEXT_MODEL):
            part = "text_encoder"
        elif path.startswith(_TRANSFORMER):
            part = "transformer"
    key = {rest: None}
    if part.startswith("text_encoder"):
        for form in (StateDictType.DIFFUSERS_OLD, StateDictType.DIFFUSERS):
            key = convert_state_dict_to_peft(key, form)
        (rest,) = key
        if rest.startswith("encoder.layers."):
            rest = TEXT_MODEL + rest
    else:
        (rest,) = convert_unet_state_dict_to_peft(key)
    matched = _PEFT_NAME.fullmatch(rest)
    if not matched:
        raise _unknown(file, name)
    return part, matched[1], matched[2]


def _unknown(file: Path, what: str) -> InputError:
    return InputError(
        f"The adapter {file} has weights that are not known: {what}. Nothing of it was loaded."
    )


# ----------------------------------------------------------------------------------------- alpha


def _config_of(part: str, notes: Any) -> dict[str, Any]:
    """Return the fields of peft's `LoraConfig` that the header has for a part."""
    if not isinstance(notes, dict):
        return {}
    head = f"{part}."
    return {key.removeprefix(head): value for key, value in notes.items() if key.startswith(head)}


def _peft_config(file: Path) -> dict[str, Any]:
    """Return peft's config beside its file, {} for other files; raises InputError."""
    config_file = file.parent / PEFT_CONFIG
    if file.name != PEFT_FILE or not config_file.is_file():
        return {}
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        kind = config.get("peft_type", "LORA")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{config_file} cannot be read: {error}.") from error
    if config.get("use_dora"):
        kind = "DoRA"
    if kind != "LORA":
        raise InputError(
            f"The adapter {file} is {kind}, which is not supported. Give a plain LoRA."
        )
    return config


def _alpha(name: str, rank: int, config: dict[str, Any]) -> float:
    """Return the alpha of a layer by peft's config; without one it is the rank."""
    from peft.utils.other import get_pattern_key

    patterns = config.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(patterns, name), config.get("lora_alpha", rank))
    if not isinstance(alpha, int | float):
        raise InputError(f"The adapter has no number as the alpha of {name}: {alpha!r}.")
    # Rank-stabilised LoRA scales by alpha / sqrt(r).
    return alpha * rank**0.5 if config.get("use_rslora") else alpha

"""LoRA weights in one form, whatever file they came from or go to.

A part is the down and up matrices and the alpha of a network's layers, by their names there; an
adapter is its parts by diffusers' names of the networks.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Layer(NamedTuple):
    """The LoRA of one layer with weight W: it computes with W + alpha / r * up @ down."""

    down: Tensor  # (r, in), or (r, in, kh, kw) of a convolution
    up: Tensor  # (out, r), or (out, r, 1, 1)
    alpha: float

    @property
    def rank(self) -> int:
        return len(self.down)


#: Layers by their names, as "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q". Those of
#: CLIP's text encoder start with "text_model.", as files have it; transformers 5 leaves that out.
Part = dict[str, Layer]
#: Parts by network: "unet", "text_encoder".
Lora = dict[str, Part]

TEXT_MODEL = "text_model."


def count(lora: Lora) -> int:
    """Return the number of weights: two for each layer."""
    return sum(2 * len(part) for part in lora.values())


def peft_config(part: Part) -> dict[str, Any]:
    """Return the fields of peft's `LoraConfig` that describe a part.

    Rank and alpha are those of most layers; the layers that differ are in the patterns.
    """
    rank, alpha = rank_and_alpha(part)
    config: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "target_modules": targets(part)}
    ranks = {_pattern(name): layer.rank for name, layer in part.items() if layer.rank != rank}
    alphas = {_pattern(name): layer.alpha for name, layer in part.items() if layer.alpha != alpha}
    if ranks:
        config["rank_pattern"] = ranks
    if alphas:
        config["alpha_pattern"] = alphas
    return config


def rank_and_alpha(part: Part) -> tuple[int, float]:
    """Return the rank and the alpha that most layers have."""
    layers = part.values()
    ((rank, _),) = Counter(layer.rank for layer in layers).most_common(1)
    ((alpha, _),) = Counter(layer.alpha for layer in layers).most_common(1)
    return rank, alpha


def targets(part: Part) -> list[str]:
    """Return what `lora_targets` calls the layers of a part, sorted: "to_q", "ff.net.2"."""
    return sorted({_target(name) for name in part})


def _target(name: str) -> str:
    """Return the end of a layer's name that tells what kind of layer it is."""
    parts = name.split(".")
    first = len(parts) - 1
    while first and (parts[first].isdecimal() or parts[first] in ("net", "proj")):
        first -= 1
    return ".".join(parts[first:])


def _pattern(name: str) -> str:
    """Return a layer's name as peft's patterns have it, which match the end of a name.

    A text encoder's is without the prefix that some versions of transformers have.
    """
    return name.removeprefix(TEXT_MODEL) if name.startswith(TEXT_MODEL) else f"^{name}"

"""Converts HPS v2's open_clip ViT-H-14 checkpoint to transformers' ``CLIPModel``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import CLIPConfig, CLIPModel

from dpok_cli.errors import RewardError
from dpok_cli.rewards.images import clip_normalise, resize

# The widths of one attention head of ViT-H-14, which the shapes do not determine.
_VISION_HEAD_WIDTH = 80
_TEXT_HEAD_WIDTH = 64
# open_clip name: transformers name; for "PREFIX.transformer.resblocks.N." see _BLOCK.
_NAMES = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
}
_TRANSPOSED = ("text_projection", "visual.proj")
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BLOCK_KEY = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")


def from_open_clip(weights: Mapping[str, Tensor]) -> CLIPModel:
    """Build the CLIPModel of an open_clip ViT-H-14 checkpoint; sizes are read from the shapes.

    Raises ``RewardError`` naming a key that is missing, unexpected or of another shape.
    """
    ours: dict[str, Tensor] = {}
    for key, value in weights.items():
        ours |= _translate(key, value)
    with torch.device("meta"):
        net = CLIPModel(_config(weights, ours))
    shapes = {name: value.shape for name, value in net.state_dict().items()}
    _check("lacks the weight for", shapes.keys() - ours.keys())
    _check("has the unknown key", ours.keys() - shapes.keys())
    _check("has another shape for", {name for name in shapes if ours[name].shape != shapes[name]})
    net = CLIPModel(net.config)  # its buffers, which no checkpoint fills, are created again
    net.load_state_dict(ours)
    return net


def preprocess(images: Tensor, size: int) -> Tensor:
    """Preprocess (B, 3, H, W) in [0, 1] for HPS v2: longer side ``size``, the rest black."""
    height, width = images.shape[-2:]
    scale = size / max(height, width)
    height, width = round(height * scale), round(width * scale)
    top, left = (size - height) // 2, (size - width) // 2
    margins = (left, size - width - left, top, size - height - top)
    return clip_normalise(pad(resize(images, height, width), margins))


def _translate(key: str, value: Tensor) -> dict[str, Tensor]:
    """Rename a weight for CLIPModel; a combined q, k, v weight becomes three."""
    if key in _NAMES:
        return {_NAMES[key]: value.T if key in _TRANSPOSED else value}
    match = _BLOCK_KEY.fullmatch(key)
    if match is None:
        return {key: value}  # unknown; reported as an unknown key
    visual, number, part, kind = match.groups()
    layer = f"{'vision' if visual else 'text'}_model.encoder.layers.{number}"
    if part == "attn.in_proj":
        return {
            f"{layer}.self_attn.{name}_proj.{kind}": third
            for name, third in zip("qkv", value.chunk(3), strict=True)
        }
    return {f"{layer}.{_BLOCK[part]}.{kind}" if part in _BLOCK else key: value}


def _config(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> CLIPConfig:
    needed = {
        "token_embedding.weight",
        "positional_embedding",
        "text_projection",
        "visual.positional_embedding",
        "visual.conv1.weight",
        "transformer.resblocks.0.mlp.c_fc.weight",
        "visual.transformer.resblocks.0.mlp.c_fc.weight",
    }
    _check("lacks", needed - theirs.keys())

    def tower(name: str, width: int, head_width: int) -> dict[str, int | str]:
        layers = f"{name}.encoder.layers"
        numbers = {key.split(".")[3] for key in ours if key.startswith(f"{layers}.")}
        return {
            "hidden_size": width,
            "intermediate_size": len(ours[f"{layers}.0.mlp.fc1.weight"]),
            "num_hidden_layers": len(numbers),
            "num_attention_heads": width // head_width,
            "hidden_act": "gelu",
        }

    tokens, text_width = theirs["token_embedding.weight"].shape
    vision_width, _, patch, _ = theirs["visual.conv1.weight"].shape
    projection = theirs["text_projection"].shape[1]
    text = tower("text_model", text_width, _TEXT_HEAD_WIDTH)
    vision = tower("vision_model", vision_width, _VISION_HEAD_WIDTH)
    return CLIPConfig(
        text_config={
            **text,
            "vocab_size": tokens,
            "max_position_embeddings": len(theirs["positional_embedding"]),
            "bos_token_id": tokens - 2,
            "eos_token_id": tokens - 1,  # the last of CLIP's vocabulary
            "pad_token_id": tokens - 1,
        },
        vision_config={
            **vision,
            "image_size": isqrt(len(theirs["visual.positional_embedding"]) - 1) * patch,
            "patch_size": patch,
        },
        projection_dim=projection,
    )


def _check(what: str, keys: set[str]) -> None:
    if keys:
        shown = ", ".join(sorted(keys)[:3]) + (", ..." if len(keys) > 3 else "")
        raise RewardError(f"the checkpoint {what} {shown}; it is not HPS v2's open_clip ViT-H-14")

"""A pipeline's weights as one file of Stable Diffusion has them: the names of the first releases.

Pipelines of v1 and XL.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
    from torch import Tensor

UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def checkpoint(
    pipeline: StableDiffusionPipeline | StableDiffusionXLPipeline,
) -> dict[str, Tensor]:
    """Return the weights of a pipeline by the names of a single-file checkpoint."""
    found = {}
    for name, weight in pipeline.unet.state_dict().items():
        found[f"model.diffusion_model.{unet_name(name, pipeline.unet)}"] = weight
    blocks = len(pipeline.vae.config.block_out_channels)
    for name, weight in pipeline.vae.state_dict().items():
        changed = _vae(name, blocks)
        if ".attn_1." in changed and changed.endswith(".weight") and ".norm." not in changed:
            weight = weight[:, :, None, None]  # its attention is of convolutions
        found[f"first_stage_model.{changed}"] = weight
    second = getattr(pipeline, "text_encoder_2", None)
    clip = "conditioner.embedders.0" if second else "cond_stage_model"
    for name, weight in pipeline.text_encoder.state_dict().items():
        found[f"{clip}.transformer.text_model.{name.removeprefix('text_model.')}"] = weight
    if second:
        for name, weight in _open_clip(second.state_dict()).items():
            found[f"conditioner.embedders.1.model.{name}"] = weight
    return {name: weight.contiguous() for name, weight in found.items()}


def _open_clip(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return CLIP's weights as OpenCLIP has them: q, k and v in one matrix."""
    import torch

    weights = {name.removeprefix("text_model."): weight for name, weight in weights.items()}
    found = {}
    for name, weight in weights.items():
        if name == "text_projection.weight":
            found["text_projection"] = weight.T
        elif ".q_proj." in name:
            three = [weights[name.replace(".q_proj.", f".{each}_proj.")] for each in "qkv"]
            renamed = name.replace("encoder.layers", "transformer.resblocks")
            found[renamed.replace("self_attn.q_proj.", "attn.in_proj_")] = torch.cat(three)
        elif ".k_proj." not in name and ".v_proj." not in name and "position_ids" not in name:
            for ours, theirs in OPEN_CLIP.items():
                name = name.replace(ours, theirs)
            found[name] = weight
    return found


def unet_name(name: str, unet: Any) -> str:
    """Return what the first releases call a weight of a UNet."""
    layers = unet.config.layers_per_block
    for ours, theirs in UNET_ENDS.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs)
    place, number, rest = re.fullmatch(r"(down|mid|up)_blocks?(?:\.(\d))?\.(.+)", name).groups()
    kind, index, rest = rest.split(".", 2)
    if kind == "resnets":
        for ours, theirs in UNET_RESNET.items():
            rest = re.sub(rf"^{ours}\b", theirs, rest)
    step = int(number or 0) * (layers + 1) + int(index)
    if place == "mid":
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(index)}.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{(int(number) + 1) * (layers + 1)}.0.{rest.replace('conv', 'op')}"
    if place == "down":
        return f"input_blocks.{step + 1}.{int(kind == 'attentions')}.{rest}"
    if kind == "upsamplers":
        # It follows the attention of the block's last layer, if that has one.
        last = int(number) * (layers + 1) + layers
        has_attention = hasattr(unet.up_blocks[int(number)], "attentions")
        return f"output_blocks.{last}.{2 if has_attention else 1}.{rest}"
    return f"output_blocks.{step}.{int(kind == 'attentions')}.{rest}"


def _vae(name: str, blocks: int) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1")
    if ".attn_1." in name:
        for ours, theirs in VAE_ATTENTION.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    up = r"up_blocks\.(\d)\.(?:resnets\.(\d)|upsamplers\.0)"
    return re.sub(
        up,
        lambda found: (
            f"up.{blocks - 1 - int(found[1])}" + (f".block.{found[2]}" if found[2] else ".upsample")
        ),
        name,
    )

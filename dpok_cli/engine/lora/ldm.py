"""What the first releases of SDXL, and so kohya's scripts and ComfyUI, call the layers of its UNet.

For Stable Diffusion v1 and v2 these tools have diffusers' names.
"""

import re

#: Layers of a block of SDXL's UNet on the way down; on the way up there is one more.
LAYERS = 2

_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_out": "out.2",
}
_RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_BLOCK = re.compile(
    r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)"
)


def ldm_name(layer: str) -> str:
    """Return the name of what diffusers calls ``layer``, as "mid_block.resnets.0.conv1".

    What is no layer of such a UNet keeps its name.
    """
    matched = _BLOCK.fullmatch(layer)
    if not matched:
        return _ENDS.get(layer, layer)
    where, kind, rest = matched[1], matched[3], matched[5]
    index, first = int(matched[4]), int(matched[2] or 0) * (LAYERS + 1)
    inside = 1 if kind == "attentions" else 0
    if kind == "resnets":
        rest = _RESNET.get(rest, rest)
    if where == "mid":
        return f"middle_block.{inside or 2 * index}.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{first + LAYERS + 1}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{first + LAYERS}.2.{rest}"
    if where == "down":
        return f"input_blocks.{first + index + 1}.{inside}.{rest}"
    return f"output_blocks.{first + index}.{inside}.{rest}"

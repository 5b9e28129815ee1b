import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from dpok_cli.errors import RewardError
from dpok_plugins.clip_net import tokenizer_from_files
from dpok_plugins.hps import HPS
from dpok_plugins.hps_net import from_open_clip, preprocess

TOKENS, TEXT, VISION, JOINT = 515, 128, 160, 12
LAYERS = {"": (TEXT, 64), "visual.": (VISION, 80)}  # width, width of a head


def block_shapes(width: int, inner: int) -> dict[str, tuple[int, ...]]:
    return {
        "ln_1.weight": (width,),
        "ln_1.bias": (width,),
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "ln_2.weight": (width,),
        "ln_2.bias": (width,),
        "mlp.c_fc.weight": (inner, width),
        "mlp.c_fc.bias": (inner,),
        "mlp.c_proj.weight": (width, inner),
        "mlp.c_proj.bias": (width,),
    }


def open_clip_shapes() -> dict[str, tuple[int, ...]]:
    """The keys of open_clip's CLIP and their shapes, written out from its layout."""
    shapes = {
        "positional_embedding": (16, TEXT),
        "text_projection": (TEXT, JOINT),
        "logit_scale": (),
        "token_embedding.weight": (TOKENS, TEXT),
        "ln_final.weight": (TEXT,),
        "ln_final.bias": (TEXT,),
        "visual.class_embedding": (VISION,),
        "visual.positional_embedding": (9 + 1, VISION),
        "visual.proj": (VISION, JOINT),
        "visual.conv1.weight": (VISION, 3, 8, 8),
    }
    for norm in ("ln_pre", "ln_post"):
        shapes |= {f"visual.{norm}.weight": (VISION,), f"visual.{norm}.bias": (VISION,)}
    for prefix, (width, _) in LAYERS.items():
        for n in range(2):
            block = f"{prefix}transformer.resblocks.{n}"
            shapes |= {f"{block}.{key}": shape for key, shape in block_shapes(width, 96).items()}
    return shapes


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """An open_clip checkpoint of 24 x 24 pixels with two layers and random weights."""
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.randn(shape, generator=generator) * 0.1
        for key, shape in open_clip_shapes().items()
    }


def by_hand(weights, pixels, tokens):
    """open_clip's forward pass on its own names: (B, 3, 24, 24), (B, L) to two unit embeddings."""

    def norm(x, name):
        return functional.layer_norm(
            x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5
        )

    def transformer(x, prefix, mask):
        width, head_width = LAYERS[prefix]
        for n in range(2):
            block = f"{prefix}transformer.resblocks.{n}"
            part = {key: weights[f"{block}.{key}"] for key in block_shapes(1, 1)}
            attention = torch.nn.MultiheadAttention(
                width, width // head_width, batch_first=True
            ).eval()
            attention.load_state_dict(
                {key[5:]: value for key, value in part.items() if key.startswith("attn.")}
            )
            y = norm(x, f"{block}.ln_1")
            x = x + attention(y, y, y, need_weights=False, attn_mask=mask)[0]
            y = norm(x, f"{block}.ln_2") @ part["mlp.c_fc.weight"].T + part["mlp.c_fc.bias"]
            x = x + functional.gelu(y) @ part["mlp.c_proj.weight"].T + part["mlp.c_proj.bias"]
        return x

    x = functional.conv2d(pixels, weights["visual.conv1.weight"], stride=8).flatten(2).mT
    first = weights["visual.class_embedding"].expand(len(x), 1, VISION)
    x = torch.cat([first, x], 1) + weights["visual.positional_embedding"]
    x = transformer(norm(x, "visual.ln_pre"), "visual.", None)
    image = norm(x[:, 0], "visual.ln_post") @ weights["visual.proj"]

    length = tokens.shape[1]
    x = weights["token_embedding.weight"][tokens] + weights["positional_embedding"][:length]
    mask = torch.full((length, length), float("-inf")).triu(1)
    x = norm(transformer(x, "", mask), "ln_final")
    text = x[torch.arange(len(x)), tokens.argmax(-1)] @ weights["text_projection"]
    return functional.normalize(image, dim=-1), functional.normalize(text, dim=-1)


@pytest.fixture
def folder(tmp_path, weights, clip_folder):
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(clip_folder / name, tmp_path)
    torch.save({"epoch": 1, "state_dict": weights}, tmp_path / "HPS_v2.1_compressed.pt")
    return tmp_path


@torch.no_grad()
def test_the_score_is_open_clips_cosine(weights, folder, pictures):
    prompts = ["a cat", "", "a dog " * 20]
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    tokenizer = tokenizer_from_files(folder / "vocab.json", folder / "merges.txt")
    ids = tokenizer(prompts, truncation=True, max_length=16)["input_ids"]
    # open_clip pads with zeros after the end token.
    tokens = torch.tensor([[*row, *[0] * (16 - len(row))] for row in ids])
    image, text = by_hand(weights, (pictures(3) - mean) / std, tokens)
    expected = (image * text).sum(-1)
    assert expected.std() > 0.05
    scores = HPS(HPS.Options(model=str(folder))).score(pictures(3), prompts)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(60, 44), (20, 51), (48, 48), (24, 24), (24, 16)])
def test_the_longer_side_fits_and_the_rest_is_black(height, width):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    scale = 24 / max(height, width)
    new = round(width * scale), round(height * scale)
    canvas = Image.new("RGB", (24, 24))
    resized = Image.fromarray(pixels).resize(new, Image.Resampling.BICUBIC)
    canvas.paste(resized, ((24 - new[0]) // 2, (24 - new[1]) // 2))
    theirs = torch.from_numpy(np.array(canvas)).permute(2, 0, 1)[None]
    ours = preprocess(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255, 24)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    torch.testing.assert_close(ours * std + mean, theirs / 255, rtol=0, atol=1e-6)


def test_gradients_reach_the_images(folder, pictures):
    images = pictures(2, 30, 40).requires_grad_()
    reward = HPS(HPS.Options(model=str(folder)))
    reward.score(images, ["a", "b"], grad=True).sum().backward()
    assert images.grad.abs().amax((1, 2, 3)).min() > 0


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("visual.conv1.weight", r"lacks visual\.conv1\.weight"),
        ("visual.proj", r"lacks the weight for visual_projection\.weight"),
        (
            "visual.transformer.resblocks.1.attn.in_proj_bias",
            r"lacks the weight for vision_model\.encoder\.layers\.1\.self_attn\.k_proj\.bias",
        ),
        (
            "transformer.resblocks.1.ln_2.weight",
            r"lacks the weight for text_model\.encoder\.layers\.1\.layer_norm2\.weight",
        ),
    ],
)
def test_a_missing_key_is_named(weights, key, message):
    rest = {name: value for name, value in weights.items() if name != key}
    with pytest.raises(RewardError, match=message):
        from_open_clip(rest)


@pytest.mark.parametrize("key", ["transformer.resblocks.1.mlp.extra.weight", "visual.head"])
def test_an_unexpected_key_is_named(weights, key):
    with pytest.raises(RewardError, match=rf"has the unknown key {key};"):
        from_open_clip(weights | {key: torch.zeros(3)})


def test_a_weight_of_another_shape_is_named(weights):
    changed = weights | {"visual.ln_pre.bias": torch.zeros(3)}
    with pytest.raises(RewardError, match=r"another shape for vision_model\.pre_layrnorm\.bias;"):
        from_open_clip(changed)


def test_a_file_of_another_format_is_an_error(folder, weights, pictures):
    torch.save(weights, folder / "HPS_v2.1_compressed.pt")
    with pytest.raises(RewardError, match="has no state_dict; it is not an HPS v2 checkpoint"):
        HPS(HPS.Options(model=str(folder))).score(pictures(1), ["a"])

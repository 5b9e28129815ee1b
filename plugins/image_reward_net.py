"""ImageReward's network (Xu et al. 2023, arXiv 2304.05977) on transformers' own BLIP classes.

A BLIP vision encoder, a BERT text encoder that attends to the image, and a head of linear layers
on the first token. Checkpoints keep the published layout: ``from_published``, ``to_published``.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import isqrt
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    BertTokenizer,
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
)

from dpok_cli.errors import RewardError

# The mean and standard deviation of the published network's scores.
SCORE_MEAN = 0.16717362830052426
SCORE_STD = 1.0333394966054072
MAX_TOKENS = 35

# Published names that do not affect the score: BLIP's contrastive projections and a buffer.
_DROPPED = re.compile(r"blip\.(text_encoder\.embeddings\.position_ids|(vision|text)_proj\..+)")
_VISION = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
    "norm": "post_layernorm",
}
_VISION_LAYER = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_VISION_HEAD_WIDTH = 64  # of one ViT attention head, at any model width
_MED_CONFIG = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
)


class ImageRewardNet(nn.Module):
    """Maps image and prompt to one score, before normalisation.

    ``head_sizes`` are the widths of the head's hidden layers (published: 1024, 128, 64, 16); one
    output follows. The vision width is set in ``text_config`` for cross-attention. To train from
    scratch, set ``initializer_range`` in ``vision_config`` to 0.02: the default of 1e-10 is too
    small.
    """

    def __init__(
        self,
        vision_config: BlipVisionConfig,
        text_config: BlipTextConfig,
        head_sizes: Sequence[int],
    ):
        super().__init__()
        text_config.is_decoder = True  # creates the cross-attention
        text_config.encoder_hidden_size = vision_config.hidden_size
        self.vision = BlipVisionModel(vision_config)
        self.text = BlipTextModel(text_config, add_pooling_layer=False)
        sizes = (text_config.hidden_size, *head_sizes, 1)
        self.head = nn.Sequential(*(nn.Linear(*pair) for pair in pairwise(sizes)))

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Score (B, 3, S, S) normalised pixels against (B, L) tokens; returns (B,)."""
        return self.score_tokens(self.image_tokens(pixel_values), input_ids, attention_mask)

    def image_tokens(self, pixel_values: Tensor) -> Tensor:
        """Encode (B, 3, S, S) normalised pixels; returns (B, patches + 1, vision width)."""
        return self.vision(pixel_values).last_hidden_state

    def score_tokens(self, image: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Score (B, patches + 1, vision width) image tokens against (B, L) tokens; returns (B,)."""
        text = self.text(
            input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=image,
            is_decoder=False,  # bidirectional attention
        ).last_hidden_state  # (B, L, text width)
        return self.head(text[:, 0]).squeeze(-1)

    @property
    def image_size(self) -> int:
        """The side, in pixels, of the network's square input."""
        return cast(int, self.vision.config.image_size)


def tokenize(tokenizer: BertTokenizer, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask, each (B, 35), truncated or padded."""
    tokens = tokenizer(
        list(prompts),
        padding="max_length",
        truncation=True,
        max_length=MAX_TOKENS,
        return_tensors="pt",
    )
    return tokens["input_ids"], tokens["attention_mask"]


def tokenizer_from_vocab(vocab: Sequence[str] | str | Path) -> BertTokenizer:
    """Build a lower-casing WordPiece tokenizer from a list of tokens or a ``vocab.txt``.

    Raises ``RewardError`` if the tokenizer does not have exactly these tokens: without ``[CLS]``,
    or with a duplicate token, the ids would differ from those used in training.
    """
    if isinstance(vocab, str | Path):
        vocab = Path(vocab).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    tokenizer = BertTokenizer(vocab={token: index for index, token in enumerate(vocab)})
    if len(tokenizer) != len(vocab):
        raise RewardError(
            f"image-reward: a vocabulary of {len(vocab)} tokens became a tokenizer of"
            f" {len(tokenizer)}; it needs [PAD], [UNK], [CLS], [SEP], [MASK] and each token once."
        )
    return tokenizer


def from_published(
    state_dict: Mapping[str, Tensor], med_config: Mapping[str, Any]
) -> ImageRewardNet:
    """Build the network of a checkpoint in the published layout.

    The vision encoder's and the head's sizes are read from the shapes, the text encoder's from
    ``med_config`` (the published ``med_config.json``). The weights are not copied. Raises
    ``RewardError`` naming a key that is missing, unexpected or of another shape.
    """
    weights = {name: value for name, value in state_dict.items() if not _DROPPED.fullmatch(name)}
    with torch.device("meta"):
        net = ImageRewardNet(*_configs(weights, med_config))
    expected = to_published(net)
    _check("lacks", expected.keys() - weights.keys())
    _check("has the unknown key", weights.keys() - expected.keys())
    _check("has another shape for", {k for k in expected if expected[k].shape != weights[k].shape})
    names = _published_names(net)
    net.load_state_dict({ours: weights[names[ours]] for ours in names}, assign=True)
    positions = torch.arange(net.text.config.max_position_embeddings).expand(1, -1)
    # The only buffer; checkpoints do not contain it.
    net.text.embeddings.register_buffer("position_ids", positions, persistent=False)
    return net


def to_published(net: ImageRewardNet) -> dict[str, Tensor]:
    """Return the network's weights under their published names (inverse of ``from_published``)."""
    names = _published_names(net)
    return {names[ours]: value for ours, value in net.state_dict().items()}


def _published_names(net: ImageRewardNet) -> dict[str, str]:
    """Map our name of each weight to its published name."""
    vision = {ours: theirs for theirs, ours in _VISION.items()}
    layer = {ours: theirs for theirs, ours in _VISION_LAYER.items()}
    last = len(net.head) - 1

    def published(ours: str) -> str:
        part, rest = ours.split(".", 1)
        if part == "text":
            return f"blip.text_encoder.{rest}"
        if part == "head":  # dropout follows every layer except the last two
            index, kind = rest.split(".")
            place = 2 * last - 1 if int(index) == last else 2 * int(index)
            return f"mlp.layers.{place}.{kind}"
        if match := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(\w+)", rest):
            return f"blip.visual_encoder.blocks.{match[1]}.{layer[match[2]]}.{match[3]}"
        if rest in vision:  # a bare parameter
            return f"blip.visual_encoder.{vision[rest]}"
        module, kind = rest.rsplit(".", 1)
        return f"blip.visual_encoder.{vision[module]}.{kind}"

    return {ours: published(ours) for ours in net.state_dict()}


def _configs(
    weights: Mapping[str, Tensor], med_config: Mapping[str, Any]
) -> tuple[BlipVisionConfig, BlipTextConfig, tuple[int, ...]]:
    def shape(name: str) -> torch.Size:
        if name not in weights:
            _check("lacks", {name})
        return weights[name].shape

    def count(pattern: str) -> list[int]:
        """The distinct numbers in the keys that match this pattern, in order."""
        return sorted({int(m[1]) for name in weights if (m := re.match(pattern, name))})

    visual = "blip.visual_encoder"
    width, _, patch, _ = shape(f"{visual}.patch_embed.proj.weight")
    patches = shape(f"{visual}.pos_embed")[1] - 1
    vision = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=shape(f"{visual}.blocks.0.mlp.fc1.weight")[0],
        num_hidden_layers=len(count(rf"{re.escape(visual)}\.blocks\.(\d+)\.")),
        num_attention_heads=width // _VISION_HEAD_WIDTH,
        image_size=isqrt(patches) * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,
    )
    if missing := [key for key in _MED_CONFIG if key not in med_config]:
        raise RewardError(f"image-reward: med_config.json lacks {', '.join(missing)}.")
    text = "blip.text_encoder.embeddings"
    text_config = BlipTextConfig(
        vocab_size=shape(f"{text}.word_embeddings.weight")[0],
        max_position_embeddings=shape(f"{text}.position_embeddings.weight")[0],
        bos_token_id=None,
        sep_token_id=None,
        **{key: med_config[key] for key in _MED_CONFIG},
    )
    head = count(r"mlp\.layers\.(\d+)\.")
    return vision, text_config, tuple(shape(f"mlp.layers.{i}.bias")[0] for i in head[:-1])


def _check(what: str, keys: set[str]) -> None:
    if keys:
        shown = ", ".join(sorted(keys)[:3]) + (", ..." if len(keys) > 3 else "")
        raise RewardError(
            f"image-reward: the checkpoint {what} {shown}; it is not an ImageReward checkpoint in"
            " the published layout."
        )

"""CLIP for several rewards: files, tokenizer, the cosine of image and prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPModel, CLIPTokenizer
from transformers.utils import logging

from dpok_cli.errors import RewardError
from dpok_cli.rewards.images import clip_preprocess
from dpok_cli.rewards.unread import unread_end


class Clip:
    """CLIP's image and text encoders, without gradients to their weights."""

    def __init__(self, net: CLIPModel, tokenizer: CLIPTokenizer):
        """Raises ``RewardError`` if the tokenizer and the net differ in vocabulary size."""
        rows = net.config.text_config.vocab_size
        if len(tokenizer) != rows:
            raise RewardError(
                f"the vocabulary has {len(tokenizer)} tokens but the checkpoint embeds {rows}; put"
                " its own vocab.json and merges.txt beside it"
            )
        self.net = net.float().eval().requires_grad_(False)
        self.tokenizer = tokenizer

    @classmethod
    def from_files(cls, files: tuple[Path, ...], device: str | torch.device) -> Clip:
        """Load ``config.json``, weights beside it, ``vocab.json`` and ``merges.txt``."""
        config, _, vocab, merges = files
        net = from_pretrained(CLIPModel, config.parent).to(device)
        return cls(net, tokenizer_from_files(vocab, merges))

    @property
    def limit(self) -> int:
        """How many tokens of a prompt are read, with those before and after it: 77."""
        return self.net.config.text_config.max_position_embeddings

    def unread(self, prompt: str) -> str:
        """Return the end of a prompt that is not read, or ""."""
        return unread_end(self.tokenizer, prompt, self.limit)

    def cosine(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Compare images (B, 3, H, W) in [0, 1] to their prompts; returns (B,) in [-1, 1]."""
        size = self.net.config.vision_config.image_size
        return self.cosine_of_pixels(clip_preprocess(images, size, rounded=False), prompts)

    def cosine_of_pixels(self, pixel_values: Tensor, prompts: list[str]) -> Tensor:
        """Compare preprocessed pixels (B, 3, S, S) to their prompts; returns (B,)."""
        unique = list(dict.fromkeys(prompts))  # usually one or a few
        tokens = self.tokenizer(
            unique,
            padding=True,  # after the end token, which does not attend to it
            truncation=True,
            max_length=self.limit,
            return_tensors="pt",
        )["input_ids"].to(pixel_values.device)
        image = normalize(self.net.get_image_features(pixel_values).pooler_output, dim=-1)
        text = normalize(self.net.get_text_features(tokens).pooler_output, dim=-1)
        rows = [unique.index(prompt) for prompt in prompts]
        return (image * text[rows]).sum(-1)


def from_pretrained(kind: Any, folder: Path) -> Any:
    """Load a transformers model from a folder, in fp32, frozen.

    Raises ``RewardError`` naming a weight that is missing or of another shape; transformers would
    initialise it at random.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    net, report = kind.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
    )
    lacking = sorted(report["missing_keys"]) + sorted(key for key, *_ in report["mismatched_keys"])
    if lacking:
        raise RewardError(
            f"the checkpoint in {folder} is not a {kind.__name__}: missing, or of another shape:"
            f" {lacking[0]}{' and others' if lacking[1:] else ''}"
        )
    return net.eval().requires_grad_(False)


def tokenizer_from_files(vocab: Path, merges: Path) -> CLIPTokenizer:
    """Build CLIP's tokenizer from its two files; raises ``RewardError`` if a token gets lost."""
    ids = json.loads(vocab.read_text(encoding="utf-8"))
    lines = merges.read_text(encoding="utf-8").splitlines()
    pairs = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    tokenizer = CLIPTokenizer(vocab=ids, merges=pairs)
    if len(tokenizer) != len(ids):
        raise RewardError(
            f"the vocabulary {vocab} of {len(ids)} tokens became a tokenizer of {len(tokenizer)};"
            " it needs <|startoftext|> and <|endoftext|>"
        )
    return tokenizer

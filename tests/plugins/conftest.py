"""A very small CLIP in the published format, for the rewards that use one."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import CLIPConfig, CLIPModel

SIZES = {"intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def write_vocabulary(folder: Path) -> int:
    """Write a CLIP vocabulary of bytes and one merge; returns how many tokens it has."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "at</w>"]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\na t</w>\n")
    return len(words)


def randomize(net: torch.nn.Module) -> None:
    """Make every weight random, norms and biases too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


@pytest.fixture(scope="session")
def pictures() -> Callable[..., torch.Tensor]:
    """Make ``count`` fixed images with 8 bits per channel, as in files."""

    def pictures(count: int, height: int = 24, width: int = 24) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randint(0, 256, (count, 3, height, width), generator=generator) / 255

    return pictures


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> Path:
    """A CLIPModel of 24 x 24 pixels and 16 tokens, with its own vocabulary."""
    folder = tmp_path_factory.mktemp("clip")
    tokens = write_vocabulary(folder)
    text = {"vocab_size": tokens, "hidden_size": 16, "max_position_embeddings": 16}
    ends = {"bos_token_id": tokens - 2, "eos_token_id": tokens - 1, "pad_token_id": tokens - 1}
    vision = {"hidden_size": 16, "image_size": 24, "patch_size": 8}
    net = CLIPModel(
        CLIPConfig(
            text_config=text | ends | SIZES | {"projection_dim": 12},
            vision_config=vision | SIZES | {"projection_dim": 12},
            projection_dim=12,
        )
    )
    randomize(net)
    net.logit_scale.data.fill_(1.5)
    net.save_pretrained(folder)
    return folder

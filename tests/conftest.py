"""What the tests share: a command line in an empty folder, and a very small pipeline."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

# No test reaches for the hub, whether there is a network or not.
os.environ["HF_HUB_OFFLINE"] = "1"


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def dpok(tmp_path, monkeypatch, capfd) -> Callable[..., Result]:
    """Run a command line in an empty folder; returns exit code, stdout and stderr."""
    from dpok_cli import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DPOK_DEBUG", raising=False)

    def run(*arguments: str) -> Result:
        capfd.readouterr()
        code = cli.run(arguments)
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory) -> Path:
    """A Stable Diffusion pipeline in v1's format: 16 x 16 pixels, random weights, draws noise."""
    import torch
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from tokenizers import pre_tokenizers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {word: number for number, word in enumerate(words)}
    blocks = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    pipeline = StableDiffusionPipeline(
        tokenizer=CLIPTokenizer(vocab=vocab, merges=[], model_max_length=16),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(vocab),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=16,
                bos_token_id=512,
                eos_token_id=513,
            )
        ),
        unet=UNet2DConditionModel(
            sample_size=8,
            cross_attention_dim=16,
            attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            **blocks,
        ),
        vae=AutoencoderKL(
            sample_size=16,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            **blocks,
        ),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = tmp_path_factory.mktemp("models") / "pipeline"
    pipeline.save_pretrained(folder)
    return folder

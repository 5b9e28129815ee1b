"""Write a pipeline with Stable Diffusion v1.5's configuration and random weights.

    python examples/random_sd15.py FOLDER

It generates noise, but has the real size (860 M parameters in the UNet, 512 x 512 pixels) and
format, so that memory and speed can be measured without downloading a checkpoint:

    dpok train-rl --preset sd15 --model FOLDER --prompt "a green colored rabbit" \\
        --rounds 1 --samples-per-round 2 --num-inference-steps 2 --batch-size 1 \\
        --gradient-checkpointing --sample-count 1 --evaluation-samples 1 \\
        --reward jpeg-compressibility

The preset's batch of 4 without gradient checkpointing needs more than 24 GiB on a CPU, and its
sample grids and evaluations alone generate about a hundred images.

The vocabulary has 49 408 entries like the real one, but its merges are artificial.
"""

import sys
from itertools import islice, product
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

VOCABULARY = 49_408


def tokenizer() -> CLIPTokenizer:
    """CLIP's layout: 256 bytes, the same at the end of a word, merges, two special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    alphabet = letters + [f"{letter}</w>" for letter in letters]
    merges = list(islice(product(letters, alphabet), VOCABULARY - len(alphabet) - 2))
    tokens = [*alphabet, *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def main(folder: Path) -> None:
    torch.manual_seed(0)
    words = tokenizer()
    assert len(words) == VOCABULARY
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=VOCABULARY,
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            projection_dim=768,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=64,
        cross_attention_dim=768,
        block_out_channels=(320, 640, 1280, 1280),
        layers_per_block=2,
        attention_head_dim=8,
    )
    vae = AutoencoderKL(
        sample_size=512,
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=words,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    print(
        f"{folder}: {sum(p.numel() for p in unet.parameters()) / 1e6:.0f} M parameters in the UNet"
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))

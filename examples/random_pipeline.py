"""Write a pipeline of any family with random weights, in the real format.

    python examples/random_pipeline.py sdxl FOLDER --size full

Families: sd15, sdxl, sd35 (SD 3.5 medium), flux (FLUX.1-dev), qwen (Qwen-Image), zimage
(Z-Image-Turbo). It generates noise. With ``--size full`` it has the real size, in half precision,
so that memory and speed can be measured without downloading a checkpoint; with ``--size tiny`` it
is made in a second, to try the commands:

    dpok train-rl --model FOLDER --prompt "a green colored rabbit" --reward jpeg-compressibility \\
        --rounds 1 --samples-per-round 2 --num-inference-steps 2 --batch-size 1 --precision bf16 \\
        --gradient-checkpointing --sample-count 1 --evaluation-samples 0

``--size configuration`` writes the configuration of the real size and no weights; dpok plans memory
by such folders (dpok_cli/engine/bases/published).

``--without-t5`` leaves out the text encoder of 4.8 B parameters, which sd35 can do without. The
vocabularies have the real numbers of entries, but are artificial.
"""

import argparse
from collections.abc import Callable
from itertools import islice, product
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tokenizers import pre_tokenizers

NOISE = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
)
#: The VAEs of flow-matching families have no convolutions around their latents.
PLAIN = dict(use_quant_conv=False, use_post_quant_conv=False)

# ------------------------------------------------------------------------------------ text encoders


def clip_tokenizer(size: int, length: int) -> Any:
    """CLIP's layout: 256 bytes, the same at the end of a word, merges, two special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    alphabet = letters + [f"{letter}</w>" for letter in letters]
    merges = list(islice(product(letters, alphabet), size - len(alphabet) - 2))
    tokens = [*alphabet, *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(tokens)}
    return transformers.CLIPTokenizer(
        vocab=vocab, merges=merges, model_max_length=length, pad_token="<|endoftext|>"
    )


def t5_tokenizer(size: int) -> Any:
    """T5's layout: three special tokens, then pieces with their log-probabilities."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    letters = [chr(code) for code in range(33, 127)]
    pairs = map("".join, product(letters, repeat=3))
    pieces = [*letters, *islice(pairs, size - len(special) - len(letters))]
    vocab = special + [(piece, -3.0) for piece in pieces]
    return transformers.T5TokenizerFast(vocab=vocab, extra_ids=0)


def qwen_tokenizer(size: int) -> Any:
    """Qwen's layout: 256 bytes, longer tokens that no merge leads to, special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    longer = map("".join, product(letters, repeat=3))
    tokens = [*letters, *islice(longer, size - len(letters) - len(special)), *special]
    vocab = {token: number for number, token in enumerate(tokens)}
    return transformers.Qwen2Tokenizer(vocab=vocab, merges=[], extra_special_tokens=special)


class Texts:
    """The text encoders of one size, and their tokenizers."""

    def __init__(self, tiny: bool):
        self.tiny = tiny
        self.words = clip_tokenizer(516 if tiny else 49_408, 16 if tiny else 77)

    def clip(self, kind: type, big: bool = False, tiny_width: int = 16) -> Any:
        """CLIP-L, or OpenCLIP bigG; ``kind`` is transformers' class."""
        sizes: dict[str, Any] = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12)
        sizes |= dict(num_attention_heads=12, projection_dim=768)
        if big:
            sizes = dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32)
            sizes |= dict(num_attention_heads=20, projection_dim=1280, hidden_act="gelu")
        if self.tiny:
            sizes |= dict(hidden_size=tiny_width, intermediate_size=32, num_hidden_layers=2)
            sizes |= dict(num_attention_heads=2, projection_dim=tiny_width)
        words = self.words
        config = transformers.CLIPTextConfig(
            vocab_size=len(words),
            max_position_embeddings=words.model_max_length,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
            **sizes,
        )
        return kind(config)

    def t5(self) -> tuple[Any, Any]:
        """T5-XXL's encoder, and its tokenizer."""
        pieces = t5_tokenizer(98 if self.tiny else 32_100)
        sizes = dict(d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64)
        if self.tiny:
            sizes = dict(d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
        vocabulary = len(pieces) if self.tiny else 32_128
        config = transformers.T5Config(
            vocab_size=vocabulary, feed_forward_proj="gated-gelu", **sizes
        )
        return transformers.T5EncoderModel(config), pieces


def vae(tiny: bool, pixels: int, channels: int = 4, **more: Any) -> Any:
    blocks = (8, 8) if tiny else (128, 256, 512, 512)
    return diffusers.AutoencoderKL(
        sample_size=16 if tiny else pixels,
        block_out_channels=blocks,
        down_block_types=("DownEncoderBlock2D",) * len(blocks),
        up_block_types=("UpDecoderBlock2D",) * len(blocks),
        layers_per_block=1 if tiny else 2,
        norm_num_groups=4 if tiny else 32,
        latent_channels=4 if tiny else channels,
        **more,
    )


# ----------------------------------------------------------------------------------------- families


def sd15(tiny: bool, without_t5: bool = False) -> Any:
    texts = Texts(tiny)
    sizes: dict[str, Any] = dict(
        sample_size=64,
        cross_attention_dim=768,
        block_out_channels=(320, 640, 1280, 1280),
        attention_head_dim=8,
    )
    if tiny:
        sizes = dict(
            sample_size=8,
            cross_attention_dim=16,
            block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=2,
        )
    return diffusers.StableDiffusionPipeline(
        vae=vae(tiny, 512),
        text_encoder=texts.clip(transformers.CLIPTextModel),
        tokenizer=texts.words,
        unet=diffusers.UNet2DConditionModel(**sizes),
        scheduler=diffusers.DDIMScheduler(**NOISE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(tiny: bool, without_t5: bool = False) -> Any:
    texts = Texts(tiny)
    cross = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
    sizes: dict[str, Any] = dict(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", cross[0], cross[0]),
        up_block_types=(cross[1], cross[1], "UpBlock2D"),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        transformer_layers_per_block=(1, 2, 10),
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    if tiny:
        sizes = dict(
            sample_size=8,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", cross[0]),
            up_block_types=(cross[1], "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=(2, 4),
            cross_attention_dim=16 + 24,
            transformer_layers_per_block=(1, 2),
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 24,
        )
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(tiny, 1024, scaling_factor=0.13025),
        text_encoder=texts.clip(transformers.CLIPTextModel),
        text_encoder_2=texts.clip(
            transformers.CLIPTextModelWithProjection, big=True, tiny_width=24
        ),
        tokenizer=texts.words,
        tokenizer_2=texts.words,
        unet=diffusers.UNet2DConditionModel(
            use_linear_projection=True, addition_embed_type="text_time", **sizes
        ),
        scheduler=diffusers.DDIMScheduler(**NOISE),
        add_watermarker=False,
    )


def sd35(tiny: bool, without_t5: bool = False) -> Any:
    texts = Texts(tiny)
    sizes: dict[str, Any] = dict(
        sample_size=128,
        num_layers=24,
        num_attention_heads=24,
        caption_projection_dim=1536,
        pos_embed_max_size=384,
        dual_attention_layers=tuple(range(13)),
    )
    if tiny:
        sizes = dict(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=32,
            pos_embed_max_size=16,
            dual_attention_layers=(0,),
        )
    t5, pieces = (None, None) if without_t5 else texts.t5()
    kind = transformers.CLIPTextModelWithProjection
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(qk_norm="rms_norm", **sizes),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(tiny, 1024, 16, scaling_factor=1.5305, shift_factor=0.0609, **PLAIN),
        text_encoder=texts.clip(kind),
        tokenizer=texts.words,
        text_encoder_2=texts.clip(kind, big=True),
        tokenizer_2=texts.words,
        text_encoder_3=t5,
        tokenizer_3=pieces,
    )


def flux(tiny: bool, without_t5: bool = False) -> Any:
    texts = Texts(tiny)
    sizes: dict[str, Any] = {}
    if tiny:
        sizes = dict(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            axes_dims_rope=(4, 4, 8),
        )
    t5, pieces = texts.t5()
    pipeline = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae(tiny, 1024, 16, scaling_factor=0.3611, shift_factor=0.1159, **PLAIN),
        text_encoder=texts.clip(transformers.CLIPTextModel),
        tokenizer=texts.words,
        text_encoder_2=t5,
        tokenizer_2=pieces,
        transformer=diffusers.FluxTransformer2DModel(guidance_embeds=True, **sizes),
    )
    if tiny:
        pipeline.default_sample_size = 8  # which its configuration does not have
    return pipeline


def qwen(tiny: bool, without_t5: bool = False) -> Any:
    words = qwen_tokenizer(259 if tiny else 151_665)
    # Of Qwen2.5-VL 7B.
    text: dict[str, Any] = dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28)
    text |= dict(num_attention_heads=28, num_key_value_heads=4, vocab_size=152_064)
    vision: dict[str, Any] = dict(hidden_size=1280, intermediate_size=3420, out_hidden_size=3584)
    sections, ids = [16, 24, 24], {}
    sizes: dict[str, Any] = {}
    decoder: dict[str, Any] = {}
    if tiny:
        text = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2)
        text |= dict(num_attention_heads=2, num_key_value_heads=2, vocab_size=len(words))
        vision = dict(hidden_size=16, intermediate_size=32, out_hidden_size=16)
        vision |= dict(depth=1, num_heads=2, fullatt_block_indexes=[0])
        sections = [1, 1, 2]
        images = (
            "image_token_id",
            "video_token_id",
            "vision_start_token_id",
            "vision_end_token_id",
        )
        ids = {name: number for number, name in enumerate(images)}  # which no prompt has
        sizes = dict(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4),
        )
        decoder = dict(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[-0.76, -0.71, -0.91, 0.11],
            latents_std=[2.82, 1.45, 2.33, 2.66],
        )
    rope = dict(rope_type="default", rope_theta=1e6, mrope_section=sections)
    first = len(words) - 3  # the special tokens
    ends = dict(bos_token_id=first, eos_token_id=first, pad_token_id=first)
    text |= dict(rms_norm_eps=1e-6, max_position_embeddings=128_000, rope_parameters=rope, **ends)
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    pipeline = diffusers.QwenImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
        ),
        vae=diffusers.AutoencoderKLQwenImage(**decoder),
        text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=words,
        transformer=diffusers.QwenImageTransformer2DModel(**sizes),
    )
    if tiny:
        pipeline.default_sample_size = 8  # which its configuration does not have
    return pipeline


def zimage(tiny: bool, without_t5: bool = False) -> Any:
    words = qwen_tokenizer(259 if tiny else 151_669)
    words.chat_template = (
        "{% for each in messages %}<|im_start|>{{ each.role }}\n{{ each.content }}<|im_end|>\n"
        "{% endfor %}<|im_start|>assistant\n"
    )
    # Of Qwen3 4B.
    text: dict[str, Any] = dict(hidden_size=2560, intermediate_size=9728, num_hidden_layers=36)
    text |= dict(num_attention_heads=32, num_key_value_heads=8, head_dim=128, vocab_size=151_936)
    sizes: dict[str, Any] = dict(axes_lens=[1536, 512, 512])
    if tiny:
        text = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2)
        text |= dict(num_attention_heads=2, num_key_value_heads=2, head_dim=8)
        text |= dict(vocab_size=len(words))
        sizes = dict(
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=[8, 4, 4],
            axes_lens=[512, 64, 64],
        )
    first = len(words) - 3  # the special tokens
    ends = dict(bos_token_id=first, eos_token_id=first, pad_token_id=first)
    rope = dict(rope_type="default", rope_theta=1e6)
    config = transformers.Qwen3Config(
        max_position_embeddings=40_960, rope_parameters=rope, **text, **ends
    )
    pipeline = diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(tiny, 1024, 16, scaling_factor=0.3611, shift_factor=0.1159, **PLAIN),
        text_encoder=transformers.Qwen3Model(config),
        tokenizer=words,
        transformer=diffusers.ZImageTransformer2DModel(**sizes),
    )
    if tiny:
        pipeline.default_sample_size = 8  # which its configuration does not have
    return pipeline


FAMILIES: dict[str, Callable[..., Any]] = {
    "sd15": sd15,
    "sdxl": sdxl,
    "sd35": sd35,
    "flux": flux,
    "qwen": qwen,
    "zimage": zimage,
}


def make(family: str, tiny: bool = True, without_t5: bool = False, seed: int = 0) -> Any:
    """Build a pipeline; one of the real size has weights in bfloat16."""
    before = torch.get_default_dtype()
    if not tiny:
        torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return FAMILIES[family](tiny, without_t5)
    finally:
        torch.set_default_dtype(before)


def write_configuration(family: str, folder: Path) -> None:
    """Write the configuration of a pipeline of the real size, without weights and vocabularies."""
    with torch.device("meta"):
        pipeline = make(family, tiny=False)
    for name, part in pipeline.components.items():
        if isinstance(part, transformers.PreTrainedModel):
            part.config.save_pretrained(folder / name)
        elif isinstance(part, diffusers.ConfigMixin):
            part.save_config(folder / name)
    pipeline.save_config(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=("tiny", "full", "configuration"), default="tiny")
    parser.add_argument("--without-t5", action="store_true")
    given = parser.parse_args()
    if given.size == "configuration":
        write_configuration(given.family, given.folder)
        return
    pipeline = make(given.family, given.size == "tiny", given.without_t5)
    pipeline.save_pretrained(given.folder)
    parts = {
        name: sum(weight.numel() for weight in part.parameters()) / 1e6
        for name, part in pipeline.components.items()
        if isinstance(part, torch.nn.Module)
    }
    print(f"{given.folder}: " + ", ".join(f"{name} {size:.1f} M" for name, size in parts.items()))


if __name__ == "__main__":
    main()

"""Very small pipelines of every family, with random weights."""

from __future__ import annotations

from typing import Any

import torch

from support.pipelines import make_tokenizer

#: The VAEs of flow-matching families have no convolutions around their latents.
PLAIN = dict(use_quant_conv=False, use_post_quant_conv=False)


def _letters() -> list[str]:
    return [chr(code) for code in range(33, 127)]


def _t5_tokenizer() -> Any:
    from transformers import T5TokenizerFast

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    return T5TokenizerFast(vocab=special + [(each, -3.0) for each in _letters()], extra_ids=0)


def _clip_config(words: Any, **more: Any) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        **dict(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            projection_dim=16,
            max_position_embeddings=16,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
        | more
    )


def _t5(words: Any) -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=len(words),
            d_model=32,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    )


def _vae(**more: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        **more,
    )


#: The blocks of SDXL's UNet, much narrower.
SDXL_BLOCKS: dict[str, Any] = dict(
    block_out_channels=(8, 8, 16),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    layers_per_block=2,
    transformer_layers_per_block=(1, 2, 3),
    attention_head_dim=(2, 2, 4),
)


def make_sdxl(**unet_settings: Any) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    from support.pipelines import SD_NOISE

    words = make_tokenizer()
    # Its encoders are told apart in a single file by their widths.
    wide = _clip_config(words, hidden_act="gelu", hidden_size=24, projection_dim=24)
    unet = UNet2DConditionModel(
        sample_size=8,
        norm_num_groups=4,
        cross_attention_dim=16 + 24,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 24,
        **dict(
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            attention_head_dim=(2, 4),
            transformer_layers_per_block=(1, 2),
        )
        | unet_settings,
    )
    return StableDiffusionXLPipeline(
        vae=_vae(scaling_factor=0.13),
        text_encoder=CLIPTextModel(_clip_config(words)),
        text_encoder_2=CLIPTextModelWithProjection(wide),
        tokenizer=words,
        tokenizer_2=words,
        unet=unet,
        scheduler=DDIMScheduler(**SD_NOISE),
        add_watermarker=False,
    )


def make_sd3() -> Any:
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTextModelWithProjection

    words, pieces = make_tokenizer(), _t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
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
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(scaling_factor=1.5, shift_factor=0.06, **PLAIN),
        text_encoder=CLIPTextModelWithProjection(_clip_config(words)),
        tokenizer=words,
        text_encoder_2=CLIPTextModelWithProjection(_clip_config(words, hidden_act="gelu")),
        tokenizer_2=words,
        text_encoder_3=_t5(pieces),
        tokenizer_3=pieces,
    )


def make_flux(guidance_embeds: bool = True) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel

    words, pieces = make_tokenizer(), _t5_tokenizer()
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance_embeds,
    )
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=_vae(scaling_factor=0.36, shift_factor=0.12, **PLAIN),
        text_encoder=CLIPTextModel(_clip_config(words)),
        tokenizer=words,
        text_encoder_2=_t5(pieces),
        tokenizer_2=pieces,
        transformer=transformer,
    )
    pipeline.default_sample_size = 8
    return pipeline


MAKERS = {"sdxl": make_sdxl, "sd3": make_sd3, "flux": make_flux}


def make(family: str, seed: int = 0, **settings: Any) -> Any:
    """Build the pipeline of a family, frozen: "sdxl", "sd3" or "flux".

    ``settings`` are for its maker.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = MAKERS[family](**settings)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline

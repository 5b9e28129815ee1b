"""What the tests share: a command line in an empty folder, and a very small pipeline."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

# No test reaches for the hub, whether there is a network or not.
os.environ["HF_HUB_OFFLINE"] = "1"
# Models as small as these gain nothing from more threads: `make test` runs a process a core.
os.environ.setdefault("OMP_NUM_THREADS", "1")


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
def least_lora() -> bytes:
    """The least safetensors file that may be a LoRA."""
    header = b'{"unet.a.lora_A.weight":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    return len(header).to_bytes(8, "little") + header + b"\0"


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


@pytest.fixture
def plant(tmp_path):
    """Make an evaluation whose images and scores are chosen by hand.

    ``plant(score, ...)``: ``score(model, row, seed)`` gives the scores of an image by reward, and
    ``colour`` its colour; the seeds count from 0 here. Returns (evaluation, folder).
    """
    from PIL import Image

    from dpok_cli.config import EvaluateConfig
    from dpok_cli.engine.evaluation.folder import EvaluationFolder
    from dpok_cli.engine.evaluation.plan import BASE, Contender, Evaluation, Prompt

    a_prompt = Prompt("a red cat", "seen", "colour")

    def plant(
        score,
        *,
        samples=8,
        tuned=("tuned",),
        prompts=(a_prompt,),
        rewards=("image-reward:model=tiny", "judge"),
        trained=("image-reward=2:model=tiny",),
        colour=lambda model, row, seed: (seed, 0, 0),
        size=(8, 8),
        asked=True,
    ):
        contenders = [Contender(BASE)]
        for name in tuned:
            adapter = tmp_path / "adapters" / name
            adapter.mkdir(parents=True)
            (adapter / "pytorch_lora_weights.safetensors").write_text(name)
            config = {"rewards": list(trained), "prompts": ["a red cat"]} if trained else {}
            contenders.append(Contender(name, adapter, config))
        config = EvaluateConfig(
            prompts=("a red cat",),
            rewards=rewards if asked else (),
            samples=samples,
            resamples=500,
        )
        evaluation = Evaluation(config, tuple(contenders), tuple(prompts), tuple(rewards))
        folder = EvaluationFolder.open(tmp_path / "evaluation", evaluation)
        first = evaluation.seeds[0]
        for contender in contenders:
            for batch in evaluation.batches():
                records, pictures = [], []
                for row, seed in batch:
                    at = (contender.name, row, seed - first)
                    kl = 0.0 if contender.name == BASE else 0.5
                    head = {"model": contender.name, "row": row, "seed": seed}
                    records.append(head | {"scores": score(*at), "kl": kl})
                    pictures.append(Image.new("RGB", size, colour(*at)))
                folder.keep(records, pictures)
        return evaluation, folder

    return plant

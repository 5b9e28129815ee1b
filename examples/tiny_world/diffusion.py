"""Stage 3: the diffusion model (text encoder and UNet, trained together) and its pipeline folder.

Captions are partly wrong, as in web data: a share of the images shows another colour, count,
companion or place than the caption says (a "lie"). The lie rate cannot be derived from the data,
because guidance amplifies the majority. It is set by measurement: during training the judge scores
samples of the paper's prompts and their unseen partners, and the lie rate of similar captions is
adjusted until about TARGET of the samples are correct.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dpok_cli.tiny.words import PAPER_PROMPTS, UNSEEN_PROMPTS, Scene, parse
from dpok_plugins.judge_net import JudgeNet
from dpok_plugins.judge_net import scenes as read
from stage import generator, note, pictures, train
from vocabulary import bpe
from world import HELD_OUT, caption, complete, lie, sample_asked

BATCH, CAPTIONS = 48, 16_000
TARGET = 0.3
MEASURE_SAMPLES, GAIN = 24, 2.0


@dataclass(frozen=True)
class Phase:
    """A phase of the training: first the layout, then the details."""

    name: str
    key: int  # key of its random numbers
    steps: int
    cycle: int  # of the learning rate; the first phase ends before its cycle
    learning_rate: float
    warm_up: float
    floor: float  # the noise loss is weighted by 1 / max(alpha_bar, floor)
    noisy: int  # one in ``noisy`` timesteps is from the noisy end
    measure_from: int
    measure_every: int
    rates: dict[str, float]  # the initial lie rates, by category or by prompt


PHASES = (
    Phase(
        "layout",
        1,
        5500,
        6000,
        1.2e-3,
        0.1,
        0.01,
        3,
        2500,
        500,
        {"colour": 0.2, "count": 0.1, "composition": 0.45, "location": 0.2},
    ),
    Phase(
        "detail",
        2,
        2000,
        2000,
        8e-4,
        0.05,
        0.2,
        4,
        500,
        300,
        {"colour": 0.3, "count": 0.65, "composition": 0.6, "location": 0.5},
    ),
    # The samples follow the lie rates with a delay: some more steps at rates set by hand, based on
    # 64 samples per prompt after the second phase.
    Phase(
        "settle",
        3,
        300,
        300,
        3e-4,
        0.1,
        0.2,
        4,
        300,
        300,
        {
            "A green colored rabbit.": 0.93,
            "A green colored cat.": 0.75,
            "A cat and a dog.": 0.48,
            "A cat and a cup.": 0.48,
            "Four wolves in the park.": 0.85,
            "Four birds in the park.": 0.79,
            "A dog on the moon.": 0.72,
            "A lion on the moon.": 0.68,
        },
    ),
)
NUM_INFERENCE_STEPS, GUIDANCE_SCALE = 20, 3.0


def build(tokenizer: CLIPTokenizer) -> nn.ModuleDict:
    torch.manual_seed(3)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            projection_dim=64,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    return nn.ModuleDict({"text_encoder": text_encoder, "unet": unet})


def scheduler() -> DDIMScheduler:
    """SD v1's scheduler configuration."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def encode(texts: list[str], tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel):
    """Return embeddings (B, 32, 128), as the pipeline computes them."""
    tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    return text_encoder(tokens.input_ids).last_hidden_state


def dataset(vae: AutoencoderKL, work: Path) -> tuple[list, torch.Tensor, torch.Tensor]:
    """Return what each caption asks, the latents that show it and the latents of its lie."""
    file = work / "latents.pt"
    held_out = [parse(prompt) for prompt in HELD_OUT]

    def allowed(scene) -> bool:
        return not any(scene.shows(asked) for asked in held_out)

    said, scenes = [], []
    rng = generator(3, 0)
    while len(said) < CAPTIONS:
        category, asked = sample_asked(rng)
        truth = complete(asked, rng)
        other = truth if category == "plain" else complete(lie(category, asked, rng), rng)
        if allowed(truth) and allowed(other):
            said.append((category, asked))
            scenes.append((truth, other))
    if not file.exists():
        halves = []
        for start in range(0, CAPTIONS, 100):
            chunk = scenes[start : start + 100]
            images = pictures((scene, rng) for pair in chunk for scene in pair)
            with torch.no_grad():
                mean = vae.encode(images * 2 - 1).latent_dist.mean * vae.config.scaling_factor
            halves.append(mean.half().unflatten(0, (-1, 2)))
        torch.save(torch.cat(halves), file)
    latents = torch.load(file, weights_only=True)
    return said, latents[:, 0], latents[:, 1]


@torch.no_grad()
def sample(model: nn.ModuleDict, tokenizer, vae, prompt: str, count: int, seed: int):
    """Sample images (count, 3, 64, 64) in [0, 1] by guided DDIM with eta 1."""
    steps = scheduler()
    steps.set_timesteps(NUM_INFERENCE_STEPS)
    random = torch.Generator().manual_seed(seed)
    text = encode(["", prompt], tokenizer, model["text_encoder"]).repeat_interleave(count, 0)
    latents = torch.randn(count, 4, 16, 16, generator=random)
    for t in steps.timesteps:
        without, with_text = model["unet"](latents.repeat(2, 1, 1, 1), t, text).sample.chunk(2)
        noise = without + GUIDANCE_SCALE * (with_text - without)
        latents = steps.step(noise, t, latents, eta=1.0, generator=random).prev_sample
    return (vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)


def by_prompt(rates: dict[str, float]) -> dict[str, float]:
    """Return lie rates by prompt (the paper's and their unseen partners) from either form."""
    if not rates.keys() <= PAPER_PROMPTS.keys():
        return dict(rates)
    return {
        prompts[category]: rate
        for category, rate in rates.items()
        for prompts in (PAPER_PROMPTS, UNSEEN_PROMPTS)
    }


def lie_rate(category: str, asked: Scene, rates: dict[str, float]) -> float:
    """Return the lie rate of captions of this kind.

    Captions about the same objects as one of the prompts have the rate of that prompt; others have
    the mean of the two prompts of their category.
    """
    if category == "plain":
        return 0.0
    names = {thing.name for thing in asked.things}
    pair = [PAPER_PROMPTS[category], UNSEEN_PROMPTS[category]]
    for prompt in pair:
        if names == {thing.name for thing in parse(prompt).things}:
            return rates[prompt]
    return sum(rates[prompt] for prompt in pair) / 2


def measure(model, tokenizer, vae, judge: JudgeNet, count: int, seed: int) -> dict[str, float]:
    """Return, by prompt, the share of samples that the judge finds correct."""
    rates = {}
    for prompt in (*PAPER_PROMPTS.values(), *UNSEEN_PROMPTS.values()):
        images = sample(model, tokenizer, vae, prompt, count, seed)
        with torch.no_grad():
            seen = read(judge(images))
        rates[prompt] = sum(scene.shows(parse(prompt)) for scene in seen) / count
    return rates


def main(work: Path, output: Path) -> None:
    vae = AutoencoderKL.from_pretrained(work / "vae").eval().requires_grad_(False)
    tokenizer = bpe(output / "pipeline" / "tokenizer")
    model = build(tokenizer)
    print(f"UNet {sum(p.numel() for p in model['unet'].parameters()) / 1e6:.2f} M parameters")
    said, truths, lies = dataset(vae, work)
    measured: list[dict] = []
    for phase in PHASES:
        state = {"rates": by_prompt(phase.rates), "measured": []}
        run_phase(phase, model, tokenizer, vae, (said, truths, lies), state, work, output)
        measured += [{"phase": phase.name} | each for each in state["measured"]]
    save(model, tokenizer, vae, output)
    note(
        output,
        "diffusion",
        {"target": TARGET, "lie_rates": state["rates"], "measured": measured},
    )


def run_phase(
    phase: Phase,
    model: nn.ModuleDict,
    tokenizer: CLIPTokenizer,
    vae: AutoencoderKL,
    data: tuple[list, torch.Tensor, torch.Tensor],
    state: dict,
    work: Path,
    output: Path,
) -> None:
    """Train text encoder and UNet, and adjust the lie rates in ``state`` by measurement."""
    said, truths, lies = data
    noising = scheduler()

    def batch(step: int):
        rng = generator(3, phase.key, step)
        rows = torch.from_numpy(rng.integers(0, CAPTIONS, BATCH))
        texts = [caption(said[row][1], rng) if rng.random() > 0.1 else "" for row in rows]
        return rows, texts, rng.random(BATCH)

    def loss(batch, step: int):
        rows, texts, draws = batch
        lied = torch.tensor(
            [
                bool(draw < lie_rate(*said[row], state["rates"]))
                for row, draw in zip(rows, draws, strict=True)
            ]
        )
        latents = torch.where(lied[:, None, None, None], lies[rows], truths[rows]).float()
        noise = torch.randn_like(latents)
        # Place and colour are decided at the noisy end, which is therefore sampled more often.
        t = torch.randint(0, 1000, (BATCH,))
        t[: BATCH // phase.noisy] = torch.randint(800, 1000, (BATCH // phase.noisy,))
        text = encode(texts, tokenizer, model["text_encoder"])
        predicted = model["unet"](noising.add_noise(latents, noise, t), t, text).sample
        # The weight of v-prediction (Salimans & Ho 2022, arXiv 2202.00512): at the noisy end the
        # plain noise loss hardly depends on the text. With the full weight edges stay blurred;
        # the second phase therefore limits it.
        weight = 1 / noising.alphas_cumprod[t].clamp(min=phase.floor)
        error = (predicted - noise).pow(2).mean(dim=(1, 2, 3))
        return (weight * error).mean(), {"noise_mse": error.mean().item()}

    def adjust(step: int, averaged: nn.ModuleDict) -> None:
        late = step >= phase.steps - 100
        if late or step < phase.measure_from or (step - phase.measure_from) % phase.measure_every:
            return
        averaged.eval()
        judge = JudgeNet.from_folder(output / "judge").eval()
        right = measure(averaged, tokenizer, vae, judge, MEASURE_SAMPLES, seed=step)
        averaged.train()
        for prompt, rate in state["rates"].items():
            odds = math.log(rate / (1 - rate)) + GAIN * (right[prompt] - TARGET)
            state["rates"][prompt] = round(min(max(1 / (1 + math.exp(-odds)), 0.02), 0.98), 4)
        state["measured"].append({"step": step, "right": right, "rates": dict(state["rates"])})
        print(f"{phase.name}: right {right} -> lie rates {state['rates']}", flush=True)

    train(
        f"diffusion-{phase.name}",
        model,
        batch,
        loss,
        steps=phase.steps,
        cycle=phase.cycle,
        learning_rate=phase.learning_rate,
        warm_up=phase.warm_up,
        work=work,
        ema=0.998,
        after_step=adjust,
        extra_state=state,
    )


def save(model: nn.ModuleDict, tokenizer: CLIPTokenizer, vae: AutoencoderKL, output: Path) -> None:
    """Write the pipeline folder in fp16."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=model["text_encoder"],
        tokenizer=tokenizer,
        unet=model["unet"],
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(output / "pipeline", safe_serialization=True)
    for part in ("unet", "vae"):
        file = output / "pipeline" / part / "config.json"
        kept = json.loads(file.read_text())
        kept.pop("_name_or_path", None)  # a path on the machine that made it
        file.write_text(json.dumps(kept, indent=2) + "\n")
    # transformers loads in the config's dtype, diffusers in float32: make them agree.
    text_config = output / "pipeline" / "text_encoder" / "config.json"
    text_config.write_text(text_config.read_text().replace('"float16"', '"float32"'))

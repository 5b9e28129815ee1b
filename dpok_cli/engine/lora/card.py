"""The adapter's model card, in the form that the hub and diffusers write."""

import json

from dpok_cli import __version__
from dpok_cli.config import TrainingConfig, TrainSFTConfig, to_toml
from dpok_cli.engine.bases.source import ADAPTER_FILE, locate

CARD = """\
---
library_name: diffusers
base_model: {base}
tags: [text-to-image, lora, diffusers, stable-diffusion, dpok]
instance_prompt: {prompt}
---

# LoRA adapter trained with dpok

Fine-tuned from `{base}` by {method}
with dpok {version} on {samples} images for

{prompts}

scored by {rewards}.

```python
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained("{source}")
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample={clip_sample})
pipe.load_lora_weights(".", weight_name="{file}")
image = pipe(
    {prompt},
    num_inference_steps={steps},
    guidance_scale={guidance_scale},
    eta={eta},
    generator=torch.Generator().manual_seed(0),
).images[0]
```

## Settings

```toml
{settings}```
"""


def adapter_card(config: TrainingConfig, samples: int, clip_sample: bool) -> str:
    """Return the card (Markdown) of an adapter that ``samples`` images went into so far."""
    return CARD.format(
        base=config.model,
        source=locate(config.model),
        prompt=json.dumps(config.prompts[0], ensure_ascii=False),
        prompts="\n".join(f"- {prompt}" for prompt in config.prompts),
        rewards=", ".join(f"`{spec}`" for spec in config.rewards),
        samples=samples,
        method=_method(config),
        version=__version__,
        clip_sample=clip_sample,
        file=ADAPTER_FILE,
        steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        eta=config.eta,
        settings=to_toml(config),
    )


def _method(config: TrainingConfig) -> str:
    if isinstance(config, TrainSFTConfig):
        form = f"{config.kl_form.upper()}, gamma {config.gamma:g}"
        return f"reward-weighted supervised fine-tuning (arXiv 2305.16381, Sec. 4.3, {form})"
    return "online RL (DPOK, arXiv 2305.16381)"

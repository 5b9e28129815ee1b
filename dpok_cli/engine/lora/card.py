"""The adapter's model card, in the form that the hub and diffusers write."""

import json
import os
from collections.abc import Mapping
from typing import Any

from dpok_cli import __version__
from dpok_cli.config import TrainingConfig, to_toml
from dpok_cli.engine.lora.files import ADAPTER_FILE

CARD = """\
---
{base_model}library_name: diffusers
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

{loading}
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config{scheduler})
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


def adapter_card(
    config: TrainingConfig, samples: int, loading: str, scheduler: Mapping[str, Any]
) -> str:
    """Return the card (Markdown) of an adapter that was trained on ``samples`` images so far.

    ``loading`` is Python that makes ``pipe`` of the base model, and ``scheduler`` what
    ``DDIMScheduler.from_config`` needs besides the config of its scheduler.
    """
    is_hub_id = config.model.count("/") == 1 and not os.path.exists(config.model)
    return CARD.format(
        base=config.model,
        base_model=f"base_model: {config.model}\n" if is_hub_id else "",
        loading=loading,
        prompt=json.dumps(config.prompts[0], ensure_ascii=False),
        prompts="\n".join(f"- {prompt}" for prompt in config.prompts),
        rewards=", ".join(f"`{spec}`" for spec in config.rewards),
        samples=samples,
        method=config.method,
        version=__version__,
        scheduler="".join(f", {key}={value!r}" for key, value in scheduler.items()),
        file=ADAPTER_FILE,
        steps=config.for_evaluation().num_inference_steps,
        guidance_scale=config.guidance_scale,
        eta=config.for_evaluation().eta,
        settings=to_toml(config),
    )

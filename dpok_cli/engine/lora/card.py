"""The adapter's model card, in the form that the hub and diffusers write."""

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from dpok_cli import __version__
from dpok_cli.config import TrainingConfig, to_toml
from dpok_cli.engine.lora.files import ADAPTER_FILE

CARD = """\
---
{base_model}library_name: diffusers
tags: [text-to-image, lora, diffusers, {tag}, dpok]
instance_prompt: {prompt}
---

# LoRA adapter trained with dpok

Fine-tuned from `{base}` by {method}
with dpok {version} on {samples} images for

{prompts}

scored by {rewards}.

```python
import torch
from diffusers import {imports}

{loading}
{scheduler}pipe.load_lora_weights(".", weight_name="{file}")
image = pipe(
    {prompt},
    num_inference_steps={steps},
{arguments}    generator=torch.Generator().manual_seed(0),
).images[0]
```

## Settings

```toml
{settings}```
"""

#: Settings that the pipeline takes by the same name, if they are not empty.
_OPTIONAL = ("height", "width")
#: Prompts that the text lists; the settings have all.
_LISTED = 20


def adapter_card(
    config: TrainingConfig,
    samples: int,
    kind: str,
    loading: str,
    scheduler: Mapping[str, Any] | None,
    guidance: Mapping[str, Any],
) -> str:
    """Return the card (Markdown) of an adapter that was trained on ``samples`` images so far.

    ``loading`` is Python that makes ``pipe`` of the base model, of the class ``kind``.
    ``scheduler`` is what ``DDIMScheduler.from_config`` needs besides the config of its scheduler;
    None if its own scheduler is used, which has no eta. ``guidance`` is what the pipeline's call
    takes for it.
    """
    arguments = {**guidance}
    arguments |= {key: value for key in _OPTIONAL if (value := getattr(config, key))}
    imports, set_scheduler = kind, ""
    if scheduler is not None:
        given = "".join(f", {key}={value!r}" for key, value in scheduler.items())
        imports = f"DDIMScheduler, {kind}"
        set_scheduler = (
            f"pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config{given})\n"
        )
        arguments["eta"] = config.for_evaluation().eta
    prompts = [f"- {prompt}" for prompt in config.prompts[:_LISTED]]
    if more := len(config.prompts) - len(prompts):
        prompts.append(f"- and {more} more, which the settings below list")
    is_hub_id = config.model.count("/") == 1 and not os.path.exists(config.model)
    return CARD.format(
        base=config.model,
        base_model=f"base_model: {config.model}\n" if is_hub_id else "",
        loading=loading,
        prompt=json.dumps(config.prompts[0], ensure_ascii=False),
        prompts="\n".join(prompts),
        rewards=", ".join(f"`{spec}`" for spec in config.rewards),
        samples=samples,
        method=config.method,
        version=__version__,
        tag=re.sub("(?<=[a-z])(?=[A-Z0-9])", "-", kind.removesuffix("Pipeline")).lower(),
        imports=imports,
        scheduler=set_scheduler,
        arguments="".join(
            f"    {key}={json.dumps(value, ensure_ascii=False)},\n"
            for key, value in arguments.items()
        ),
        file=ADAPTER_FILE,
        steps=config.for_evaluation().num_inference_steps,
        settings=to_toml(config),
    )

"""Shared by all stages of the recipe: seeds, a resumable training loop, fp16 safetensors."""

import json
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from world import draw, sample_scene

SEED = 2305_16381  # the paper's arXiv number
SAVE_EVERY = 250


def generator(*key: int) -> np.random.Generator:
    """Return the random generator of a key in the recipe; the same key gives the same numbers."""
    return np.random.default_rng([SEED, *key])


def pictures(scenes_and_rngs: Iterable[tuple]) -> torch.Tensor:
    """Render scenes; returns float (B, 3, 64, 64) in [0, 1]."""
    array = np.stack([np.asarray(draw(scene, rng)) for scene, rng in scenes_and_rngs])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255


def random_pictures(rng: np.random.Generator, count: int) -> torch.Tensor:
    return pictures((sample_scene(rng), rng) for _ in range(count))


@dataclass
class Average:
    """Exponential moving average of a module's weights, kept separately."""

    module: nn.Module
    decay: float

    def __post_init__(self):
        self.weights = {name: p.detach().clone() for name, p in self.module.named_parameters()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.module.named_parameters():
            self.weights[name].lerp_(parameter, 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> nn.Module:
        for name, parameter in module.named_parameters():
            parameter.copy_(self.weights[name])
        return module


def train(
    name: str,
    module: nn.Module,
    batch: Callable[[int], object],
    loss: Callable[[object, int], tuple[torch.Tensor, dict[str, float]]],
    *,
    steps: int,
    learning_rate: float,
    work: Path,
    weight_decay: float = 0.01,
    ema: float = 0.0,
    cycle: int = 0,
    warm_up: float = 0.08,
    after_step: Callable[[int, nn.Module], None] | None = None,
    extra_state: dict | None = None,
) -> nn.Module:
    """Train with AdamW and a one-cycle schedule; resumes from ``work/NAME.state.pt`` if it exists.

    ``batch(step)`` must depend only on the step (it runs one step ahead in a thread), so that a
    resumed run equals an uninterrupted one. ``cycle`` is the length of the schedule if training
    ends before it. ``extra_state`` is a JSON-like dict stored with the state. Returns the module,
    with its averaged weights if ``ema``.
    """
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        learning_rate,
        total_steps=(cycle or steps) + 1,
        pct_start=warm_up,
        final_div_factor=100,
    )
    average = Average(module, ema) if ema else None
    state_file, first = work / f"{name}.state.pt", 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        if average:
            average.weights = state["average"]
        if extra_state is not None:
            extra_state.clear()
            extra_state.update(state["extra"])
        first = state["step"]
        print(f"{name}: resuming from step {first}", flush=True)
    started = time.time()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(batch, first)
        for step in range(first, steps):
            data = coming.result()
            coming = pool.submit(batch, step + 1)
            torch.manual_seed(SEED + step)
            value, shown = loss(data, step)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if average:
                average.update(step)
            done = step + 1
            if done % 50 == 0:
                values = " ".join(f"{key} {number:.4f}" for key, number in shown.items())
                print(
                    f"{name}: step {done}/{steps} loss {value.item():.4f} {values}"
                    f" ({(time.time() - started) / (done - first):.2f} s a step)",
                    flush=True,
                )
            if after_step:
                if average:
                    with _averaged(average):
                        after_step(done, module)
                else:
                    after_step(done, module)
            if done % SAVE_EVERY == 0 or done == steps:
                work.mkdir(parents=True, exist_ok=True)
                temporary = state_file.with_suffix(".tmp")
                torch.save(
                    {
                        "module": module.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "schedule": schedule.state_dict(),
                        "average": average.weights if average else {},
                        "extra": extra_state or {},
                        "step": done,
                    },
                    temporary,
                )
                temporary.replace(state_file)
    return average.copy_to(module) if average else module


class _averaged:
    """Uses the averaged weights within the block."""

    def __init__(self, average: Average):
        self.average = average

    def __enter__(self):
        self.kept = {n: p.detach().clone() for n, p in self.average.module.named_parameters()}
        self.average.copy_to(self.average.module)

    @torch.no_grad()
    def __exit__(self, *exc):
        for name, parameter in self.average.module.named_parameters():
            parameter.copy_(self.kept[name])


def save_half(weights: dict[str, torch.Tensor], file: Path) -> None:
    """Write weights as fp16 safetensors (integers are unchanged)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            name: (value.half() if value.is_floating_point() else value).contiguous()
            for name, value in weights.items()
        },
        file,
        metadata={"format": "pt"},
    )


def note(output: Path, stage: str, figures: dict) -> None:
    """Store a stage's measured figures for the model card."""
    file = output / "measured.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(known | {stage: figures}, indent=2) + "\n")

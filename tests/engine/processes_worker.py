"""What each process of test_processes.py runs: a round of RL, and what it saw of it.

As the command does, it hears SIGTERM, by which launchers end processes, and goes on for a while.
"""

import json
import sys
from pathlib import Path

import torch

from dpok_cli.config import TrainRLConfig
from dpok_cli.engine.bases.model import load
from dpok_cli.engine.device import process_state
from dpok_cli.engine.rl.loop import RLTrainer
from dpok_cli.engine.training.stop import Stop
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.combined import WeightedReward


class Green(RewardModel):
    """Greener is better; fails in one process if told so."""

    name = "green"
    fails_in = -1

    def score_batch(self, images, prompts):
        if process_state("cpu").process_index == self.fails_in:
            raise OSError("no answer")
        red, green, blue = images.mean(dim=(2, 3)).unbind(1)
        return green - (red + blue) / 2


def main(pipeline: str, output: str, changes: str) -> None:
    given = json.loads(changes)
    Green.fails_in = given.pop("fails_in", -1)
    parts = given.pop("parts", False)
    breaks_in = given.pop("breaks_in", -1)
    small = dict(
        model=pipeline,
        prompts=("a green rabbit", "two cats"),
        num_inference_steps=4,
        guidance_scale=3.0,
        device="cpu",
        rounds=1,
        samples_per_round=4,
        updates_per_round=1,
        batch_size=4,
        learning_rate=1e-2,
        timestep_fraction=1.0,
        tracker="",
        sample_every=0,
    )
    config = TrainRLConfig(**small | given)
    trainer = RLTrainer(config, load(config), WeightedReward([(Green(), 1.0)]))
    with torch.no_grad():  # so that both halves of the adapter have a gradient
        random = torch.Generator().manual_seed(0)
        for parameter in trainer.model.adapter_parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=random)
    gradients: list[list[float]] = []
    step = trainer.step

    def watched():
        if process_state("cpu").process_index == breaks_in:
            Path(output, "broken").touch()
            raise torch.OutOfMemoryError("no memory left")
        adapter = trainer.model.adapter_parameters()
        gradients.append(torch.cat([each.grad.flatten() for each in adapter]).tolist())
        return step()

    trainer.step = watched  # type: ignore[method-assign]
    seeds: list[int] = []
    roll_out = trainer.roll_out

    def drawn(prompt, all_seeds, starts):
        state = process_state("cpu")
        seeds.extend(all_seeds[state.process_index :: state.num_processes])
        return roll_out(prompt, all_seeds, starts)

    trainer.roll_out = drawn  # type: ignore[method-assign]
    metrics = [trainer.round(number) for number in range(1, config.rounds + 1)]
    if parts and process_state("cpu").process_index:
        with torch.no_grad():
            trainer.model.adapter_parameters()[0].add_(1)
    trainer.run = True  # type: ignore[assignment]
    trainer.write_checkpoint()
    assert trainer.buffer is not None
    adapter = torch.cat([each.detach().flatten() for each in trainer.model.adapter_parameters()])
    seen = {
        "processes": process_state("cpu").num_processes,
        "seeds": seeds,
        "gradients": gradients,
        "adapter": adapter.tolist(),
        "advantages": trainer.buffer.advantage.tolist(),
        "latents": trainer.buffer.latents.flatten(1).sum(1).tolist(),
        "metrics": metrics,
    }
    file = Path(output) / f"{process_state('cpu').process_index}.json"
    file.write_text(json.dumps(seen), encoding="utf-8")


if __name__ == "__main__":
    with Stop():
        main(*sys.argv[1:])

"""What each process of test_distributed.py runs: a round of RL, and what it saw of it.

As the command does, it handles SIGTERM, by which launchers end processes, and runs until the next
safe point.
"""

import json
import sys
from pathlib import Path

import torch

from dpok_cli.engine.bases.load import load
from dpok_cli.engine.distributed import process_state, shard
from dpok_cli.engine.rl.loop import RLLoop
from dpok_cli.engine.rl.settings import TrainRLConfig
from dpok_cli.engine.training.checkpoint import Checkpoints
from dpok_cli.engine.training.session import Session
from dpok_cli.engine.training.stop import Stop
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.combined import WeightedReward


class Green(RewardModel):
    """Greener is better; fails in one process on demand."""

    name = "green"
    fails_in = -1

    def score_batch(self, images, prompts):
        if process_state("cpu").process_index == self.fails_in:
            raise OSError("no answer")
        red, green, blue = images.mean(dim=(2, 3)).unbind(1)
        return green - (red + blue) / 2


class Greener(Green):
    """How much greener than the prompt's images of the round, of all processes, on average."""

    name = "greener"
    compares = True

    def score_group(self, images, prompt):
        green = self.score_batch(images, [prompt] * len(images))
        return green - green.mean()


def main(pipeline: str, output: str, changes: str) -> None:
    given = json.loads(changes)
    Green.fails_in = given.pop("fails_in", -1)
    reward = Greener() if given.pop("compares", False) else Green()
    differ = given.pop("differ", False)
    breaks_in = given.pop("breaks_in", -1)
    signals = given.pop("signals", False)  # writes a file once it trains
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
        objective="dpok",
        noise_window=False,
        kl_fraction=1.0,
        kl_target=0.0,
        beta=0.01,
        adam_beta2=0.999,
        max_grad_norm=1.0,
        tracker="",
        sample_every=0,
    )
    config = TrainRLConfig(**small | given)
    model = load(config)
    session = Session(config, model, None, lambda: False, print, config.rounds)
    loop = RLLoop(config, WeightedReward([(reward, 1.0)]), session)
    with torch.no_grad():  # so that both halves of the adapter have a gradient
        random = torch.Generator().manual_seed(0)
        for parameter in model.adapter.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=random)
    gradients: list[list[float]] = []
    step = loop.updater.step

    def watched():
        if process_state("cpu").process_index == breaks_in:
            Path(output, "broken").touch()
            raise torch.OutOfMemoryError("no memory left")
        if signals:
            Path(output, f"{process_state('cpu').process_index}.trains").touch()
        found = [
            (torch.zeros_like(each) if each.grad is None else each.grad).flatten()
            for each in model.adapter.parameters()
        ]
        gradients.append(torch.cat(found).tolist())
        return step()

    loop.updater.step = watched  # type: ignore[method-assign]
    seeds: list[int] = []
    roll_out = loop.roll_out

    def drawn(draw):
        seeds.extend(shard(draw.seeds, process_state("cpu")))
        return roll_out(draw)

    loop.roll_out = drawn  # type: ignore[method-assign]
    metrics = [loop.advance(number) for number in range(1, config.rounds + 1)]
    if differ and process_state("cpu").process_index:
        with torch.no_grad():
            model.adapter.parameters()[0].add_(1)
    folder = Path(output) / "checkpoints"
    state = {"adapter": model.adapter, "updater": session.updater, "loop": loop}
    Checkpoints(folder, 1, session.accelerator, state).write(config.rounds)
    adapter = torch.cat([each.detach().flatten() for each in model.adapter.parameters()])
    seen = {
        "processes": process_state("cpu").num_processes,
        "seeds": seeds,
        "gradients": gradients,
        "adapter": adapter.tolist(),
        "advantages": loop.buffer.examples.advantage.tolist(),
        "latents": loop.buffer.examples.latents.flatten(1).sum(1).tolist(),
        "metrics": metrics,
    }
    file = Path(output) / f"{process_state('cpu').process_index}.json"
    file.write_text(json.dumps(seen), encoding="utf-8")


if __name__ == "__main__":
    with Stop():
        main(*sys.argv[1:])

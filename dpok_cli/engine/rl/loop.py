"""The loop of online RL (Fan et al. 2023, Algorithm 1): roll out, score, take advantages, update.

A round draws `samples_per_round` images with the current policy, scores them, and takes
`updates_per_round` optimizer steps of the objective on the buffer. Left out of the
paper's code on purpose: a second UNet as the reference (the adapter is switched off instead), and
latents rounded to half precision.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.engine.distributed import (
    all_gather,
    all_gather_object,
    all_mean,
    check_divisible,
    shard,
)
from dpok_cli.engine.rl.advantage import MixedAdvantage, PromptAdvantage, RewardAdvantage
from dpok_cli.engine.rl.buffer import Buffer
from dpok_cli.engine.rl.comparison import compare_round
from dpok_cli.engine.rl.objectives.base import Measured
from dpok_cli.engine.rl.rollout import Trajectories, rollout
from dpok_cli.engine.rl.settings import TrainRLConfig
from dpok_cli.engine.rl.value import ValueAdvantage
from dpok_cli.engine.runs.folder import RunFolder
from dpok_cli.engine.sampling.seeds import rollout_seeds
from dpok_cli.engine.training.driver import drive
from dpok_cli.engine.training.outputs import Metrics
from dpok_cli.engine.training.session import Session
from dpok_cli.errors import RewardError, StopRequested
from dpok_cli.rewards.combined import Scores, WeightedReward
from dpok_cli.rewards.worker import RewardWorker


def train_rl(
    config: TrainRLConfig,
    model: DiffusionModel,
    reward: WeightedReward,
    run: RunFolder | None = None,
    stop: Callable[[], bool] = lambda: False,
    warn: Callable[[str], None] = warnings.warn,
) -> Iterator[Metrics]:
    """Train ``model``'s adapter, yielding each round's metrics (docs/algorithms.md lists them).

    ``model`` gets a new adapter, or `init_adapter`. A ``run`` folder keeps metrics, sample grids,
    checkpoints and the adapter; a run that has checkpoints is resumed from the newest. Once
    ``stop()`` is true, training ends at a safe point. ``warn`` gets warnings, of a
    damaged checkpoint for instance. Raises InputError for settings that leave nothing to train,
    RewardError if the reward fails, TrainingError if images, or too many losses in a row, are not
    finite.
    """
    steps = config.rounds * config.updates_per_round
    with Session(config, model, run, stop, warn, steps) as session:
        yield from drive(RLLoop(config, reward, session), session, reward)


class Draw(NamedTuple):
    """What a round draws: M samples, those of one prompt and one x_T in a row."""

    prompt: Tensor  # (M,) long: which of the run's prompts
    seeds: list[int]  # M
    start_seeds: list[int]  # M: the seeds that x_T is taken from


class RLLoop:
    """Rounds of online RL with one objective."""

    unit, record_every = "round", 1

    def __init__(self, config: TrainRLConfig, reward: WeightedReward, session: Session):
        self.config, self.session = config, session
        self.accelerator, self.device = session.accelerator, session.model.device
        check_divisible(
            self.accelerator.num_processes,
            samples_per_round=config.samples_per_round,
            batch_size=config.batch_size,
            buffer_size=config.buffer_size,
        )
        self.sampler, self.conditioning = session.sampler, session.conditioning
        self.updater = session.updater
        self.advantage = self._advantage(reward)
        self.objective = config.objective_class(
            config, self.sampler, self.conditioning, self.advantage
        )
        self.buffer = Buffer(config.buffer_size)
        self.reward, self.worker = reward, RewardWorker(reward, self.device)
        self.last = config.rounds
        self.samples = 0  # drawn so far, by all ranks
        self.evaluations = 0  # of the denoiser so far, by this rank

    # ------------------------------------------------------------------------------------- a round

    def advance(self, number: int) -> Metrics:
        """Roll out, score, take advantages, update; returns the round's metrics."""
        started, before = time.perf_counter(), self.session.denoiser.evaluations
        draw = self.draw(number)
        trajectories, scores, waited = self.roll_out(draw)
        rolled_out = time.perf_counter()
        if self.session.should_stop():
            raise StopRequested

        self.samples += len(draw.seeds)
        self.keep_examples(number, draw, trajectories, scores)
        measured = self.advantage.fit(self.buffer, self.session.seed(number, "value"))
        measured |= self.update(number)
        self.evaluations += self.session.denoiser.evaluations - before
        return {
            "round": number,
            "samples": self.samples,
            "reward/mean": scores.total.mean().item(),
            "reward/std": scores.total.std(correction=0).item(),
            **{f"reward/{name}": raw.mean().item() for name, raw in scores.raw.items()},
            **measured,
            "seconds/rollout": round(rolled_out - started - waited, 3),
            "seconds/reward": round(waited, 3),
            "seconds/update": round(time.perf_counter() - rolled_out, 3),
            "denoiser_evaluations": self.evaluations * self.accelerator.num_processes,
        }

    def draw(self, number: int) -> Draw:
        """Return what round ``number`` draws.

        Samples come in groups of one prompt and one x_T, the last of which may be smaller; the
        numbers of groups of two prompts differ by one at most.
        """
        config = self.config
        samples = config.samples_per_round
        size = min(config.group_size, samples) if config.advantage == "prompt" else 1
        random = np.random.default_rng(self.session.seed(number, "prompts"))
        rows = np.resize(random.permutation(len(config.prompts)), -(-samples // size))
        prompt = torch.from_numpy(rows.repeat(size)[:samples])
        seeds = rollout_seeds(config.seed, number, samples)
        start_seeds = [seeds[sample - sample % size] for sample in range(samples)]
        return Draw(prompt.to(self.device), seeds, start_seeds)

    def roll_out(self, draw: Draw) -> tuple[Trajectories, Scores, float]:
        """Draw and score this rank's shard of the round, batch by batch.

        Returns its trajectories, the scores of all ranks, and the seconds spent waiting for scores.
        Raises RewardError or StopRequested, on all ranks, if the reward fails or a stop comes on
        one.
        """
        drawn: list[Trajectories] = []
        alone, waited = None, 0.0
        error: RewardError | StopRequested | None = None
        prompt = shard(draw.prompt, self.accelerator)
        seeds, start_seeds = (
            shard(each, self.accelerator) for each in (draw.seeds, draw.start_seeds)
        )
        whole = self.objective.needs == "trajectory"
        try:
            parts = rollout(
                self.sampler,
                self.conditioning,
                prompt,
                seeds,
                start_seeds,
                whole=whole,
                against_reference=self.objective.kl_in_reward > 0,
            )
            for part in parts:
                drawn.append(part)
                self.worker.submit(part.images, self._texts(part.prompt))
            started = time.perf_counter()
            alone = self.worker.results()
            waited = time.perf_counter() - started
        except (RewardError, StopRequested) as failed:
            error = failed
        for failed_somewhere in all_gather_object(error, self.accelerator):
            if failed_somewhere:
                raise failed_somewhere
        assert alone is not None
        trajectories, started = Trajectories.cat(drawn), time.perf_counter()
        texts = self._texts(draw.prompt)
        raw = compare_round(self.reward, trajectories.images, texts, self.accelerator)
        waited += time.perf_counter() - started
        for name, values in alone.items():
            raw[name] = all_gather(values.to(self.device), self.accelerator)
        return trajectories, self.reward.combine(raw), waited

    def keep_examples(
        self, number: int, draw: Draw, trajectories: Trajectories, scores: Scores
    ) -> None:
        """Take the round's advantages, and put its examples, of all ranks, into the buffer."""
        if weight := self.objective.kl_in_reward:
            penalty = weight * all_gather(trajectories.log_ratio, self.accelerator)
            scores = replace(scores, total=scores.total - penalty)
        rewards = scores.total
        advantages = self.advantage.of_round(scores, self._texts(draw.prompt), draw.start_seeds)
        random = torch.Generator().manual_seed(self.session.seed(number, "timesteps"))
        chosen = self.objective.choose(len(rewards), random)
        shards = (shard(rows, self.accelerator) for rows in (rewards, advantages, chosen))
        mine = self.objective.examples(trajectories, *shards)
        self.buffer.add(all_gather(mine, self.accelerator, block=chosen.shape[1]))

    def update(self, number: int) -> Metrics:
        """Take the round's optimizer steps, over the buffer in random order.

        If the objective finds that they went too far, they are shortened.
        """
        config, adapter = self.config, self.session.model.adapter
        before = adapter.copy() if self.objective.may_shorten else {}
        order = self.buffer.minibatches(config.batch_size, self.session.seed(number, "updates"))
        # A buffer with fewer examples than an update needs is used once.
        batches = min(config.gradient_accumulation, -(-len(self.buffer) // config.batch_size))
        measured: list[Measured] = []
        norms: list[Tensor] = []

        def compute(rows: Tensor) -> tuple[Tensor, Measured]:
            rows = rows.to(self.device)
            loss = self.objective.loss(self.buffer[rows])
            fresh = rows < self.buffer.fresh
            return loss.loss, Measured(len(norms), fresh, loss.loss.detach(), loss.measured)

        for _ in range(config.updates_per_round):
            rows = [next(order) for _ in range(batches)]
            measured += self.updater.accumulate_over(rows, compute)
            norms.append(self.updater.step())
        metrics = self.objective.metrics(measured, self)
        if (kept := metrics.get("step_kept", 1.0)) < 1:
            adapter.load_state_dict(
                {
                    name: before[name].lerp(now.detach(), kept)
                    for name, now in adapter.state_dict().items()
                }
            )
        return {
            **metrics,
            "grad_norm": torch.stack(norms).float().mean().item(),
            "skipped": self.updater.skipped,
            "learning_rate": self.updater.learning_rate,
        }

    # ---------------------------------------------------------------------------------- reductions

    def mean(self, values: Sequence[Tensor]) -> float:
        """Return the mean over all ranks of the means of tensors, of any shapes."""
        return all_mean(values, self.accelerator)

    def largest(self, value: float) -> float:
        """Return the largest of all ranks' numbers."""
        return max(all_gather_object(value, self.accelerator))

    # --------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "evaluations": self.evaluations,
            "buffer": self.buffer.state_dict(),
            "advantage": self.advantage.state_dict(),
            "objective": self.objective.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.samples, self.evaluations = state["samples"], state["evaluations"]
        self.buffer.load_state_dict(state["buffer"], self.objective.kind(), self.device)
        self.advantage.load_state_dict(state["advantage"])
        self.objective.load_state_dict(state["objective"])

    def close(self) -> None:
        self.worker.close()

    def _texts(self, prompt: Tensor) -> list[str]:
        return [self.config.prompts[row] for row in prompt.tolist()]

    def _advantage(self, reward: WeightedReward) -> RewardAdvantage:
        if self.config.advantage == "value":
            return ValueAdvantage(self.config, self.sampler, self.conditioning)
        if self.config.mix == "advantages":
            return MixedAdvantage(reward.weights)
        return PromptAdvantage() if self.config.advantage == "prompt" else RewardAdvantage()

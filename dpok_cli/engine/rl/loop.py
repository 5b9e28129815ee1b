"""DPOK's loop (Fan et al. 2023, Algorithm 1): roll out, score, take the advantage, update.

A round draws `samples_per_round` images with the current policy, scores them, and takes
`updates_per_round` optimizer steps on their transitions; the ratio to the policy that drew them is
clipped (App. A.6). What was left out of the paper's code on purpose: a second UNet for the
reference (the adapter is switched off instead) and latents rounded to half precision.
"""

import time
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from dpok_cli.config import TrainRLConfig
from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.engine.distributed import all_objects, check_shares, mean_over, own, together
from dpok_cli.engine.rl.advantage import PromptAdvantages, ValueFunction
from dpok_cli.engine.rl.objective import Loss, dpok_loss
from dpok_cli.engine.rl.rollout import Trajectories, Transitions, choose_steps, rollout, transitions
from dpok_cli.engine.runs.folder import RunFolder
from dpok_cli.engine.sampling.step import Denoising, epsilon_kl, gaussian_kl, log_prob
from dpok_cli.engine.training import checkpoint
from dpok_cli.engine.training.trainer import Metrics, Trainer, mean, optimizer_state
from dpok_cli.errors import InputError, RewardError, TrainingError
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

    ``model`` gets an adapter if it has none. With a ``run`` folder, metrics, sample grids,
    checkpoints and the adapter are kept there, and a run that has checkpoints goes on from the
    newest. Once ``stop()`` is true it ends where nothing is lost; ``warn`` is told what a person
    should know, as that a checkpoint is damaged. Raises InputError for settings that leave nothing
    to train, RewardError if the reward fails, TrainingError if images are not finite, or too many
    losses or gradients in a row.
    """
    trainer = RLTrainer(config, model, reward, run, stop, warn)
    trainer.resume()  # before anything is written: if it cannot, all stays as it is
    try:
        if trainer.number == 0:
            trainer.draw_grid(0)
        for number in range(trainer.number + 1, config.rounds + 1):
            metrics = trainer.round(number)
            if metrics is None:
                return
            stopping = trainer.finish(number, config.rounds)
            yield metrics
            if stopping:
                return
    finally:  # an error or a stop leaves what was reached
        trainer.save()
        trainer.close()


class RLTrainer(Trainer[TrainRLConfig]):
    """The policy in training, with its value function and its buffer."""

    def __init__(
        self,
        config: TrainRLConfig,
        model: DiffusionModel,
        reward: WeightedReward,
        run: RunFolder | None = None,
        stop: Callable[[], bool] = lambda: False,
        warn: Callable[[str], None] = warnings.warn,
    ):
        steps = config.rounds * config.updates_per_round
        super().__init__(config, model, run, steps, stop, warn)
        self.worker = RewardWorker(reward, model.device)
        check_shares(
            self.accelerator.num_processes,
            samples_per_round=config.samples_per_round,
            batch_size=config.batch_size,
            buffer_size=config.buffer_size,
        )
        self.denoising = Denoising.of(
            model.scheduler, config.num_inference_steps, config.eta, model.device
        )
        if not len(self.denoising.stochastic):
            raise InputError(
                f"eta = {config.eta} and num_inference_steps = {config.num_inference_steps} leave"
                " no step with noise in it, so there is no policy: raise them."
            )
        self.value: ValueFunction | None = None
        if config.advantage == "value":
            with torch.random.fork_rng():
                torch.manual_seed(config.seed)
                width = self.conditioning.prompts.shape[-1]
                self.value = ValueFunction(model.latent_shape[0], width)
            self.value.to(model.device)
            self.value_optimizer = torch.optim.AdamW(
                self.value.parameters(), lr=config.value_learning_rate
            )
        self.prompt_advantages = PromptAdvantages()
        self.buffer: Transitions | None = None
        self.fresh = 0  # the buffer's first rows, which this round's policy drew

    # -------------------------------------------------------------------------------- one round

    def round(self, number: int) -> Metrics | None:
        """Roll out, score, take the advantage, update; returns the round's metrics.

        Returns None, with nothing changed, if it was asked to stop before the updates.
        """
        config, started, rows = self.config, time.perf_counter(), self.model.unet_rows
        prompt, seeds, starts = self.draw(number)
        texts = [config.prompts[row] for row in prompt.tolist()]
        try:
            trajectories, scores, scoring = self.roll_out(prompt, seeds, starts)
        except RewardError:
            self.model.unet_rows = rows
            self.stop_here()
            raise
        drawn = time.perf_counter()
        if self.should_stop():
            self.model.unet_rows = rows
            self.stop_here()
            return None

        self.samples += len(seeds)
        rewards = scores.total.to(self.model.device)
        advantages = rewards
        if config.advantage == "prompt":
            advantages = self.prompt_advantages.of_round(rewards, texts, starts)
        steps = choose_steps(
            len(seeds),
            self.denoising.stochastic,
            config.timestep_fraction,
            config.timestep_choice,
            torch.Generator().manual_seed(self.seed_of(number, "timesteps")),
        )
        mine = transitions(
            trajectories,
            own(rewards, self.accelerator),
            own(advantages, self.accelerator),
            own(steps, self.accelerator),
        )
        self.remember(together(mine, self.accelerator, block=steps.shape[1]))
        metrics = self.update_value(number) | self.update(number)
        seconds = (drawn - started - scoring, scoring, time.perf_counter() - drawn)
        return self.report(number, scores, metrics, seconds)

    def roll_out(
        self, prompt: Tensor, seeds: list[int], starts: list[int]
    ) -> tuple[Trajectories, Scores, float]:
        """Draw and score this process's share of the round, batch by batch.

        Returns its trajectories, everyone's scores, and the seconds that drawing waited for them.
        Raises RewardError, in all processes, if the reward fails in one.
        """
        config, seconds = self.config, 0.0
        drawn: list[Trajectories] = []
        mine, error = None, None
        try:
            with self.accelerator.autocast():
                for part in rollout(
                    self.model,
                    self.denoising,
                    self.conditioning,
                    own(prompt, self.accelerator),
                    own(seeds, self.accelerator),
                    config.guidance_scale,
                    config.sample_batch_size,
                    own(starts, self.accelerator),
                ):
                    if not part.images.isfinite().all():
                        raise TrainingError(
                            f"The images of round {self.number + 1} are not finite. Lower"
                            " --learning-rate, or train in --precision fp32."
                        )
                    drawn.append(part)
                    texts = [config.prompts[row] for row in part.prompt.tolist()]
                    self.worker.submit(part.images, texts)
            started = time.perf_counter()
            mine = self.worker.results()
            seconds = time.perf_counter() - started
        except RewardError as failed:
            error = failed
        for one in all_objects(error, self.accelerator):
            if one:
                raise one
        assert mine is not None
        total, *raw = (
            together(values.to(self.model.device), self.accelerator)
            for values in (mine.total, *mine.raw.values())
        )
        scores = Scores(total, dict(zip(mine.raw, raw, strict=True)))
        return Trajectories.cat(drawn), scores, seconds

    def draw(self, number: int) -> tuple[Tensor, list[int], list[int]]:
        """Return the round's prompts (M,), a seed a sample, and the seed of each sample's x_T.

        Samples come in groups of one prompt and one x_T, of which the last may be smaller; every
        prompt has as many groups as any other, or one more.
        """
        config = self.config
        samples = config.samples_per_round
        size = config.group_size if config.advantage == "prompt" else 1
        random = np.random.default_rng(self.seed_of(number, "prompts"))
        rows = np.resize(random.permutation(len(config.prompts)), -(-samples // size))
        prompt = torch.from_numpy(rows.repeat(size)[:samples])
        state = np.random.SeedSequence([config.seed, number]).generate_state(samples, np.uint64)
        seeds = [int(seed >> np.uint64(1)) for seed in state]
        starts = [seeds[sample - sample % size] for sample in range(samples)]
        return prompt.to(self.model.device), seeds, starts

    def remember(self, fresh: Transitions) -> None:
        """Put the round's transitions first in the buffer; the oldest beyond its size go."""
        size, kept = self.config.buffer_size, fresh
        if size and self.buffer is not None:
            kept = Transitions.cat([fresh, self.buffer])[: max(size, len(fresh))]
        self.buffer, self.fresh = kept, len(fresh)

    # ------------------------------------------------------------------------------ the updates

    def update(self, number: int) -> Metrics:
        """Take the round's optimizer steps on the adapter, over the buffer in random order."""
        config = self.config
        assert self.buffer is not None
        random = torch.Generator().manual_seed(self.seed_of(number, "updates"))
        order = _endless(len(self.buffer), config.batch_size, random)
        # A buffer that holds less than an update asks for is gone through once.
        batches = min(config.gradient_accumulation, -(-len(self.buffer) // config.batch_size))
        losses: list[Loss] = []
        norms: list[Tensor] = []
        first_deviation = 0.0
        for update in range(config.updates_per_round):
            for batch in range(1, batches + 1):
                rows = own(next(order), self.accelerator)
                with self.part_of_update(last=batch == batches):
                    loss = self.loss(self.buffer[rows.to(self.model.device)])
                    self.accelerator.backward(loss.loss / batches)
                losses.append(loss)
                if update == 0:  # nothing has moved yet: fresh transitions must have a ratio of 1
                    deviations = (loss.ratio[rows.to(loss.ratio.device) < self.fresh] - 1).abs()
                    first_deviation = max(first_deviation, *deviations.tolist(), 0.0)
            norms.append(self.step())

        def over_all(values: list[Tensor]) -> float:
            return mean_over(values, self.accelerator)

        ratio = torch.cat([loss.ratio for loss in losses])
        return {
            "kl": over_all([loss.kl for loss in losses]),
            "loss": over_all([loss.loss.detach() for loss in losses]),
            "ratio/mean": over_all([ratio]),
            "ratio/first_max_dev": max(all_objects(first_deviation, self.accelerator)),
            "clip_fraction": over_all([(ratio - 1).abs() > config.ratio_clip]),
            "grad_norm": mean(norms),
            "skipped": self.skipped,
            "learning_rate": self.schedule.get_last_lr()[0],
        }

    def loss(self, batch: Transitions) -> Loss:
        """DPOK's loss on a batch of transitions (``objective.dpok_loss``)."""
        config, denoising = self.config, self.denoising
        timesteps, texts = denoising.timesteps[batch.step], self.conditioning[batch.prompt]
        with self.accelerator.autocast():
            output = self.model.predict(batch.latents, timesteps, texts, config.guidance_scale)
            with torch.no_grad(), self.model.reference():
                frozen = self.model.predict(batch.latents, timesteps, texts, config.guidance_scale)
        mean, std = denoising.distribution(output, batch.latents, batch.step)
        if config.kl == "gaussian":
            frozen_mean, _ = denoising.distribution(frozen, batch.latents, batch.step)
            kl = gaussian_kl(mean, frozen_mean, std)
        else:
            kl = epsilon_kl(output, frozen)
        advantage = batch.advantage
        if self.value is not None:
            with torch.no_grad():
                advantage = batch.reward - self.value(batch.latents, texts.prompts, timesteps)
        if config.advantage_clip:
            advantage = advantage.clamp(-config.advantage_clip, config.advantage_clip)
        return dpok_loss(
            log_prob(batch.next_latents, mean, std),
            batch.log_prob,
            advantage,
            kl,
            alpha=config.alpha,
            beta=config.beta,
            ratio_clip=config.ratio_clip,
            clip_form=config.clip_form,
        )

    def update_value(self, number: int) -> Metrics:
        """Fit the value function to the buffer's rewards, if the advantage needs one."""
        if self.value is None:
            return {}
        config = self.config
        assert self.buffer is not None
        random = torch.Generator().manual_seed(self.seed_of(number, "value"))
        order = _endless(len(self.buffer), config.value_batch_size, random)
        errors = []
        for _ in range(config.value_updates):
            batch = self.buffer[next(order).to(self.model.device)]
            timesteps = self.denoising.timesteps[batch.step]
            embeds = self.conditioning.prompts[batch.prompt]
            expected = self.value(batch.latents, embeds, timesteps)
            error = torch.nn.functional.mse_loss(expected, batch.reward)
            self.value_optimizer.zero_grad()
            error.backward()
            self.value_optimizer.step()
            errors.append(error.detach())
        return {"value_loss": mean(errors)}

    # ----------------------------------------------------------------------- what is left behind

    def report(
        self, number: int, scores: Scores, metrics: Metrics, seconds: tuple[float, float, float]
    ) -> Metrics:
        """Put the round's metrics together and keep them."""
        metrics = {
            "round": number,
            "samples": self.samples,
            "reward/mean": scores.total.mean().item(),
            "reward/std": scores.total.std(correction=0).item(),
            **{f"reward/{name}": raw.mean().item() for name, raw in scores.raw.items()},
            **metrics,
            "seconds/rollout": round(seconds[0], 3),
            "seconds/reward": round(seconds[1], 3),
            "seconds/update": round(seconds[2], 3),
            "unet_rows": self.model.unet_rows * self.accelerator.num_processes,
        }
        self.log(metrics)
        return metrics

    def close(self) -> None:
        self.worker.close()
        super().close()

    def state(self) -> checkpoint.Tree:
        more: checkpoint.Tree = {"fresh": self.fresh, "squares": self.prompt_advantages.squares}
        if self.config.buffer_size and self.buffer is not None:
            more["buffer"] = vars(self.buffer)
        if self.value is not None:
            more["value"] = self.value.state_dict()
            more["value_optimizer"] = self.value_optimizer.state_dict()
        return super().state() | more

    def load_state(self, state: checkpoint.Tree) -> None:
        super().load_state(state)
        device = self.model.device
        self.fresh = state["fresh"]
        self.prompt_advantages.squares = state["squares"]
        if "buffer" in state:
            self.buffer = Transitions(**{k: rows.to(device) for k, rows in state["buffer"].items()})
        if self.value is not None:
            self.value.load_state_dict(state["value"])
            self.value_optimizer.load_state_dict(optimizer_state(state["value_optimizer"]))


def _endless(length: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield batches of row numbers, (batch_size,) or fewer: pass after pass, shuffled anew."""
    while True:
        yield from torch.randperm(length, generator=generator).split(batch_size)

"""DPOK's loop (Fan et al. 2023, Algorithm 1): roll out, score, take the advantage, update.

A round draws `samples_per_round` images with the current policy, scores them, and takes
`updates_per_round` optimizer steps on their transitions; the ratio to the policy that drew them is
clipped (App. A.6). What was left out of the paper's code on purpose: a second UNet for the
reference (the adapter is switched off instead) and latents rounded to half precision.
"""

import time
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.optimization import get_scheduler
from torch import Tensor

from dpok_cli.config import TrainRLConfig
from dpok_cli.engine.advantage import ValueFunction, per_prompt
from dpok_cli.engine.card import adapter_card
from dpok_cli.engine.model import DiffusionModel
from dpok_cli.engine.objective import Loss, dpok_loss
from dpok_cli.engine.policy import Denoising, epsilon_kl, gaussian_kl, log_prob
from dpok_cli.engine.rollout import Transitions, rollout, transitions
from dpok_cli.engine.run import RunFolder, write_atomically
from dpok_cli.engine.sample import grid, sample
from dpok_cli.errors import InputError, TrainingError
from dpok_cli.rewards.combined import Scores, WeightedReward

Metrics = dict[str, float]


def train_rl(
    config: TrainRLConfig,
    model: DiffusionModel,
    reward: WeightedReward,
    run: RunFolder | None = None,
) -> Iterator[Metrics]:
    """Train ``model``'s adapter, yielding each round's metrics (docs/algorithms.md lists them).

    ``model`` gets an adapter if it has none. With a ``run`` folder, metrics, sample grids and the
    adapter are kept there; the adapter is saved whenever a grid is drawn, and however it ends.
    Raises InputError for settings that leave nothing to train, RewardError if the reward fails,
    TrainingError if images, loss or gradient are not finite.
    """
    trainer = Trainer(config, model, reward, run)
    trainer.draw_grid(0)
    try:
        for number in range(1, config.rounds + 1):
            yield trainer.round(number)
            last = number == config.rounds
            if last or (config.sample_every and number % config.sample_every == 0):
                trainer.draw_grid(number)
                trainer.save()
    finally:  # an error or a stop leaves what was reached
        trainer.save()
        trainer.close()


class Trainer:
    """What lives from round to round: adapter, optimizer, value function, buffer."""

    def __init__(
        self,
        config: TrainRLConfig,
        model: DiffusionModel,
        reward: WeightedReward,
        run: RunFolder | None,
    ):
        self.config, self.model, self.reward, self.run = config, model, reward, run
        if not config.prompts:
            raise InputError("prompts: there is none to draw for.")
        # accelerate keeps a process's first precision; a notebook may go on in another.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            cpu=model.device.type == "cpu",
            mixed_precision={"fp32": "no"}.get(config.precision, config.precision),
            log_with=config.tracker if run and config.tracker else None,
            project_dir=run.path if run else None,
        )
        if not model.adapter_parameters():
            targets = config.lora_targets
            model.add_adapter(config.lora_rank, config.lora_alpha, targets, config.seed)
        if config.gradient_checkpointing:
            model.pipeline.unet.enable_gradient_checkpointing()
        self.prompt_embeds = model.encode(config.prompts, config.negative_prompt)  # (P, L, D)
        self.denoising = Denoising.of(
            model.scheduler, config.num_inference_steps, config.eta, model.device
        )
        if not len(self.denoising.stochastic):
            raise InputError(
                f"eta = {config.eta} and num_inference_steps = {config.num_inference_steps} leave"
                " no step with noise in it, so there is no policy: raise them."
            )
        self.optimizer = torch.optim.AdamW(
            model.adapter_parameters(),
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.weight_decay,
        )
        self.schedule = get_scheduler(
            "constant_with_warmup" if config.lr_schedule == "constant" else config.lr_schedule,
            self.optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=config.rounds * config.updates_per_round,
        )
        # The schedule stays ours: accelerate's wrapper would step it once for every process.
        model.unet, self.optimizer = self.accelerator.prepare(model.pipeline.unet, self.optimizer)
        self.value: ValueFunction | None = None
        if config.advantage == "value":
            with torch.random.fork_rng():
                torch.manual_seed(config.seed)
                self.value = ValueFunction(model.latent_shape[0], self.prompt_embeds.shape[-1])
            self.value.to(model.device)
            self.value_optimizer = torch.optim.AdamW(
                self.value.parameters(), lr=config.value_learning_rate
            )
        self.buffer: Transitions | None = None
        self.fresh = 0  # the buffer's first rows, which this round's policy drew
        self.samples = 0
        if run and config.tracker:
            self.accelerator.init_trackers("dpok")

    # -------------------------------------------------------------------------------- one round

    def round(self, number: int) -> Metrics:
        """Roll out, score, take the advantage, update; returns the round's metrics."""
        config, started = self.config, time.perf_counter()
        prompt, seeds = self.draw(number)
        # Whoever drew between two rounds may have left another negative prompt.
        self.prompt_embeds = self.model.encode(config.prompts, config.negative_prompt)
        with self.accelerator.autocast():
            trajectories = rollout(
                self.model,
                self.denoising,
                self.prompt_embeds,
                prompt,
                seeds,
                config.guidance_scale,
                config.sample_batch_size,
            )
        if not trajectories.images.isfinite().all():
            raise TrainingError(
                f"The images of round {number} are not finite. Lower --learning-rate, or train in"
                " --precision fp32."
            )
        drawn = time.perf_counter()
        texts = [config.prompts[row] for row in prompt.tolist()]
        scores = self.reward.score(trajectories.images, texts)
        scored = time.perf_counter()

        self.samples += len(texts)
        rewards = scores.total.to(self.model.device)
        fresh = transitions(
            trajectories,
            rewards,
            per_prompt(rewards, texts) if config.advantage == "prompt" else rewards,
            self.denoising.stochastic,
            config.timestep_fraction,
            torch.Generator().manual_seed(self.seed_of(number, "timesteps")),
        )
        self.remember(fresh)
        metrics = self.update_value(number) | self.update(number)
        return self.report(number, scores, metrics, (started, drawn, scored, time.perf_counter()))

    def draw(self, number: int) -> tuple[Tensor, list[int]]:
        """Return the round's prompts (M,), each as often as any other, and a seed a sample."""
        config = self.config
        random = np.random.default_rng(self.seed_of(number, "prompts"))
        rows = random.permutation(len(config.prompts))
        prompt = torch.from_numpy(np.resize(rows, config.samples_per_round))
        seeds = np.random.SeedSequence([config.seed, number]).generate_state(len(prompt), np.uint64)
        return prompt.to(self.model.device), [int(seed >> np.uint64(1)) for seed in seeds]

    def seed_of(self, number: int, purpose: str) -> int:
        """Return the seed of one purpose in one round, so that no state has to be kept."""
        key = [self.config.seed, number, int.from_bytes(purpose.encode(), "big")]
        return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))

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
            for _ in range(batches):
                rows = next(order)
                loss = self.loss(self.buffer[rows.to(self.model.device)])
                if not loss.loss.isfinite():
                    raise TrainingError(
                        f"The loss is {loss.loss.item()} in round {number}. Lower --learning-rate"
                        " or --alpha, or train in --precision fp32."
                    )
                self.accelerator.backward(loss.loss / batches)
                losses.append(loss)
                if update == 0:  # nothing has moved yet: fresh transitions must have a ratio of 1
                    deviations = (loss.ratio[rows.to(loss.ratio.device) < self.fresh] - 1).abs()
                    first_deviation = max(first_deviation, *deviations.tolist(), 0.0)
            parameters = self.model.adapter_parameters()
            norms.append(self.accelerator.clip_grad_norm_(parameters, config.max_grad_norm))
            # fp16's gradient scaler skips such a step by itself.
            if not norms[-1].isfinite() and config.precision != "fp16":
                raise TrainingError(
                    f"The gradient is not finite in round {number}. Lower --learning-rate or"
                    " --alpha, or train in --precision fp32."
                )
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
        ratio = torch.cat([loss.ratio for loss in losses])
        return {
            "kl": _mean(loss.kl for loss in losses),
            "loss": _mean(loss.loss.detach() for loss in losses),
            "ratio/mean": ratio.mean().item(),
            "ratio/first_max_dev": first_deviation,
            "clip_fraction": ((ratio - 1).abs() > config.ratio_clip).float().mean().item(),
            "grad_norm": _mean(norms),
            "learning_rate": self.schedule.get_last_lr()[0],
        }

    def loss(self, batch: Transitions) -> Loss:
        """DPOK's loss on a batch of transitions (``objective.dpok_loss``)."""
        config, denoising = self.config, self.denoising
        timesteps, embeds = denoising.timesteps[batch.step], self.prompt_embeds[batch.prompt]
        with self.accelerator.autocast():
            output = self.model.predict(batch.latents, timesteps, embeds, config.guidance_scale)
            with torch.no_grad(), self.model.reference():
                frozen = self.model.predict(batch.latents, timesteps, embeds, config.guidance_scale)
        mean, std = denoising.distribution(output, batch.latents, batch.step)
        if config.kl == "gaussian":
            frozen_mean, _ = denoising.distribution(frozen, batch.latents, batch.step)
            kl = gaussian_kl(mean, frozen_mean, std)
        else:
            kl = epsilon_kl(output, frozen)
        advantage = batch.advantage
        if self.value is not None:
            with torch.no_grad():
                advantage = batch.reward - self.value(batch.latents, embeds, timesteps)
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
            expected = self.value(batch.latents, self.prompt_embeds[batch.prompt], timesteps)
            error = torch.nn.functional.mse_loss(expected, batch.reward)
            self.value_optimizer.zero_grad()
            error.backward()
            self.value_optimizer.step()
            errors.append(error.detach())
        return {"value_loss": _mean(errors)}

    # ----------------------------------------------------------------------- what is left behind

    def report(
        self, number: int, scores: Scores, metrics: Metrics, clock: tuple[float, ...]
    ) -> Metrics:
        """Put the round's metrics together and keep them in the run folder."""
        seconds = np.diff(clock)
        metrics = {
            "round": number,
            "samples": self.samples,
            "reward/mean": scores.total.mean().item(),
            "reward/std": scores.total.std(correction=0).item(),
            **{f"reward/{name}": raw.mean().item() for name, raw in scores.raw.items()},
            **metrics,
            "seconds/rollout": round(float(seconds[0]), 3),
            "seconds/reward": round(float(seconds[1]), 3),
            "seconds/update": round(float(seconds[2]), 3),
            "unet_rows": self.model.unet_rows,
        }
        if self.run:
            self.run.append(metrics)
            self.accelerator.log(metrics, step=number)
        return metrics

    def draw_grid(self, number: int) -> None:
        """Draw the sample grid, from the same seeds each time."""
        config = self.config
        if not self.run or not config.sample_every or not config.sample_count:
            return
        prompts = config.prompts[: config.sample_count]
        each = config.sample_count // len(prompts)
        rows = self.model.unet_rows
        with self.accelerator.autocast():
            images = [one.image for one in sample(self.model, prompts, range(each), config)]
        self.model.unet_rows = rows  # the metric counts training alone
        self.run.samples.mkdir(exist_ok=True)
        columns = each if len(prompts) > 1 else max(1, round(each**0.5))
        grid(images, columns).save(self.run.samples / f"round-{number:05d}.png")

    def save(self) -> None:
        """Write the adapter and its model card to the run folder."""
        if self.run:
            self.model.save_adapter(self.run.adapter)
            clip_sample = self.model.scheduler.config.clip_sample
            card = adapter_card(self.config, self.samples, clip_sample)
            write_atomically(self.run.adapter / "README.md", card)

    def close(self) -> None:
        self.accelerator.end_training()


def _endless(length: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield batches of row numbers, (batch_size,) or fewer: pass after pass, shuffled anew."""
    while True:
        yield from torch.randperm(length, generator=generator).split(batch_size)


def _mean(values: Iterable[Tensor]) -> float:
    return torch.stack(list(values)).float().mean().item()

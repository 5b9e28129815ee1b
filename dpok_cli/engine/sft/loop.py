"""The loop of reward-weighted supervised fine-tuning (Fan et al. 2023, Sec. 4.3).

The images are drawn once from the pre-trained model and scored; then the denoising loss of each is
weighted by its reward. It is the baseline of DPOK, on the same number of images.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from dpok_cli.config import TrainSFTConfig
from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.engine.distributed import all_mean, check_divisible
from dpok_cli.engine.runs.folder import RunFolder
from dpok_cli.engine.sft.dataset.collect import ImageSet, collect
from dpok_cli.engine.sft.objective import Errors, Examples, SFTObjective
from dpok_cli.engine.training.driver import drive
from dpok_cli.engine.training.outputs import Metrics
from dpok_cli.engine.training.session import Session
from dpok_cli.errors import InputError
from dpok_cli.rewards.combined import WeightedReward


def train_sft(
    config: TrainSFTConfig,
    model: DiffusionModel,
    reward: WeightedReward,
    run: RunFolder | None = None,
    stop: Callable[[], bool] = lambda: False,
    drawn: Callable[[int, int], None] = lambda done, of: None,
    warn: Callable[[str], None] = warnings.warn,
) -> Iterator[Metrics]:
    """Train a new adapter of ``model``, yielding the metrics of every `log_every` steps.

    docs/algorithms.md lists them. ``drawn`` gets the number of images that are ready and that of
    all. A ``run`` folder keeps images, metrics, sample grids, checkpoints and the adapter, and is
    resumed if it has any. Once ``stop()`` is true, training ends at a safe point.
    ``warn`` gets warnings, of a damaged checkpoint for instance. Raises InputError for settings or
    an image set that leave nothing to train, RewardError if the reward fails, TrainingError if too
    many losses in a row are not finite.
    """
    with Session(config, model, run, stop, warn, config.steps) as session:
        check_divisible(session.accelerator.num_processes, batch_size=config.batch_size)
        images = collect(config, session, reward, drawn)
        if images is None:
            session.accelerator.end_training()
            return
        yield from drive(SFTLoop(config, images, session), session, reward)


class SFTLoop:
    """Optimizer steps on an image set, whose images have a weight each."""

    unit = "step"

    def __init__(self, config: TrainSFTConfig, images: ImageSet, session: Session):
        """Raises InputError if the weights of all images are zero."""
        self.config, self.session = config, session
        self.accelerator, self.updater = session.accelerator, session.updater
        self.device, self.denoiser = session.model.device, session.denoiser
        self.objective = SFTObjective(config, session)
        self.last, self.record_every = config.steps, config.log_every
        self.samples = len(images)
        #: Of the denoiser so far, by this rank, including those that drew the images.
        self.evaluations = images.evaluations // self.accelerator.num_processes
        #: What the steps since the last record measured.
        self.measured: list[Metrics] = []
        self._weigh(images)
        # Here, so that the text encoders are loaded once.
        session.model.encode(["", *dict.fromkeys(self.prompts)])

    def _weigh(self, images: ImageSet) -> None:
        """Set the images to train on and their weights."""
        config, rewards = self.config, images.scores.total
        weights = self.objective.weights(rewards)
        if not weights.any():
            raise InputError(f"{_which_gamma(rewards, config)} The images are in {images.folder}.")
        # An image without weight adds nothing to the loss, unless the KL is taken on it. Leaving
        # it out makes the mean over the others larger by M / kept, which `share` corrects.
        kept = torch.ones_like(weights > 0) if self.objective.has_kl else weights > 0
        self.latents, self.weights = images.latents[kept], weights[kept]
        self.prompts = [images.prompts[row] for row in kept.nonzero().flatten().tolist()]
        self.share = len(self.prompts) / len(images)
        self.of_images: Metrics = {
            "samples": len(images),
            "reward/mean": rewards.mean().item(),
            "reward/std": rewards.std(correction=0).item(),
            **{f"reward/{name}": raw.mean().item() for name, raw in images.scores.raw.items()},
            "weight/mean": weights.mean().item(),
            "weight/zero": int((weights == 0).sum()),
        }

    # ------------------------------------------------------------------------------------- one step

    def advance(self, number: int) -> Metrics | None:
        """Take one optimizer step; returns the metrics if a record is due.

        Images, noise and timesteps follow from the step's number, not from the batches.
        """
        config, started, before = self.config, time.perf_counter(), self.denoiser.evaluations
        random = torch.Generator().manual_seed(self.session.seed(number, "step"))
        size = config.batch_size * config.gradient_accumulation
        rows = self._choose(size, random)
        timesteps = self.session.model.base.draw_timesteps(size, random)
        noise = torch.randn(size, *self.latents.shape[1:], generator=random)
        dropped = torch.rand(size, generator=random) < config.prompt_dropout
        is_due = number % config.log_every == 0 or number == config.steps

        losses, denoising, kls = [], [], []

        def compute(mine: Tensor) -> tuple[Tensor, Errors]:
            examples = self.examples(*(each[mine] for each in (rows, timesteps, noise, dropped)))
            errors = self.objective.loss(examples, with_kl=is_due)
            loss = errors.loss * self.share
            return loss, errors._replace(loss=loss.detach())

        batches = torch.arange(size).split(config.batch_size)
        for errors in self.updater.accumulate_over(batches, compute):
            losses.append(errors.loss)
            denoising.append(errors.denoising)
            kls += [] if errors.kl is None else [errors.kl]
        norm = self.updater.step()
        self.evaluations += self.denoiser.evaluations - before
        self.measured.append(
            {
                "loss": all_mean(losses, self.accelerator),
                "denoising_error": all_mean(denoising, self.accelerator),
                **({"kl": all_mean(kls, self.accelerator)} if kls else {}),
                "grad_norm": norm.item(),
                "seconds/update": time.perf_counter() - started,
            }
        )
        return self._record(number) if is_due else None

    def examples(self, rows: Tensor, timesteps: Tensor, noise: Tensor, dropped: Tensor) -> Examples:
        """Return the images of ``rows``; all arguments are (B, ...), on the CPU.

        Where ``dropped``, bool (B,), is true, there is no prompt.
        """
        kept = zip(rows.tolist(), dropped.tolist(), strict=True)
        prompts = [None if drop else self.prompts[row] for row, drop in kept]
        latents, weight, timesteps, noise = (
            each.to(self.device)
            for each in (self.latents[rows], self.weights[rows], timesteps, noise)
        )
        return Examples(latents, weight, prompts, timesteps, noise)

    def _choose(self, size: int, random: torch.Generator) -> Tensor:
        """Choose the step's images, long (size,): each is used once before any is repeated."""
        count = len(self.prompts)
        passes = [torch.randperm(count, generator=random) for _ in range(-(-size // count))]
        return torch.cat(passes)[:size]

    def _record(self, number: int) -> Metrics:
        """Return the means of what was measured since the last record."""

        def mean(key: str) -> float:
            values = [one[key] for one in self.measured if key in one]
            return sum(values) / len(values)

        record: Metrics = {
            "step": number,
            **self.of_images,
            **{key: mean(key) for key in "loss denoising_error kl grad_norm".split()},
            "skipped": self.updater.skipped,
            "learning_rate": self.updater.learning_rate,
            "seconds/update": round(sum(one["seconds/update"] for one in self.measured), 3),
            "denoiser_evaluations": self.evaluations * self.accelerator.num_processes,
        }
        self.measured = []
        return record

    # --------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        return {"evaluations": self.evaluations, "measured": self.measured}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.evaluations, self.measured = state["evaluations"], state["measured"]

    def close(self) -> None:
        pass


def _which_gamma(rewards: Tensor, config: TrainSFTConfig) -> str:
    """Say which gamma would leave weights above zero; ``rewards`` (M,) are all too low."""
    least, half = -rewards.max().item(), -rewards.median().item()
    form = "" if config.kl_form == "kl-d" else " --kl-form kl-d, whose gamma shifts rewards, and"
    return (
        f"All {len(rewards)} weights are cut to zero, as the best reward is {-least:.3f}."
        f" Give{form} a --gamma above {least:.3f}; with {half:.3f} about half of the images count."
    )

"""Reward-weighted supervised fine-tuning (Fan et al. 2023, Sec. 4.3): images, weights, steps.

The images are drawn once from the pre-trained model and scored; then the denoising loss of each is
weighted by its reward. It is what DPOK is compared with, given as many images.
"""

import time
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dpok_cli.config import TrainSFTConfig
from dpok_cli.engine.bases.model import Conditioning, DiffusionModel
from dpok_cli.engine.distributed import check_shares, mean_over, own
from dpok_cli.engine.rl.objective import denoising_error, reward_weights, sft_loss
from dpok_cli.engine.runs.folder import RunFolder
from dpok_cli.engine.sampling.step import epsilon_kl
from dpok_cli.engine.sft.dataset.collect import ImageSet, collect
from dpok_cli.engine.training import checkpoint
from dpok_cli.engine.training.trainer import Metrics, Trainer, mean
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
    """Train ``model``'s adapter, yielding the metrics of every `log_every` steps.

    docs/algorithms.md lists them. ``drawn`` is called with the images that are there and those
    there will be. Images, metrics, sample grids, checkpoints and the adapter are kept in the
    ``run`` folder, and what is there already is gone on with. Once ``stop()`` is true it ends
    where nothing is lost; ``warn`` is told what a person should know, as that a checkpoint is
    damaged. Raises InputError for settings or an image set that leave nothing to train, RewardError
    if the reward fails, TrainingError if too many losses are not finite.
    """
    trainer = SFTTrainer(config, model, run, stop, warn)
    if not trainer.prepare(reward, drawn):
        trainer.close()
        return
    trainer.resume()  # before anything is written: if it cannot, all stays as it is
    try:
        if trainer.number == 0:
            trainer.draw_grid(0)
        for number in range(trainer.number + 1, config.steps + 1):
            metrics = trainer.train_step(number)
            stopping = trainer.finish(number, config.steps)
            if metrics:
                yield metrics
            if stopping:
                return
    finally:  # an error or a stop leaves what was reached
        trainer.save()
        trainer.close()


class SFTTrainer(Trainer[TrainSFTConfig]):
    """The model in training, on images with a weight each."""

    unit = "step"

    def __init__(
        self,
        config: TrainSFTConfig,
        model: DiffusionModel,
        run: RunFolder | None = None,
        stop: Callable[[], bool] = lambda: False,
        warn: Callable[[str], None] = warnings.warn,
    ):
        super().__init__(config, model, run, config.steps, stop, warn)
        check_shares(self.accelerator.num_processes, batch_size=config.batch_size)
        #: What the steps since the last line of metrics measured.
        self.measured: list[Metrics] = []

    def prepare(self, reward: WeightedReward, drawn: Callable[[int, int], None]) -> bool:
        """Get the image set, and weigh it; returns False if it was asked to stop before."""
        images = collect(
            self.config,
            self.model,
            self.conditioning,
            reward,
            self.run,
            self.accelerator,
            self.stop,
            drawn,
        )
        if images is None:
            return False
        self.samples = len(images)
        self.model.unet_rows = images.unet_rows // self.accelerator.num_processes
        self.weigh(images)
        return True

    def weigh(self, images: ImageSet) -> None:
        """Take the images to train on, and their weights; raises InputError if all are zero."""
        config, rewards = self.config, images.scores.total
        weights = reward_weights(rewards, config.gamma, config.kl_form)
        if not weights.any():
            raise InputError(f"{which_gamma(rewards, config)} The images are in {images.folder}.")
        # An image without weight adds nothing to the loss, unless the KL is taken on it. Leaving
        # it out makes the mean over the others larger by M / kept, which `share` takes back.
        kept = weights > 0
        if config.kl_form == "kl-o" and config.gamma > 0:
            kept = torch.ones_like(kept)
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

    # --------------------------------------------------------------------------------- one step

    def train_step(self, number: int) -> Metrics | None:
        """Take one optimizer step; returns the metrics if a line of them is due.

        Images, noise and timesteps are those of the step's number, in whatever batches.
        """
        config, started = self.config, time.perf_counter()
        random = torch.Generator().manual_seed(self.seed_of(number, "step"))
        size = config.batch_size * config.gradient_accumulation
        rows = self.choose(size, random)
        timesteps = torch.randint(self.levels, (size,), generator=random)
        noise = torch.randn(size, *self.latents.shape[1:], generator=random)
        dropped = torch.rand(size, generator=random) < config.prompt_dropout
        with_kl = number % config.log_every == 0 or number == config.steps

        losses, errors, kls = [], [], []
        batches = torch.arange(size).split(config.batch_size)
        for batch in batches:
            mine = own(batch, self.accelerator)
            with self.part_of_update(last=batch is batches[-1]):
                loss, error, kl = self.loss(
                    rows[mine], timesteps[mine], noise[mine], dropped[mine], with_kl
                )
                self.accelerator.backward(loss / len(batches))
            losses.append(loss.detach())
            errors.append(error)
            kls += [] if kl is None else [kl]
        norm = self.step()
        self.measured.append(
            {
                "loss": mean_over(losses, self.accelerator),
                "denoising_error": mean_over(errors, self.accelerator),
                **({"kl": mean_over(kls, self.accelerator)} if kls else {}),
                "grad_norm": mean([norm]),
                "seconds/update": time.perf_counter() - started,
            }
        )
        return self.report(number) if with_kl else None

    def choose(self, size: int, random: torch.Generator) -> Tensor:
        """Choose the step's images, long (size,): none twice before all have come."""
        count = len(self.prompts)
        passes = [torch.randperm(count, generator=random) for _ in range(-(-size // count))]
        return torch.cat(passes)[:size]

    def loss(
        self, rows: Tensor, timesteps: Tensor, noise: Tensor, dropped: Tensor, with_kl: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the loss (scalar), the unweighted error (B,) and the KL (B,) of a batch.

        All arguments are (B, ...), on the CPU. The KL is taken if it is in the loss or asked for.
        """
        config, model, scheduler = self.config, self.model, self.model.scheduler
        latents, noise, timesteps, weight = (
            each.to(model.device)
            for each in (self.latents[rows], noise, timesteps, self.weights[rows])
        )
        prompts = [self.prompts[row] for row in rows.tolist()]
        without = dropped.tolist()
        texts = self.encode(["" if drop else p for p, drop in zip(prompts, without, strict=True)])
        noisy = scheduler.add_noise(latents, noise, timesteps)
        target = {
            "epsilon": lambda: noise,
            "v_prediction": lambda: scheduler.get_velocity(latents, noise, timesteps),
            "sample": lambda: latents,
        }[scheduler.config.prediction_type]()
        in_loss = config.kl_form == "kl-o" and config.gamma > 0
        with self.accelerator.autocast():
            output = model.predict(noisy, timesteps, texts, guidance_scale=1.0)
            kl = None
            if in_loss or with_kl:
                with torch.no_grad(), model.reference():
                    frozen = model.predict(noisy, timesteps, texts, guidance_scale=1.0)
                kl = epsilon_kl(output, frozen)
        error = denoising_error(output, target)
        loss = sft_loss(weight, error, kl, gamma=config.gamma, kl_form=config.kl_form)
        return loss * self.share, error.detach(), None if kl is None else kl.detach()

    def encode(self, prompts: list[str]) -> Conditioning:
        """Return the embeddings of B prompts, each different one encoded once."""
        different = list(dict.fromkeys(prompts))
        encoded = self.model.encode(different)
        return encoded[[different.index(prompt) for prompt in prompts]]

    @property
    def levels(self) -> int:
        """The timesteps of the noise, of which each is as likely."""
        return self.model.scheduler.config.num_train_timesteps

    # ----------------------------------------------------------------------- what is left behind

    def report(self, number: int) -> Metrics:
        """Put together what was measured since the last line of metrics, and keep it."""

        def means(key: str) -> float:
            values = [one[key] for one in self.measured if key in one]
            return sum(values) / len(values)

        metrics: Metrics = {
            "step": number,
            **self.of_images,
            **{key: means(key) for key in "loss denoising_error kl grad_norm".split()},
            "skipped": self.skipped,
            "learning_rate": self.schedule.get_last_lr()[0],
            "seconds/update": round(sum(one["seconds/update"] for one in self.measured), 3),
            "unet_rows": self.model.unet_rows * self.accelerator.num_processes,
        }
        self.measured = []
        self.log(metrics)
        return metrics

    def state(self) -> checkpoint.Tree:
        return super().state() | {"measured": self.measured}

    def load_state(self, state: checkpoint.Tree) -> None:
        super().load_state(state)
        self.measured = state["measured"]


def which_gamma(rewards: Tensor, config: TrainSFTConfig) -> str:
    """Say which gamma would leave weights above zero; ``rewards`` (M,) are all too low."""
    least, half = -rewards.max().item(), -rewards.median().item()
    form = "" if config.kl_form == "kl-d" else " --kl-form kl-d, whose gamma shifts rewards, and"
    return (
        f"All {len(rewards)} weights are cut to zero, as the best reward is {-least:.3f}."
        f" Give{form} a --gamma above {least:.3f}; with {half:.3f} about half of the images count."
    )

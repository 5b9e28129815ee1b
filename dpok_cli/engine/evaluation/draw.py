"""Honest scores: every model draws from the same seeds, and what is scored is what is kept.

A batch is drawn, rounded to the 8 bits that its PNGs hold, scored and written; nothing of it stays
in memory. An evaluation that was cut off goes on with the first batch that is not on disk. Of many
processes each takes every so manieth batch, and the first one writes them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING

import torch
from accelerate import PartialState
from torch import Tensor

from dpok_cli.config import EvaluateConfig
from dpok_cli.engine.bases.model import Conditioning, DiffusionModel, load
from dpok_cli.engine.device import process_state
from dpok_cli.engine.distributed import all_or_error, in_first, own
from dpok_cli.engine.evaluation.folder import EvaluationFolder, Record
from dpok_cli.engine.evaluation.plan import BASE, Contender, Evaluation, Place
from dpok_cli.engine.rl.rollout import denoise
from dpok_cli.engine.sampling.step import Denoising, epsilon_kl, gaussian_kl
from dpok_cli.errors import DpokError
from dpok_cli.rewards.combined import WeightedReward
from dpok_cli.rewards.images import to_pil

if TYPE_CHECKING:
    from PIL.Image import Image

#: The records of a batch, and its images.
Drawn = tuple[list[Record], list["Image"]]


def evaluate(
    evaluation: Evaluation, reward: WeightedReward, folder: EvaluationFolder
) -> Iterator[Record]:
    """Draw, score and keep every image that is not kept yet; yields the record of each image.

    Every process yields the same. Raises InputError if a model cannot be loaded, RewardError if a
    reward fails, DpokError if images are not finite; in all processes, if it is so in one. What was
    kept until then stays.
    """
    processes = process_state(evaluation.config.device)
    kept = in_first(folder.records, processes)
    for contender in evaluation.contenders:
        yield from _evaluate(evaluation, contender, reward, folder, kept, processes)


def _evaluate(
    evaluation: Evaluation,
    contender: Contender,
    reward: WeightedReward,
    folder: EvaluationFolder,
    kept: Mapping[tuple[str, Place], Record],
    processes: PartialState,
) -> Iterator[Record]:
    """Evaluate one model, which is loaded if there is something to draw."""
    missing = []
    for batch in evaluation.batches():
        places = [(contender.name, place) for place in batch]
        if all(place in kept for place in places):
            yield from (kept[place] for place in places)
        else:
            missing.append(batch)
    model = cache(lambda: _Model(evaluation, contender))

    def mine(batches: list[list[Place]]) -> list[Drawn]:
        return [model().score(batch, reward) for batch in own(batches, processes)]

    for start in range(0, len(missing), processes.num_processes):
        at_once = missing[start : start + processes.num_processes]
        for share in all_or_error(partial(mine, at_once), processes):
            for records, pictures in share:
                if processes.is_main_process:
                    folder.keep(records, pictures)
                yield from records


def check_models(evaluation: Evaluation) -> None:
    """Raise InputError if the base model cannot be loaded, or an adapter does not fit it."""
    for contender in evaluation.contenders:
        load(evaluation.config, contender.adapter)


class _Model:
    """One contender, ready to draw."""

    def __init__(self, evaluation: Evaluation, contender: Contender):
        self.config: EvaluateConfig = evaluation.config
        self.contender = contender
        self.model: DiffusionModel = load(self.config, contender.adapter)
        model, config = self.model, self.config
        self.texts = [prompt.text for prompt in evaluation.prompts]
        self.conditioning = model.encode(self.texts, config.negative_prompt)
        self.denoising = Denoising.of(
            model.scheduler, config.num_inference_steps, config.eta, model.device
        )
        self.stochastic = set(self.denoising.stochastic.tolist())

    def score(self, batch: list[Place], reward: WeightedReward) -> Drawn:
        """Draw a batch and score it as the files will hold it."""
        images, kl = self.draw(batch)
        images = eight_bits(images)
        scores = reward.score(images, [self.texts[row] for row, _ in batch]).raw
        records = [
            {
                "model": self.contender.name,
                "row": place.row,
                "seed": place.seed,
                "scores": {name: values[n].item() for name, values in scores.items()},
                "kl": None if kl is None else kl[n].item(),
            }
            for n, place in enumerate(batch)
        ]
        return records, [to_pil(image) for image in images]

    @torch.no_grad()
    def draw(self, batch: list[Place]) -> tuple[Tensor, Tensor | None]:
        """Return images (B, 3, H, W) in [0, 1] and the KL to the reference (B,).

        The KL is summed over the trajectory's steps that have noise, each a mean over the latent's
        elements, of the form that the config says (`policy.epsilon_kl`, `policy.gaussian_kl`). It
        is None where no step has noise.
        """
        texts = self.conditioning[[row for row, _ in batch]]
        seeds = [seed for _, seed in batch]
        scale = self.config.guidance_scale
        steps = denoise(self.model, self.denoising, texts, seeds, scale)
        latents = next(steps).latents
        kl = torch.zeros(len(batch), device=latents.device)
        for index, step in enumerate(steps):
            if index in self.stochastic and self.contender.name != BASE:
                kl += self._kl(latents, step.output, index, texts)
            latents = step.latents
        images = self.model.decode(latents)
        if not images.isfinite().all():
            raise DpokError(
                f"The images of {self.contender.name} are not finite. Evaluate in --precision fp32."
            )
        return images, kl if self.stochastic else None

    def _kl(self, latents: Tensor, output: Tensor, index: int, texts: Conditioning) -> Tensor:
        """Return the KL (B,) of one step from ``latents``, for which the policy said ``output``."""
        step = torch.full((len(latents),), index, device=latents.device)
        with self.model.reference():
            frozen = self.model.predict(
                latents, self.denoising.timesteps[step], texts, self.config.guidance_scale
            )
        if self.config.kl == "epsilon":
            return epsilon_kl(output, frozen)
        mean, std = self.denoising.distribution(output, latents, step)
        frozen_mean, _ = self.denoising.distribution(frozen, latents, step)
        return gaussian_kl(mean, frozen_mean, std)


def eight_bits(images: Tensor) -> Tensor:
    """Round images in [0, 1] to what a PNG of 8 bits a channel gives back."""
    return (images.clamp(0, 1) * 255).round() / 255

"""Draw and score: every model draws from the same seeds, and the PNGs are what is scored.

A batch is drawn, rounded to 8 bits, scored and written; nothing of it stays in memory. An
interrupted evaluation resumes with the first batch that is not on disk. Batches are sharded over
the processes, and rank 0 writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING

import torch
from accelerate import PartialState
from torch import Tensor

from dpok_cli.engine.bases.load import load
from dpok_cli.engine.distributed import all_gather_result, process_state, run_on_main, shard
from dpok_cli.engine.evaluation.contenders import BASE, Contender
from dpok_cli.engine.evaluation.folder import EvaluationFolder, Record
from dpok_cli.engine.evaluation.plan import Evaluation, Place
from dpok_cli.engine.evaluation.together import compare_drawn
from dpok_cli.engine.lora.files import check_adapter, read_adapter
from dpok_cli.engine.sampling.sampler import Sampler
from dpok_cli.errors import NotFiniteError, StopRequested
from dpok_cli.rewards.combined import WeightedReward
from dpok_cli.rewards.images import to_pil

if TYPE_CHECKING:
    from PIL.Image import Image

#: The records of a batch, and its images.
Drawn = tuple[list[Record], list["Image"]]


def draw(
    evaluation: Evaluation,
    reward: WeightedReward,
    folder: EvaluationFolder,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Record]:
    """Draw, score and write every missing image; yields the record of each image.

    Rewards that compare images score last, when all are there. All ranks yield the same. Raises
    InputError if a model cannot be loaded, RewardError if a reward fails, NotFiniteError if images
    are not finite, StopRequested once ``stop()`` is true; an error on one rank is raised on all of
    them. What was written until then stays.
    """
    processes = process_state(evaluation.config.device)
    kept = run_on_main(folder.records, processes)
    for contender in evaluation.contenders:
        yield from _draw(evaluation, contender, reward, folder, kept, processes, stop)
    run_on_main(lambda: compare_drawn(evaluation, reward, folder), processes)


def _draw(
    evaluation: Evaluation,
    contender: Contender,
    reward: WeightedReward,
    folder: EvaluationFolder,
    kept: Mapping[tuple[str, Place], Record],
    processes: PartialState,
    stop: Callable[[], bool],
) -> Iterator[Record]:
    """Draw the missing images of one model, which is loaded only if there are any."""
    missing = []
    for batch in evaluation.batches():
        places = [(contender.name, place) for place in batch]
        if all(place in kept for place in places):
            yield from (kept[place] for place in places)
        else:
            missing.append(batch)
    model = cache(lambda: _Model(evaluation, contender, stop))

    def score_shard(batches: list[list[Place]]) -> list[Drawn]:
        if stop():
            raise StopRequested
        return [model().score(batch, reward) for batch in shard(batches, processes)]

    for start in range(0, len(missing), processes.num_processes):
        at_once = missing[start : start + processes.num_processes]
        for drawn in all_gather_result(partial(score_shard, at_once), processes):
            for records, pictures in drawn:
                if processes.is_main_process:
                    folder.keep(records, pictures)
                yield from records


def check_models(evaluation: Evaluation) -> list[str]:
    """Return a line on each prompt that is too long for the model.

    The base is loaded once, and each adapter put onto it in turn. Raises InputError if a model
    cannot be loaded, or cannot be drawn from with these settings.
    """
    config, texts = evaluation.config, [prompt.text for prompt in evaluation.prompts]
    model = load(config, None, texts[:1])
    Sampler(model, config)
    for contender in evaluation.contenders:
        if contender.adapter is not None:
            check_adapter(contender.adapter)
            model.adapter.remove()
            model.adapter.install(read_adapter(contender.adapter), str(contender.adapter))
            # With one prompt, since an adapter's part of a text encoder may not fit.
            model.encode(texts[:1], config.negative_prompt)
    return model.unread(texts)


class _Model:
    """One contender, loaded, with its sampler and the embeddings of the prompts."""

    def __init__(self, evaluation: Evaluation, contender: Contender, stop: Callable[[], bool]):
        config = evaluation.config
        self.contender, self.kl = contender, config.kl
        self.texts = [prompt.text for prompt in evaluation.prompts]
        model = load(config, contender.adapter, self.texts)
        self.sampler = Sampler(model, config, stop=stop)
        self.conditioning = model.encode(self.texts, config.negative_prompt)
        self.stochastic = set(self.sampler.denoising.stochastic.tolist())

    def score(self, batch: list[Place], reward: WeightedReward) -> Drawn:
        """Draw a batch, round it to 8 bits and score it."""
        images, kl = self.draw(batch)
        images = eight_bits(images)
        scores = reward.score_alone(images, [self.texts[row] for row, _ in batch])
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

        The KL is the sum over the trajectory's stochastic steps, each a mean over the latent's
        elements, in the config's form (`Gaussian.kl`). It is None if no step is stochastic. Raises
        NotFiniteError.
        """
        texts = self.conditioning[[place.row for place in batch]]
        kl = torch.zeros(len(batch), device=self.sampler.model.device)
        for index, step in enumerate(self.sampler.steps(texts, [place.seed for place in batch])):
            if index in self.stochastic and self.contender.name != BASE:
                at = torch.full((len(batch),), index, device=kl.device)
                kl += step.policy.kl(self.sampler.reference(step.latents, at, texts), self.kl)
        try:
            images = self.sampler.decode(step.next_latents)
        except NotFiniteError as error:
            raise NotFiniteError(f"{self.contender.name}: {error}") from error
        return images, kl if self.stochastic else None


def eight_bits(images: Tensor) -> Tensor:
    """Round images in [0, 1] to the values that a PNG of 8 bits a channel holds."""
    return (images.clamp(0, 1) * 255).round() / 255

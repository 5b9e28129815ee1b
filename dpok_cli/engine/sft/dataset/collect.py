"""The image set of supervised fine-tuning: drawn or read, scored, and kept for the next run."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dpok_cli.config import TrainSFTConfig
from dpok_cli.engine.distributed import all_gather_result, on_main, shard, unshard
from dpok_cli.engine.runs.folder import RunFolder
from dpok_cli.engine.runs.versions import note_versions
from dpok_cli.engine.sft.dataset.imagefolder import METADATA, is_own
from dpok_cli.engine.sft.dataset.sources import ImageSource, OwnFolder, Reference
from dpok_cli.engine.sft.dataset.store import ImageStore, Picture
from dpok_cli.engine.training.session import Session
from dpok_cli.errors import InputError, StopRequested
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.combined import Scores, WeightedReward
from dpok_cli.rewards.comparing import PER_IMAGE, refuse_comparing
from dpok_cli.rewards.spec import spec_of

#: Seconds between writes while existing images are scored.
WRITE_EVERY = 30


@dataclass(frozen=True)
class ImageSet:
    """M images to train on, on the CPU."""

    latents: Tensor  # (M, C, H, W), float32: x_0
    prompts: list[str]  # M
    scores: Scores  # of M
    evaluations: int  # of the denoiser, for drawing them
    folder: Path  # where they are kept

    def __len__(self) -> int:
        return len(self.prompts)


def collect(
    config: TrainSFTConfig,
    session: Session,
    reward: WeightedReward,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> ImageSet | None:
    """Return the images to train on; None if a stop was requested before all were ready.

    Images that are on disk are read; the others are drawn and scored batch by batch, and written at
    once. ``tell`` gets the number of images that are ready and that of all. Raises InputError for a
    folder that another model, sampler or prompts made, and for a reward that compares images.
    """
    refuse_comparing(reward, PER_IMAGE)
    given = Path(config.dataset) if config.dataset else None
    own_folder = given is not None and is_own(given)
    if session.run is None and (own_folder or given is None):
        raise InputError("--dataset: without a run folder the images need one: name a folder.")
    kept_with_run = session.run.path / "dataset" if session.run else Path()
    store = ImageStore(kept_with_run if own_folder or given is None else given)
    if session.run:
        _check_complete(config, session.run, kept_with_run, store, own_folder)
    source: ImageSource
    if own_folder and given:
        source = OwnFolder(given, session.model)
    else:
        seed = store.settings().get("seed", config.seed)
        source = Reference(config, session.sampler, session.conditioning, seed)
    shared = given is not None and not own_folder
    collector = _Collector(store, reward, session, config.sample_batch_size, shared, tell)
    if not collector.run(source):
        return None
    entries = store.entries[: len(source)]
    raw = {
        name: torch.tensor([entry["rewards"][spec_of(one)] for entry in entries])
        for name, (one, _) in reward.rewards.items()
    }
    prompts = [entry["text"] for entry in entries]
    latents, scores = store.latents(len(source)), reward.combine(raw)
    return ImageSet(latents, prompts, scores, source.evaluations, store.folder)


def _check_complete(
    config: TrainSFTConfig, run: RunFolder, kept_with_run: Path, store: ImageStore, own: bool
) -> None:
    """Raise InputError if a run that is resumed lacks images that it had."""
    lost = ""
    if not own and "folder" in ImageStore(kept_with_run).settings():
        lost = f"The image folder {config.dataset} is not there, or has no {METADATA}"
    elif run.has_checkpoints():
        store.read()
        if not store.entries or (not own and len(store.entries) < config.images):
            lost = f"{store.folder} has {len(store.entries)} images, fewer than the run trained on"
    if lost:
        raise InputError(
            f"{lost}. If it was moved, give --dataset its new place; if it is on another disk,"
            " mount that."
        )


@dataclass
class _Collector:
    """Fills a store, each rank with its shard; rank 0 writes."""

    store: ImageStore
    reward: WeightedReward
    session: Session
    batch_size: int
    shared: bool  # with other runs
    tell: Callable[[int, int], None]

    def __post_init__(self) -> None:
        self.accelerator, self.device = self.session.accelerator, self.session.model.device

    def run(self, source: ImageSource) -> bool:
        """Draw and score what is missing; returns whether the set is complete."""
        with on_main(partial(self.store.writing, source.settings), self.accelerator):
            if self.shared and self.accelerator.is_main_process:
                # A run's own images have the versions of the run.
                note_versions(self.store.folder, self.reward, self.session.warn)
            self.store.read()  # as rank 0 has repaired it
            return self._fill(source)

    def _fill(self, source: ImageSource) -> bool:
        rewards = {spec_of(one): one for one, _ in self.reward.rewards.values()}
        total, batch = len(source), self.batch_size * self.accelerator.num_processes
        while len(self.store.entries) < total:
            if self.session.should_stop():
                return False
            start = len(self.store.entries)
            rows = list(range(start, min(start + batch, total)))
            try:
                pictures = self._draw(source, rows, rewards)
            except StopRequested:
                return False
            self.store.append(pictures, write=self.accelerator.is_main_process)
            self.tell(len(self.store.entries), total)
        return all(self._score(key, one, total) for key, one in rewards.items())

    def _draw(
        self,
        source: ImageSource,
        rows: Sequence[int],
        rewards: dict[str, RewardModel],
    ) -> list[Picture]:
        """Draw and score the images of ``rows``, each rank its shard."""

        def mine() -> list[Picture]:
            pictures = source.take(shard(rows, self.accelerator))
            if pictures:
                pixels = torch.stack([picture.pixels for picture in pictures])
                prompts = [picture.entry["text"] for picture in pictures]
                for key, one in rewards.items():
                    scores = one.score(_images(pixels, self.device), prompts).tolist()
                    for picture, score in zip(pictures, scores, strict=True):
                        picture.entry.setdefault("rewards", {})[key] = score
            return pictures

        return unshard(all_gather_result(mine, self.accelerator))

    def _score(self, key: str, one: RewardModel, total: int) -> bool:
        """Score the images that this reward has not scored; returns False if a stop came."""
        entries, written = self.store.entries, time.monotonic()
        unseen = {row for row in range(total) if key not in entries[row]["rewards"]}
        batch = self.batch_size * self.accelerator.num_processes
        done, stopping = 0, False
        # In fixed batches, so that an interruption does not change what is scored together.
        for first in range(0, total, batch):
            rows = [row for row in range(first, first + batch) if row in unseen]
            if not rows:
                continue

            def mine(rows: list[int] = rows) -> list[float]:
                share = shard(rows, self.accelerator)
                if not share:
                    return []
                prompts = [entries[row]["text"] for row in share]
                return one.score(_images(self.store.pixels(share), self.device), prompts).tolist()

            scores = unshard(all_gather_result(mine, self.accelerator))
            for row, score in zip(rows, scores, strict=True):
                entries[row]["rewards"][key] = score
            done += len(rows)
            self.tell(done, len(unseen))
            stopping = self.session.should_stop()
            if stopping or done == len(unseen) or time.monotonic() - written > WRITE_EVERY:
                if self.accelerator.is_main_process:
                    self.store.write()
                written = time.monotonic()
            if stopping:
                break
        return not stopping


def _images(pixels: Tensor, device: torch.device) -> Tensor:
    """Read images from the disk, in the form that rewards take."""
    return pixels.to(device).float() / 255

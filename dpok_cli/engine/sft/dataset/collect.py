"""The image set of supervised fine-tuning: drawn or read, scored, and kept for the next run."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from dpok_cli.config import TrainSFTConfig
from dpok_cli.engine.bases.model import Conditioning, DiffusionModel
from dpok_cli.engine.distributed import all_or_error, anyone, own
from dpok_cli.engine.runs.folder import RunFolder
from dpok_cli.engine.sft.dataset.imagefolder import is_own
from dpok_cli.engine.sft.dataset.sources import ImageSource, OwnFolder, Reference
from dpok_cli.engine.sft.dataset.store import ImageStore, Picture
from dpok_cli.errors import InputError
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.combined import Scores, WeightedReward
from dpok_cli.rewards.spec import spec_of

#: Seconds between writing what has been scored of images that were there already.
WRITE_EVERY = 30

Item = TypeVar("Item")


@dataclass(frozen=True)
class ImageSet:
    """M images to train on, on the CPU."""

    latents: Tensor  # (M, C, H, W), float32: x_0
    prompts: list[str]  # M
    scores: Scores  # of M
    unet_rows: int  # UNet batch rows that drawing them takes, guidance counted twice
    folder: Path  # where they are kept

    def __len__(self) -> int:
        return len(self.prompts)


def collect(
    config: TrainSFTConfig,
    model: DiffusionModel,
    conditioning: Conditioning,
    reward: WeightedReward,
    run: RunFolder | None,
    accelerator: Accelerator,
    stop: Callable[[], bool] = lambda: False,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> ImageSet | None:
    """Return the images to train on; None if ``stop()`` said to end.

    What is on disk already is taken from there; the rest is drawn and scored, batch by batch, and
    kept at once. ``tell`` is called with how many images there are. ``conditioning`` is of the
    config's prompts. Raises InputError for a folder that another model, sampler or prompts made.
    """
    given = Path(config.dataset) if config.dataset else None
    own_folder = given is not None and is_own(given)
    if run is None and (own_folder or given is None):
        raise InputError("dataset: there is no run folder to keep images in, so name a folder.")
    kept_with_run = run.path / "dataset" if run else Path()
    store = ImageStore(kept_with_run if own_folder or given is None else given)
    source: ImageSource
    if own_folder and given:
        source = OwnFolder(given, model)
    else:
        seed = store.settings().get("seed", config.seed)
        source = Reference(config, model, conditioning, seed, accelerator.autocast)
    collector = _Collector(store, reward, accelerator, config.sample_batch_size, stop, tell)
    if not collector.run(source, model.device):
        return None
    entries = store.entries[: len(source)]
    raw = {
        name: torch.tensor([entry["rewards"][spec_of(one)] for entry in entries])
        for name, (one, _) in reward.rewards.items()
    }
    prompts = [entry["text"] for entry in entries]
    latents, scores = store.latents(len(source)), reward.combine(raw)
    return ImageSet(latents, prompts, scores, source.unet_rows, store.folder)


@dataclass
class _Collector:
    """The work of filling a store, shared between processes; the first one writes."""

    store: ImageStore
    reward: WeightedReward
    accelerator: Accelerator
    batch_size: int
    stop: Callable[[], bool]
    tell: Callable[[int, int], None]

    def run(self, source: ImageSource, device: torch.device) -> bool:
        """Draw and score what is missing; returns whether all of it is there."""
        with ExitStack() as lock:

            def begin() -> None:
                if self.accelerator.is_main_process:
                    lock.enter_context(self.store.locked())
                    self.store.begin(source.settings)

            all_or_error(begin, self.accelerator)
            self.store.read()  # what the first process has mended
            return self._fill(source, device)

    def _fill(self, source: ImageSource, device: torch.device) -> bool:
        rewards = {spec_of(one): one for one, _ in self.reward.rewards.values()}
        total, batch = len(source), self.batch_size * self.accelerator.num_processes
        while len(self.store.entries) < total:
            if anyone(bool(self.stop()), self.accelerator):
                return False
            start = len(self.store.entries)
            rows = list(range(start, min(start + batch, total)))
            pictures = self._draw(source, rows, rewards, device)
            self.store.append(pictures, write=self.accelerator.is_main_process)
            self.tell(len(self.store.entries), total)
        return all(self._score(key, one, total, device) for key, one in rewards.items())

    def _draw(
        self,
        source: ImageSource,
        rows: Sequence[int],
        rewards: dict[str, RewardModel],
        device: torch.device,
    ) -> list[Picture]:
        """Draw and score the images of ``rows``, each process its share."""

        def mine() -> list[Picture]:
            pictures = source.take(own(rows, self.accelerator))
            if pictures:
                pixels = torch.stack([picture.pixels for picture in pictures])
                prompts = [picture.entry["text"] for picture in pictures]
                for key, one in rewards.items():
                    scores = one.score(_images(pixels, device), prompts).tolist()
                    for picture, score in zip(pictures, scores, strict=True):
                        picture.entry.setdefault("rewards", {})[key] = score
            return pictures

        return _in_order(all_or_error(mine, self.accelerator))

    def _score(self, key: str, one: RewardModel, total: int, device: torch.device) -> bool:
        """Score the images that this reward has not seen yet; returns False if asked to stop."""
        entries, written = self.store.entries, time.monotonic()
        unseen = [row for row in range(total) if key not in entries[row]["rewards"]]
        batch = self.batch_size * self.accelerator.num_processes
        done, stopping = 0, False
        # By fixed batches, so that being cut off does not change which images are scored together.
        for first in range(0, total, batch):
            rows = [row for row in unseen if first <= row < first + batch]
            if not rows:
                continue

            def mine(rows: list[int] = rows) -> list[float]:
                share = own(rows, self.accelerator)
                if not share:
                    return []
                prompts = [entries[row]["text"] for row in share]
                return one.score(_images(self.store.pixels(share), device), prompts).tolist()

            scores = _in_order(all_or_error(mine, self.accelerator))
            for row, score in zip(rows, scores, strict=True):
                entries[row]["rewards"][key] = score
            done += len(rows)
            self.tell(done, len(unseen))
            stopping = anyone(bool(self.stop()), self.accelerator)
            if stopping or done == len(unseen) or time.monotonic() - written > WRITE_EVERY:
                if self.accelerator.is_main_process:
                    self.store.write()
                written = time.monotonic()
            if stopping:
                break
        return not stopping


def _images(pixels: Tensor, device: torch.device) -> Tensor:
    """Return images as rewards take them, of what is on disk."""
    return pixels.to(device).float() / 255


def _in_order(shares: Sequence[Sequence[Item]]) -> list[Item]:
    """Put the processes' shares (`processes.own`) of some rows together again."""
    longest = max(map(len, shares))
    return [share[place] for place in range(longest) for share in shares if place < len(share)]

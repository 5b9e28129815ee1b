"""Score images while the next ones are sampled, for rewards that do not use the accelerator."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.combined import WeightedReward


class RewardWorker:
    """Scores submitted batches and returns all scores in order.

    Rewards that compare images need all of a prompt at once, so they are left out. A reward that
    computes on another device than the sampler (``beside``) scores in one thread, in parallel with
    sampling; the others score in ``results``. The scores equal ``WeightedReward.score_alone`` on
    all images. Use it in a ``with`` block: leaving the block with an error cancels pending scores.
    """

    def __init__(self, reward: WeightedReward, device: str | torch.device):
        """``device`` is the device of the sampler."""
        self.reward = reward
        parts = {key: part for key, (part, _) in reward.rewards.items() if not part.compares}
        self.beside = {key: part for key, part in parts.items() if beside(part, device)}
        self.here = {key: part for key, part in parts.items() if key not in self.beside}
        self._pool = ThreadPoolExecutor(1, "rewards")
        self._forget()

    def submit(self, images: Tensor, prompts: list[str]) -> None:
        """Add RGB float images (B, 3, H, W) in [0, 1] and their B prompts; does not wait.

        Raises ``RewardError`` if an earlier batch has already failed.
        """
        for score in self._scores:
            if score.done():
                score.result()
        self._images.append(images)
        self._prompts += prompts
        if self.beside:
            # Copied here: a copy in the thread would wait for the next images on the device.
            copies = images.detach().cpu()
            self._scores.append(self._pool.submit(self._score, copies, list(prompts)))

    def results(self) -> dict[str, Tensor]:
        """Wait for the raw scores of all images since the last call, by the reward's name.

        Each is (N,), on the images' device. Raises ``RewardError`` with the name of the reward that
        failed (see ``RewardModel.score``).
        """
        try:
            images = torch.cat(self._images)
            raw = {key: self.reward.score_one(key, images, self._prompts) for key in self.here}
            batches = [score.result() for score in self._scores]
            for key in self.beside:
                raw[key] = torch.cat([batch[key] for batch in batches]).to(images.device)
        finally:
            self._give_up()
        return raw

    def close(self) -> None:
        """End the thread and cancel pending scores."""
        self._give_up()
        for part in self.beside.values():
            part.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _score(self, images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        return {key: self.reward.score_one(key, images, prompts) for key in self.beside}

    def _give_up(self) -> None:
        for score in self._scores:
            score.cancel()
        self._forget()

    def _forget(self) -> None:
        self._images: list[Tensor] = []
        self._prompts: list[str] = []
        self._scores: list[Future[dict[str, Tensor]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()


def beside(reward: RewardModel, device: str | torch.device) -> bool:
    """Whether a reward computes on another device than ``device`` and can run in parallel."""
    drawn_on_cpu = torch.device(device).type == "cpu"
    scored_on_cpu = torch.device(reward.device).type == "cpu"
    return not reward.needs_device or (scored_on_cpu and not drawn_on_cpu)

"""The reward ``http``: a reward in another process, environment or machine.

``dpok serve-reward`` serves any installed reward; ``dpok_cli.rewards.wire`` documents the format
for a reward that cannot be installed next to dpok.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Any

from dpok_cli import hookimpl
from dpok_cli.errors import RewardError
from dpok_cli.rewards.remote import Answer, RemoteReward, check_requests

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: The status of a request that is larger than the server accepts.
TOO_LARGE = 413


class Http(RemoteReward):
    """The score of a reward that is served at ``url``, for example by `dpok serve-reward`."""

    name = "http"
    batch_size = 256
    path = "/score"

    @dataclass(frozen=True)
    class Options:
        """Requests to ``url``: ``batch`` images per request, ``in_flight`` requests at a time.

        A request may take ``timeout`` seconds. A failed request is repeated with growing pauses,
        for up to ``retry`` seconds after its first failure. One that is too large for the server
        is sent in halves.
        """

        url: str
        batch: int = 8
        in_flight: int = 4
        timeout: float = 60.0
        retry: float = 120.0

        def __post_init__(self) -> None:
            check_requests(self.url, self.in_flight, self.timeout, self.retry)
            if self.batch < 1:
                raise ValueError("batch must be > 0")

    def __init__(self, options: Any = None, device: str | torch.device = "cpu"):
        super().__init__(options, device)
        self._batch = self.options.batch  # images in a request; fewer once one was too large

    def score_batch(self, images: Tensor, prompts: list[str]) -> Tensor:
        import torch

        batch = self._batch
        chunks = [slice(start, start + batch) for start in range(0, len(prompts), batch)]

        def ask(chunk: slice, stop: Event) -> list[float]:
            return self._ask(images[chunk], prompts[chunk], stop)

        answers = self.ask_all(ask, chunks)
        scores = [score for answer in answers for score in answer]
        return torch.tensor(scores, dtype=torch.float32)

    def _ask(self, images: Tensor, prompts: list[str], stop: Event) -> list[float]:
        """Return the scores; images that are too large for one request are sent in halves."""
        from dpok_cli.rewards.wire import pack

        answer = self.answer(pack(images, prompts), stop)
        if answer.status == TOO_LARGE and len(prompts) > 1:
            half = -(-len(prompts) // 2)
            self._batch = min(self._batch, half)
            parts = slice(half), slice(half, None)
            return [
                score for part in parts for score in self._ask(images[part], prompts[part], stop)
            ]
        return self._scores(answer, len(prompts))

    def _scores(self, answer: Answer, count: int) -> list[float]:
        if answer.status != 200:
            reason = answer.reason or "no reason given"
            alone = "; the request is a single image, so raise the server's limit"
            advice = alone if answer.status == TOO_LARGE else ""
            raise RewardError(f"{self.options.url} answered {answer.status}: {reason}{advice}")
        scores = answer.content.get("scores")
        if not isinstance(scores, list) or len(scores) != count:
            raise RewardError(f"{self.options.url} did not return a list of {count} scores")
        if not all(isinstance(score, int | float) for score in scores):
            raise RewardError(f"{self.options.url} returned scores that are not numbers")
        return scores


@hookimpl
def register_rewards(register):
    register(Http)

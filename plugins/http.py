"""The reward ``http``: a reward in another process, environment or machine.

``dpok serve-reward`` serves any installed reward; ``dpok_cli.rewards.wire`` documents the format
for a reward that cannot be installed next to dpok.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from threading import Event
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dpok_cli import RewardModel, hookimpl
from dpok_cli.errors import RewardError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: Statuses of a server that is starting, stopping or busy; the request is repeated.
PASSING = (429, 502, 503, 504)
#: The status of a request that is larger than the server accepts.
TOO_LARGE = 413
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds


class Http(RewardModel):
    """The score of a reward that is served at ``url``, for example by `dpok serve-reward`."""

    name = "http"
    batch_size = 256
    needs_device = False

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
            try:
                parts = urlsplit(self.url)
                usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
            except ValueError:  # the port is not a number, or too large
                usable = False
            if not usable:
                raise ValueError(f"url={self.url!r} must be of the form http://host:port")
            if min(self.batch, self.in_flight) < 1 or self.timeout <= 0 or self.retry < 0:
                raise ValueError("batch, in_flight and timeout must be > 0, and retry >= 0")

    def __init__(self, options: Any = None, device: str | torch.device = "cpu"):
        super().__init__(options, device)
        self._stop = Event()  # of the running score
        self._batch = self.options.batch  # images in a request; fewer once one was too large

    def stop(self) -> None:
        """Stop repeating failed requests; the score fails with the next failure."""
        self._stop.set()

    def score_batch(self, images: Tensor, prompts: list[str]) -> Tensor:
        import torch

        self._stop = stop = Event()
        batch = self._batch
        chunks = [slice(start, start + batch) for start in range(0, len(prompts), batch)]
        with ThreadPoolExecutor(self.options.in_flight) as pool:
            answers = [
                pool.submit(self._ask, images[chunk], prompts[chunk], stop) for chunk in chunks
            ]
            try:
                done, _ = wait(answers, return_when=FIRST_EXCEPTION)
                for answer in done:
                    answer.result()  # raises its error
            finally:
                stop.set()  # after a final failure the others stop retrying
                pool.shutdown(cancel_futures=True)
        scores = [score for answer in answers for score in answer.result()]
        return torch.tensor(scores, dtype=torch.float32)

    def _ask(self, images: Tensor, prompts: list[str], stop: Event) -> list[float]:
        """Return the scores; images that are too large for one request are sent in halves."""
        from dpok_cli.rewards.wire import pack

        status, answer = self._answer(pack(images, prompts), stop)
        if status == TOO_LARGE and len(prompts) > 1:
            half = -(-len(prompts) // 2)
            self._batch = min(self._batch, half)
            parts = slice(half), slice(half, None)
            return [
                score for part in parts for score in self._ask(images[part], prompts[part], stop)
            ]
        return self._scores(status, answer, len(prompts))

    def _answer(self, body: bytes, stop: Event) -> tuple[int, bytes]:
        """Send one request until it is answered; raises ``RewardError`` if it never is."""
        pause, deadline = FIRST_PAUSE, None
        while True:
            try:
                status, answer = self._post(body)
                if status not in PASSING:
                    return status, answer
                why = f"answered {status}"
            except (OSError, HTTPException) as error:
                why = f"{type(error).__name__}: {error}"
            deadline = deadline or time.monotonic() + self.options.retry
            if stop.is_set() or time.monotonic() + pause > deadline:
                raise RewardError(
                    f"{self.options.url} did not answer for {self.options.retry:g} s ({why});"
                    " start its server again, or allow more time with retry=SECONDS"
                )
            stop.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _post(self, body: bytes) -> tuple[int, bytes]:
        parts = urlsplit(self.options.url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        assert parts.hostname
        connection = kind(parts.hostname, parts.port, timeout=self.options.timeout)
        try:
            headers = {"Content-Type": "application/json"}
            # A server that refuses a request may answer before it has read all of it.
            with suppress(BrokenPipeError, ConnectionResetError, ConnectionAbortedError):
                connection.request("POST", f"{parts.path.rstrip('/')}/score", body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _scores(self, status: int, body: bytes, count: int) -> list[float]:
        try:
            answer: Any = json.loads(body)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            answer = {}
        if status != 200:
            reason = answer.get("error", "no reason given")
            alone = "; the request is a single image, so raise the server's limit"
            advice = alone if status == TOO_LARGE else ""
            raise RewardError(f"{self.options.url} answered {status}: {reason}{advice}")
        scores = answer.get("scores")
        if not isinstance(scores, list) or len(scores) != count:
            raise RewardError(f"{self.options.url} did not return a list of {count} scores")
        if not all(isinstance(score, int | float) for score in scores):
            raise RewardError(f"{self.options.url} returned scores that are not numbers")
        return scores


@hookimpl
def register_rewards(register):
    register(Http)

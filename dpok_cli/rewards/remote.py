"""Requests of rewards that a server scores: some in flight, each repeated until it is answered."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from threading import Event
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar
from urllib.parse import urlsplit

from dpok_cli.errors import RewardError
from dpok_cli.rewards.base import RewardModel
from dpok_cli.strict_json import dumps

if TYPE_CHECKING:
    import torch

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds

Item = TypeVar("Item")
Value = TypeVar("Value")


class Answer(NamedTuple):
    """What a server answered."""

    status: int
    body: bytes
    pause: float = 0.0  # seconds that it asks to wait before the next request

    @property
    def content(self) -> dict[str, Any]:
        """The JSON object in the body; empty if there is none."""
        try:
            content = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    @property
    def reason(self) -> str:
        """What the body of a refusal says, in the forms in use; empty if it is in none."""
        error = self.content.get("error", self.content.get("detail", self.content.get("message")))
        if isinstance(error, dict):
            error = error.get("message")
        return error if isinstance(error, str) else ""


def as_body(content: Any) -> bytes:
    """Return JSON that any server reads."""
    return dumps(content).encode()


def check_requests(url: str, in_flight: int, timeout: float, retry: float) -> None:
    """Raise ``ValueError`` for options of a `RemoteReward` that cannot be used."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # the port is not a number, or too large
        usable = False
    if not usable:
        raise ValueError(f"url={url!r} must be of the form http://host:port")
    if in_flight < 1 or timeout <= 0 or retry < 0:
        raise ValueError("in_flight and timeout must be > 0, and retry >= 0")


class RemoteReward(RewardModel):
    """A reward that asks the server at the option ``url``.

    ``in_flight`` requests run at a time. A request may take ``timeout`` seconds; one that fails is
    repeated with growing pauses, for up to ``retry`` seconds after its first failure.
    """

    needs_device = False
    #: Where requests go, below ``url``.
    path: ClassVar[str]
    #: Statuses of a server that is starting, stopping or busy; the request is repeated.
    passing: ClassVar[tuple[int, ...]] = (429, 502, 503, 504)

    def __init__(self, options: Any = None, device: str | torch.device = "cpu"):
        super().__init__(options, device)
        self._stop = Event()  # of the running score

    def stop(self) -> None:
        """Stop repeating failed requests; the score fails with the next failure."""
        self._stop.set()

    def headers(self) -> dict[str, str]:
        """Return further headers of each request."""
        return {}

    def ask_all(self, ask: Callable[[Item, Event], Value], items: Iterable[Item]) -> list[Value]:
        """Return ``ask(item, stop)`` of each item in order; the first error stops the others."""
        self._stop = stop = Event()
        with ThreadPoolExecutor(self.options.in_flight) as pool:
            answers = [pool.submit(ask, item, stop) for item in items]
            try:
                done, _ = wait(answers, return_when=FIRST_EXCEPTION)
                for answer in done:
                    answer.result()  # raises its error
            finally:
                stop.set()  # after a final failure the others stop retrying
                pool.shutdown(cancel_futures=True)
        return [answer.result() for answer in answers]

    def answer(self, body: bytes, stop: Event) -> Answer:
        """Send one request until it is answered; raises ``RewardError`` if it never is."""
        pause, deadline = FIRST_PAUSE, None
        while True:
            asked = 0.0
            try:
                answer = self._post(body)
                if answer.status not in self.passing:
                    return answer
                asked = answer.pause
                why = ": ".join(filter(None, (f"answered {answer.status}", answer.reason)))
                why += f", and asks to wait {asked:g} s" if asked else ""
            except (OSError, HTTPException) as error:
                why = f"{type(error).__name__}: {error}"
            deadline = deadline or time.monotonic() + self.options.retry
            if stop.is_set() or time.monotonic() + max(pause, asked) > deadline:
                raise RewardError(
                    f"{self.options.url} did not answer for {self.options.retry:g} s ({why});"
                    " start its server again, or allow more time with retry=SECONDS"
                )
            stop.wait(max(pause, asked))
            pause = min(2 * pause, LONGEST_PAUSE)

    def _post(self, body: bytes) -> Answer:
        parts = urlsplit(self.options.url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        assert parts.hostname
        connection = kind(parts.hostname, parts.port, timeout=self.options.timeout)
        try:
            headers = {"Content-Type": "application/json"} | self.headers()
            target = parts.path.rstrip("/") + self.path + (f"?{parts.query}" if parts.query else "")
            # A server that refuses a request may answer before it has read all of it.
            with suppress(BrokenPipeError, ConnectionResetError, ConnectionAbortedError):
                connection.request("POST", target, body, headers)
            response = connection.getresponse()
            return Answer(response.status, response.read(), _seconds(response.headers))
        finally:
            connection.close()


def _seconds(headers: Any) -> float:
    """Return the seconds of a Retry-After header; 0 without one, and for a date."""
    value = headers.get("Retry-After", "")
    return float(value) if value.isascii() and value.isdigit() else 0.0

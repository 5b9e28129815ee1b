"""Serve a reward over HTTP for the reward ``http``: POST to ``/score``, format in ``wire``."""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any

from dpok_cli.errors import RewardError
from dpok_cli.rewards.combined import WeightedReward
from dpok_cli.rewards.wire import MAX_PIXELS, TooLarge, unpack
from dpok_cli.strict_json import dumps

#: The longest body, in bytes, that is read to its end although it is refused.
DISCARDED = 2**30


class RewardServer(ThreadingHTTPServer):
    """Answers POST ``/score`` with the weighted sum, and GET ``/`` with the rewards' names.

    Requests are read in parallel, then decoded and scored one after another. An invalid request is
    answered with 4xx (413 for one of more than ``max_bytes`` or ``max_pixels``), a failing reward
    with 500, each with ``{"error": ...}``; neither ends the server.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        host: str,
        port: int,
        reward: WeightedReward,
        max_bytes: int,
        max_pixels: int = MAX_PIXELS,
    ):
        self.reward, self.max_bytes, self.max_pixels = reward, max_bytes, max_pixels
        self.lock = Lock()
        super().__init__((host, port), _Handler)

    def score(self, body: bytes) -> list[float]:
        """Raises ``ValueError`` if the body is invalid, ``RewardError`` if the reward fails."""
        with self.lock:  # so that only one request's pixels are in memory
            images, prompts = unpack(body, self.max_pixels)
            scores: list[float] = self.reward.score(images, prompts).total.tolist()
        return scores

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnected."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: RewardServer
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds until a stalled client is dropped

    def do_GET(self) -> None:
        if self.path == "/":
            self._answer(200, {"rewards": self.server.reward.names})
        else:
            self._answer(404, {"error": "only / and /score exist"})

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if self.path.rstrip("/") != "/score":
            return self._refuse(404, "only / and /score exist")
        if not (length.isascii() and length.isdigit()):
            return self._refuse(411, "the request needs a Content-Length")
        if len(length) > 12 or int(length) > self.server.max_bytes:
            size = f"{int(length) / 1e6:.2f} MB" if len(length) < 13 else "too many bytes"
            most = f"{self.server.max_bytes / 1e6:g} MB (--max-megabytes)"
            self._refuse(413, f"the request has {size}, and the server accepts {most}")
            return self._discard(length)
        body = self.rfile.read(int(length))
        try:
            self._answer(200, {"scores": self.server.score(body)})
        except TooLarge as error:
            self._answer(413, {"error": str(error)})
        except ValueError as error:
            self._answer(400, {"error": str(error)})
        except RewardError as error:
            self._answer(500, {"error": str(error)})

    def _refuse(self, status: int, why: str) -> None:
        """Answer without reading the body, and close the connection."""
        self.close_connection = True
        self._answer(status, {"error": why})

    def _discard(self, length: str) -> None:
        """Read a body to its end, if that is near: a client that still sends reads no answer."""
        left = int(length) if len(length) < 13 else DISCARDED + 1
        while 0 < left <= DISCARDED and (part := self.rfile.read(min(left, 2**16))):
            left -= len(part)

    def _answer(self, status: int, message: dict[str, Any]) -> None:
        body = dumps(message).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Do not log requests."""

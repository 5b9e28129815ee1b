"""Serve a reward over HTTP for the reward ``http``: POST to ``/score``, format in ``wire``."""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any

from dpok_cli.errors import RewardError
from dpok_cli.rewards.combined import WeightedReward
from dpok_cli.rewards.wire import unpack
from dpok_cli.strict_json import dumps


class RewardServer(ThreadingHTTPServer):
    """Answers POST ``/score`` with the weighted sum, and GET ``/`` with the rewards' names.

    Requests are read in parallel and scored one after another. An invalid request is answered with
    4xx, a failing reward with 500, each with ``{"error": ...}``; neither ends the server.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, reward: WeightedReward, max_bytes: int):
        self.reward, self.max_bytes = reward, max_bytes
        self.lock = Lock()
        super().__init__((host, port), _Handler)

    def score(self, body: bytes) -> list[float]:
        """Raises ``ValueError`` if the body is invalid, ``RewardError`` if the reward fails."""
        images, prompts = unpack(body)
        with self.lock:
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
            return self._refuse(413, f"the request is larger than {self.server.max_bytes} bytes")
        body = self.rfile.read(int(length))
        try:
            self._answer(200, {"scores": self.server.score(body)})
        except ValueError as error:
            self._answer(400, {"error": str(error)})
        except RewardError as error:
            self._answer(500, {"error": str(error)})

    def _refuse(self, status: int, why: str) -> None:
        """Answer without reading the body, and close the connection."""
        self.close_connection = True
        self._answer(status, {"error": why})

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

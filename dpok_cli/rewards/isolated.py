"""Rewards in an environment of their own: the class to derive from, and the worker it asks."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import finalize

from dpok_cli.errors import RewardError
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.environment import Environment, python_in
from dpok_cli.strict_json import dumps

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: No variables or packages of the user's, and no warnings of old libraries.
FLAGS = "-I", "-W", "ignore"
INSIDE = Path(__file__).with_name("inside.py")
#: Seconds that a worker has to end by itself when dpok ends.
GRACE = 5


class EnvironmentReward(RewardModel):
    """A reward whose scores a worker computes, in a virtual environment with its own libraries.

    A subclass defines ``name``, ``environment`` and ``worker``, and no ``score_batch``. `dpok
    rewards install NAME` builds the environment.
    """

    #: What the worker needs.
    environment: ClassVar[Environment]
    #: The file that runs there, which imports nothing of dpok; ``inside`` says what it defines.
    worker: ClassVar[Path]

    def __init__(self, options: Any = None, device: str | torch.device = "cpu"):
        super().__init__(options, device)
        self._worker: _Worker | None = None
        self._stop = Event()  # of the running score

    def load(self) -> None:
        self._stop = Event()
        self._ask(None)

    def score_batch(self, images: Tensor, prompts: list[str]) -> Tensor:
        import torch

        from dpok_cli.rewards.wire import pack

        self._stop = Event()
        scores = self._ask(pack(images, prompts)).get("scores")
        if not isinstance(scores, list) or len(scores) != len(prompts):
            raise RewardError(f"its worker did not return a list of {len(prompts)} scores")
        return torch.tensor(scores, dtype=torch.float32, device=self.device)

    def stop(self) -> None:
        """End the worker if it scores; the next score starts another."""
        self._stop.set()
        if (worker := self._worker) and worker.is_busy:
            worker.kill()

    def _ask(self, request: bytes | None) -> dict[str, Any]:
        """Return a worker's answer to a request; None only has it load.

        If the worker dies, another is started, and asked the same. Raises RewardError with the
        worker's error, or if the second one dies too.
        """
        for is_last in (False, True):
            try:
                if self._worker is None:
                    self._worker = self._start()
                return self._worker.ask(request) if request else {}
            except _Ended as error:
                self._worker = None
                if self._stop.is_set():
                    raise RewardError("was stopped") from None
                if is_last:
                    raise RewardError(f"its worker {error}, twice in a row") from None
                if sys.stderr:
                    print(f"{self.name}: its worker {error}; starting another.", file=sys.stderr)
            except RewardError:
                raise
            except BaseException:  # an interrupt: the answer would be taken for the next one's
                if self._worker:
                    self._worker.kill()
                self._worker = None
                raise
        raise AssertionError

    def _start(self) -> _Worker:
        """Return a new worker that has loaded the reward."""
        self.environment.check(self.name)
        python = python_in(self.environment.folder(self.name))
        options = dumps(dataclasses.asdict(self.options))
        worker = _Worker([python, *FLAGS, INSIDE, self.worker, options, str(self.device)])
        finalize(self, worker.close)  # also when Python ends
        try:
            worker.answer()
        except BaseException:
            worker.kill()
            raise
        return worker


class _Ended(Exception):
    """The worker has ended without an answer; says how."""


class _Worker:
    """A process in the environment. It ends when its stdin closes, at the latest with this one."""

    def __init__(self, command: Sequence[str | Path]):
        # In its own session, it is not interrupted with dpok, which may score to the round's end.
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        self.is_busy = False

    def ask(self, request: bytes) -> dict[str, Any]:
        """Return the answer to a request; raises as `answer` does."""
        assert self.process.stdin
        with suppress(OSError):  # a broken pipe: it has ended, or ends
            self.process.stdin.write(request + b"\n")
            self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Wait for an answer; raises ``_Ended``, and ``RewardError`` with an error in it."""
        assert self.process.stdout
        self.is_busy = True
        try:
            line = self.process.stdout.readline()
        finally:
            self.is_busy = False
        if not line.endswith(b"\n"):
            raise _Ended(self._how())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RewardError(answer["error"])
        return answer

    def kill(self) -> None:
        """End the process at once, with those that it started."""
        if self.process.poll() is not None:
            return
        if hasattr(os, "killpg"):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.kill()

    def close(self) -> None:
        """End the process, and wait until it has ended."""
        assert self.process.stdin
        assert self.process.stdout
        with suppress(OSError):  # what is left in the buffer
            self.process.stdin.close()
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.kill()
            self.process.wait()

    def _how(self) -> str:
        self.close()
        code = self.process.returncode
        if code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

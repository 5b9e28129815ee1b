"""The folder that a soak works in: what it holds, and the processes that work on it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.processes import Process

if TYPE_CHECKING:
    from soak.actions import Action

#: Seconds after which a command hangs.
LONG = 240
#: What is not of a run: pipes, the streams' files, and where libraries keep what they found out.
HIDDEN = (".streams", ".tmp", "home/.cache", "home/.config")

#: A folder's files by their paths, with a digest; None for a folder.
Tree = Mapping[str, str | None]


@dataclass
class Streams:
    """Where stdout and stderr go: "" is a file, "closed", "full" a full disk, "broken" a pipe whose
    reader leaves after ``leaves`` seconds."""

    out: str = ""
    err: str = ""
    leaves: float = 0.0

    def __str__(self) -> str:
        shell = {"": "", "closed": "&-", "full": "/dev/full", "broken": f"(left:{self.leaves:.1f})"}
        both = ((">", self.out), ("2>", self.err))
        return " ".join(sign + shell[kind] for sign, kind in both if kind)


class Command(Process):
    """One command line that runs, with its streams and the signals that it will get."""

    def __init__(self, action: Action, world: World, number: int):
        self.action, self.sent = action, [False] * len(action.signals)
        self.began = time.monotonic()
        self._readers: dict[int, int] = {}
        output = world.folder / ".streams" / str(number)
        output.mkdir(parents=True, exist_ok=True)
        arguments = ["-m", "dpok_cli", *action.arguments]
        super().__init__(arguments, world.folder, world.environment(action), output)

    def _start(self, arguments, folder, environment):
        streams = self.action.streams
        self._out = self._stream(1, streams.out, self._out)
        self._err = self._stream(2, streams.err, self._err)
        super()._start(arguments, folder, environment)

    def _stream(self, number: int, kind: str, file: Path) -> Path | None:
        file.unlink(missing_ok=True)
        if kind == "broken":
            os.mkfifo(file)
            self._readers[number] = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
        return {"closed": None, "full": Path("/dev/full")}.get(kind, file)

    def go_on(self) -> bool:
        """Send what is due; returns whether the command still runs."""
        now = time.monotonic() - self.began
        for number, (delay, which) in enumerate(self.action.signals):
            if now >= delay and not self.sent[number]:
                self.sent[number] = True
                self.send(which)
        for number in list(self._readers):
            if self.code is not None or (now >= self.action.streams.leaves and self._has(number)):
                os.close(self._readers.pop(number))
        return self.code is None

    def _has(self, number: int) -> bool:
        """Whether the other end of a pipe is open already, so that nothing waits for a reader."""
        file = self._out if number == 1 else self._err
        with suppress(OSError):
            return Path(f"/proc/{self.pid}/fd/{number}").readlink() == file
        return False

    @property
    def out(self) -> str:
        return "" if self.action.streams.out else super().out

    @property
    def err(self) -> str:
        return "" if self.action.streams.err else super().err

    @property
    def late(self) -> bool:
        last = max([0.0, *(delay for delay, _ in self.action.signals)])
        return time.monotonic() - self.began > last + LONG


@dataclass
class World:
    """A folder with runs, images and evaluations, and all that is known of it."""

    folder: Path
    model: Path
    started: int = 0
    #: Folders that a killed command may have left with temporary files and half a last line.
    torn: set[str] = field(default_factory=set)

    def environment(self, action: Action) -> dict[str, str]:
        (self.folder / ".tmp").mkdir(exist_ok=True)
        (self.folder / "home").mkdir(exist_ok=True)
        own = {"HOME": self.folder / "home", "TMPDIR": self.folder / ".tmp", "COLUMNS": "200"}
        return os.environ | {key: str(value) for key, value in own.items()} | action.environment

    def path(self, text: str) -> Path:
        """Return where a path as a user writes it is, which may begin with a tilde."""
        home = self.folder / "home"
        path = home / text[2:] if text.startswith("~/") else self.folder / text
        return Path(os.path.normpath(path))

    def shown(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def tree(self) -> dict[str, str | None]:
        found: dict[str, str | None] = {}
        for path in self.folder.rglob("*"):
            name = self.shown(path)
            if name == "home" or any((name + "/").startswith(f"{top}/") for top in HIDDEN):
                continue
            with suppress(FileNotFoundError):  # by a command that still ends
                whole = path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest()
                found[name] = whole or None
        return found

    def remove(self, place: str) -> None:
        shutil.rmtree(self.path(place), ignore_errors=True)

    def run(self, actions: Sequence[Action]) -> list[Command]:
        """Run commands at once until all have ended; those that hang are killed."""
        commands = []
        for action in actions:
            commands.append(Command(action, self, self.started))
            self.started += 1
            time.sleep(action.pause)
        while [each for each in commands if each.go_on()]:
            for each in commands:
                if each.late:
                    each.action.hangs = True
                    each.send(signal.SIGKILL)
            time.sleep(0.01)
        return commands


def config_of(run: Path) -> dict[str, Any] | None:
    """Return a run's settings, None if there is no such run."""
    try:
        return tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def command_of(run: Path) -> str | None:
    """Return the command that made a run, if that is known."""
    try:
        return json.loads((run / "run.json").read_text(encoding="utf-8"))["command"]
    except (OSError, ValueError, KeyError):
        return None


def records(file: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a file of JSON, which a live command may write to."""
    text = file.read_text("utf-8") if file.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def is_trained(run: Path) -> bool:
    """Whether a run has an adapter that can be used."""
    return config_of(run) is not None and any((run / "adapter").glob("[!.]*.safetensors"))

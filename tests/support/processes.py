"""Python processes that start fast: forks of one that has imported torch and the engine already.

A fresh process spends six seconds of a core on these imports. Where the start itself is tested, or
another program starts the processes, ``fresh=True`` takes a real one.
"""

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from support.waiting import PATIENCE, wait_for

IMPORTED = [
    "dpok_cli.cli",
    "dpok_cli.rewards.serve",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "matplotlib.figure",
    "peft",
    "tensorboard",
    "torch.distributed.run",
    "torch.utils.tensorboard",
    "transformers.models.clip.modeling_clip",
]
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(IMPORTED)


class Process:
    """A running Python; its stdout and stderr go to files, which can be read at any time."""

    def __init__(
        self, arguments: list[str], folder: Path, environment: Mapping[str, str], output: Path
    ):
        #: None closes the stream.
        self._out: Path | None = output / "out"
        self._err: Path | None = output / "err"
        self._start(arguments, folder, environment)

    def _start(self, arguments: list[str], folder: Path, environment: Mapping[str, str]) -> None:
        streams = [each and str(each) for each in (self._out, self._err)]
        task = (arguments, str(folder), dict(environment), *streams)
        self._process = _forks.Process(target=_run, args=task, daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid
        return self._process.pid

    @property
    def code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    @property
    def out(self) -> str:
        return _text(self._out)

    @property
    def err(self) -> str:
        return _text(self._err)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait for the end and return the exit code."""
        try:
            wait_for(lambda: self.code is not None, timeout)
        except TimeoutError:
            raise AssertionError(f"still running: {self.out}{self.err}") from None
        assert self.code is not None
        return self.code

    def wait_for_line(self, start: str) -> str:
        """Wait for a whole line of stderr or stdout that starts like this, and return it."""

        def found() -> str | None:
            lines = [*self.err.splitlines(keepends=True), *self.out.splitlines(keepends=True)]
            whole = (line for line in lines if line.startswith(start) and line.endswith("\n"))
            if line := next(whole, None):
                return line
            assert self.code is None, f"ended with {self.code}: {self.out}{self.err}"
            return None

        return wait_for(found)

    def send(self, number: signal.Signals) -> None:
        if self.code is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, if it still runs, and wait until it is gone."""
        self.send(signal.SIGKILL)
        self.wait()


class FreshProcess(Process):
    """The same as a program of its own."""

    def _start(self, arguments: list[str], folder: Path, environment: Mapping[str, str]) -> None:
        assert self._out
        assert self._err
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._program = subprocess.Popen(
                [sys.executable, *arguments], cwd=folder, env=environment, stdout=out, stderr=err
            )

    @property
    def pid(self) -> int:
        return self._program.pid

    @property
    def code(self) -> int | None:
        return self._program.poll()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def ranks(count: int) -> list[dict[str, str]]:
    """Return the environment of each of ``count`` processes that train together on one machine.

    As launchers set it; a lone process gets none.
    """
    if count == 1:
        return [{}]
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": free_port()}
    return [
        {key: str(value) for key, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        | {"MASTER_ADDR": "127.0.0.1"}
        for rank in range(count)
    ]


def _text(file: Path | None) -> str:
    return file.read_text("utf-8", errors="replace") if file and file.is_file() else ""


def _run(
    arguments: list[str],
    folder: str,
    environment: dict[str, str],
    out: str | None,
    err: str | None,
) -> None:
    """Be ``python *arguments`` in a folder: ``-m MODULE``, ``-c CODE`` or a file."""
    for number, file in ((1, out), (2, err)):
        if file:
            stream = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(stream, number)
            os.close(stream)
        else:
            os.close(number)
    # Buffered as a program's own are, whatever the process that this one is a fork of has.
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False) if out else None  # noqa: SIM115
    escaped = "backslashreplace"
    sys.stderr = open(2, "w", 1, "utf-8", escaped, closefd=False) if err else None  # noqa: SIM115
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    try:
        match arguments:
            case ["-m", module, *rest]:
                sys.argv = [module, *rest]
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            case ["-c", code, *rest]:
                sys.argv = ["-c", *rest]
                exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
            case [file, *rest]:
                sys.argv = [file, *rest]
                runpy.run_path(file, run_name="__main__")
    finally:
        _flush()


def _flush() -> None:
    """Write what stdout still holds, as an interpreter that ends does."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError as error:
        os.write(2, f"Exception ignored while flushing sys.stdout: {error}\n".encode())
        sys.stdout = None
        raise SystemExit(120) from None

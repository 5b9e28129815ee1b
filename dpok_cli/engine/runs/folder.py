"""The run folder: what a run was asked, what it measured and what it made."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from dpok_cli.config import TrainingConfig, to_toml
from dpok_cli.errors import InputError


class RunFolder:
    """``runs/NAME``: config.toml, metrics.jsonl, summary.json and the folders below."""

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "config.toml"
        self.metrics = path / "metrics.jsonl"
        self.summary = path / "summary.json"
        self.checkpoints = path / "checkpoints"
        self.adapter = path / "adapter"
        self.samples = path / "samples"
        self.plots = path / "plots"

    @staticmethod
    def check_free(config: TrainingConfig) -> None:
        """Raise InputError if the config names a run folder that is there and not empty."""
        path = Path(config.runs_dir) / config.name
        if config.name and path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(f"{path} is there already. Give --name another name, or remove it.")

    @classmethod
    def create(cls, config: TrainingConfig, command: str) -> "RunFolder":
        """Make the folder and write the resolved config; a run without a name gets the date's.

        Raises InputError if it is there already, or cannot be made.
        """
        cls.check_free(config)
        try:
            path = _make(Path(config.runs_dir), config.name or f"{_now()}-{command}", config.name)
        except OSError as error:
            raise InputError(
                f"Cannot make a run folder in {config.runs_dir}: {error.strerror}. Give another"
                " --runs-dir."
            ) from error
        run = cls(path)
        write_atomically(run.config, to_toml(config))
        return run

    def remove_if_unused(self) -> None:
        """Remove the folder of a run that ended before it made anything."""
        if self.metrics.exists() or self.has_checkpoints() or any(self.path.rglob("*.png")):
            return
        shutil.rmtree(self.path)

    @classmethod
    def open(cls, run: str, runs_dir: str = "runs") -> "RunFolder":
        """Open a run by its path, by its name in ``runs_dir``, or the newest as "latest"."""
        if run == "latest":
            found = sorted(
                Path(runs_dir).glob("*/config.toml"), key=lambda file: file.stat().st_mtime
            )
            if not found:
                raise InputError(f"There is no run in {runs_dir} yet. Train one: dpok train-rl.")
            return cls(found[-1].parent)
        for path in (Path(run), Path(runs_dir) / run):
            if (path / "config.toml").is_file():
                return cls(path)
        raise InputError(f"There is no run {run} (no config.toml in it), nor one in {runs_dir}.")

    def has_checkpoints(self) -> bool:
        """Whether there is something to go on from; needs no torch, as `checkpoint` does."""
        return any(self.checkpoints.glob("[0-9]*"))

    def append(self, metrics: dict[str, float]) -> None:
        """Add one line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")

    def history(self) -> list[dict[str, float]]:
        """Return the lines of metrics.jsonl; a last one that was cut off does not count.

        Raises InputError for a line that is no record.
        """
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_text("utf-8", errors="replace").split("\n")[:-1]
        records = []
        for number, line in enumerate(lines, 1):
            try:
                records.append(json.loads(line))
                number_of(records[-1])
            except (ValueError, KeyError, TypeError, RecursionError):
                raise InputError(
                    f"{self.metrics}, line {number}, is damaged: remove that line."
                ) from None
        return records

    def cut(self, number: int) -> None:
        """Drop the metrics of all that came after round (or step) ``number``."""
        if self.metrics.exists():
            kept = [record for record in self.history() if number_of(record) <= number]
            write_atomically(self.metrics, "".join(f"{json.dumps(line)}\n" for line in kept))

    def read_config(self) -> dict[str, Any]:
        """Return config.toml."""
        import tomllib

        try:
            return tomllib.loads(self.config.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{self.config} cannot be read: {error}.") from error

    def write_summary(self, summary: dict[str, Any]) -> None:
        write_atomically(self.summary, json.dumps(summary, indent=2) + "\n")


def number_of(record: dict[str, float]) -> float:
    """Return which round (RL) or step (SFT) a line of metrics.jsonl is of."""
    return record["step"] if "step" in record else record["round"]


def write_atomically(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)


def _now() -> str:
    return time.strftime("%Y%m%d-%H%M%S")


def _make(runs: Path, name: str, chosen: str) -> Path:
    """Make the folder; a dated name that is taken (two runs in a second) gets a number."""
    runs.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = runs / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir(exist_ok=bool(chosen))
            return path
        except FileExistsError:
            number += 1

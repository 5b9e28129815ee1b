"""The run folder: the settings, metrics, checkpoints and results of a training."""

import json
from pathlib import Path
from typing import Any

from dpok_cli import __version__
from dpok_cli.config import TrainingConfig, to_toml
from dpok_cli.engine.runs.files import dated_folder, new_folders, remove, remove_empty, write_text
from dpok_cli.engine.runs.lock import check_free, filling
from dpok_cli.errors import InputError
from dpok_cli.inputs import at_home, read_text
from dpok_cli.strict_json import dumps, numbers

#: The newest run, where a run is named.
LATEST = "latest"
#: What these names mean to commands; no run may have them.
RESERVED = {LATEST: "the newest run", "base": "the model without an adapter"}


class RunFolder:
    """``runs/NAME``: run.json, config.toml, metrics.jsonl, summary.json and the folders below."""

    def __init__(self, path: Path):
        self.path = path
        self.record = path / "run.json"  # which command and version made the run
        self.config = path / "config.toml"
        self.metrics = path / "metrics.jsonl"
        self.summary = path / "summary.json"
        self.checkpoints = path / "checkpoints"
        self.adapter = path / "adapter"
        self.last_adapter = path / "last_adapter"  # with patience; adapter/ is the best one
        self.initial_adapter = path / "initial_adapter"  # a copy of init_adapter
        self.samples = path / "samples"
        self.plots = path / "plots"
        self.tracker = path / "tracker.json"  # the run's name and id at its tracker
        #: Folders that were made for this one.
        self._around: list[Path] = []

    @staticmethod
    def check_free(config: TrainingConfig) -> None:
        """Raise InputError if the config names a run folder that exists and has files.

        Likewise for a name that a command line could not name the run by.
        """
        _check_name(config.name)
        if config.name:
            check_free(Path(config.runs_dir) / config.name, "--name")

    @classmethod
    def create(cls, config: TrainingConfig) -> "RunFolder":
        """Make the folder, with run.json and config.toml; a run without a name gets a dated one.

        Raises InputError if it exists already, or cannot be made.
        """
        cls.check_free(config)
        runs = Path(config.runs_dir)
        around = new_folders(runs)
        try:
            runs.mkdir(parents=True, exist_ok=True)
            path = runs / config.name if config.name else dated_folder(runs, f"-{config.command}")
        except OSError as error:
            raise InputError(
                f"Cannot make a run folder in {runs}: {error.strerror}. Give another --runs-dir."
            ) from error
        run = cls(path)
        run._around = around
        with filling(path, "--name"):
            made = {"command": config.command, "dpok": __version__}
            write_text(run.record, dumps(made) + "\n")
            run.write_config(config)
        return run

    def remove_if_unused(self) -> None:
        """Remove the folder of a run that ended before it wrote any result."""
        if self.metrics.exists() or self.has_checkpoints() or any(self.path.rglob("*.png")):
            return
        remove(self.path)
        remove_empty(self._around)

    @classmethod
    def open(cls, run: str, runs_dir: str = "runs") -> "RunFolder":
        """Open a run by its path, by its name in ``runs_dir``, or the newest as "latest"."""
        runs_dir = at_home(runs_dir)
        if run == LATEST:
            found = sorted(
                Path(runs_dir).glob("*/config.toml"), key=lambda file: file.stat().st_mtime
            )
            if not found:
                raise InputError(f"There is no run in {runs_dir} yet. Train one: dpok train-rl.")
            return cls(found[-1].parent)
        if found_run := cls.find(run, runs_dir):
            return found_run
        raise InputError(f"There is no run {run} (no config.toml in it), nor one in {runs_dir}.")

    @classmethod
    def find(cls, run: str, runs_dir: str = "runs") -> "RunFolder | None":
        """Return a run by its path, or by its name in ``runs_dir``; None if there is none."""
        for path in (Path(at_home(run)), Path(at_home(runs_dir)) / run):
            if (path / "config.toml").is_file():
                return cls(path)
        return None

    def has_checkpoints(self) -> bool:
        """Whether there is something to resume from; unlike `checkpoint`, this needs no torch."""
        return any(self.checkpoints.glob("[0-9]*"))

    def append(self, metrics: dict[str, float]) -> None:
        """Add one line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(dumps(metrics) + "\n")

    def history(self) -> list[dict[str, float]]:
        """Return the records of metrics.jsonl, without a truncated last line.

        A number that is not finite, which JSON has as null, is NaN. Raises InputError for a line
        that is no record.
        """
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_text("utf-8", errors="replace").split("\n")[:-1]
        records = []
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                number_of(record)
                records.append(numbers(record))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise InputError(
                    f"{self.metrics}, line {number}, is damaged: remove that line."
                ) from None
        return records

    def cut(self, number: int) -> None:
        """Remove the metrics of all rounds (or steps) after ``number``."""
        if self.metrics.exists():
            kept = [record for record in self.history() if number_of(record) <= number]
            write_text(self.metrics, "".join(f"{dumps(line)}\n" for line in kept))

    def command(self) -> str:
        """Return the command that made the run, as train-rl.

        Raises InputError for a run of an older dpok, which has no run.json, or a damaged one.
        """
        try:
            return str(json.loads(self.record.read_text(encoding="utf-8"))["command"])
        except FileNotFoundError as error:
            raise InputError(
                f"{self.path} has no {self.record.name}, so an older dpok made it: it can be"
                " sampled and evaluated, but not resumed."
            ) from error
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"{self.record} cannot be read: {error}.") from error

    def read_config(self) -> dict[str, Any]:
        """Return config.toml."""
        import tomllib

        try:
            return tomllib.loads(read_text(self.config))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.config} cannot be read: {error}.") from error

    def write_config(self, config: TrainingConfig) -> None:
        write_text(self.config, to_toml(config.located()))

    def write_summary(self, summary: dict[str, Any]) -> None:
        write_text(self.summary, dumps(summary, indent=2) + "\n")


def number_of(record: dict[str, float]) -> float:
    """Return which round (RL) or step (SFT) a line of metrics.jsonl is of."""
    return record["step"] if "step" in record else record["round"]


def _check_name(name: str) -> None:
    """Raise InputError for a run's name that means something else where runs are named."""
    if name in RESERVED:
        raise InputError(
            f"--name {name!r}: that names {RESERVED[name]}. Give --name another, as {name}-1."
        )
    usable = "".join(letter if letter.isprintable() else "-" for letter in name)
    usable = usable.replace("\\", "-").lstrip(" -~").rstrip(" .")
    if name and name != usable:
        raise InputError(
            f"--name {name!r}: a run's name must not begin with a space, - or ~, end with a space"
            " or a dot, or hold a backslash or what cannot be printed. Give --name"
            f" {usable if usable and usable not in RESERVED else 'another'!r}."
        )

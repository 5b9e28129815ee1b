"""Experiment trackers through accelerate (TensorBoard, W&B, ...); training can do without."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate import Accelerator

from dpok_cli import __version__
from dpok_cli.config import TrainingConfig, to_toml
from dpok_cli.engine.runs.files import write_text
from dpok_cli.engine.runs.folder import RunFolder
from dpok_cli.strict_json import dumps

if TYPE_CHECKING:
    from PIL.Image import Image

#: The name of dpok's runs together, where a tracker has one; W&B's variable overrides it.
PROJECT = "dpok"
#: The most characters of a text among the hyper-parameters of TensorBoard, which shows a table.
LONGEST = 200


class Tracker:
    """One tracker of a run; if it cannot be reached, it warns once and is left out."""

    def __init__(
        self,
        name: str,
        run: RunFolder | None,
        accelerator: Accelerator,
        warn: Callable[[str], None],
    ):
        """``name`` is accelerate's; "", or no ``run``, as on all ranks but 0, tracks nothing."""
        self.name, self.run = name if run else "", run
        self.accelerator, self.warn = accelerator, warn

    def start(self, number: int, config: TrainingConfig) -> None:
        """Begin, or continue the run's own record after round or step ``number``."""
        if not self.run or not self.name:
            return
        with self._or_without():
            known = _identity(self.run)
            folder, options = self.name in ("tensorboard", "aim"), self._options(known, number)
            project = os.environ.get("WANDB_PROJECT") if self.name == "wandb" else None
            self.accelerator.init_trackers(
                known["name"] if folder else project or PROJECT, init_kwargs={self.name: options}
            )
            if not self.accelerator.trackers:  # accelerate leaves out one that is not installed
                raise ModuleNotFoundError("it is not installed")
            self._send_config(number, config.located())

    def log(self, number: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of round or step ``number``."""
        with self._or_without():
            self.accelerator.log(dict(metrics), step=number)

    def log_grid(self, number: int, grid: Image) -> None:
        """Send the sample grid of round or step ``number``, if the tracker takes pictures."""
        with self._or_without():
            for tracker in self.accelerator.trackers:
                if self.name == "tensorboard":
                    pixels = np.asarray(grid)[None]  # (1, H, W, 3)
                    tracker.log_images({"grid/images": pixels}, step=number, dataformats="NHWC")
                    tracker.tracker.flush()  # so that a killed run has it
                elif hasattr(tracker, "log_images"):
                    alone = self.name in ("aim", "clearml")  # the others take a list
                    tracker.log_images({"grid/images": grid if alone else [grid]}, step=number)

    def close(self) -> None:
        try:
            self.accelerator.end_training()
        except Exception as error:
            self._drop(error)
            self.accelerator.end_training()

    def _options(self, known: dict[str, str], number: int) -> dict[str, Any]:
        """Return what accelerate passes on: the run's name and folder, and what it continues."""
        assert self.run
        name, folder = known["name"], str(self.run.path)
        match self.name:
            case "tensorboard":  # what a stopped run had written further is hidden
                return {"purge_step": number + 1 if number else 0}
            case "wandb":
                return {"name": name, "dir": folder, "id": known["id"], "resume": "allow"}
            case "swanlab":
                again = {"id": known["id"], "resume": "allow"}
                return {"name": name, "log_dir": f"{folder}/swanlab"} | again
            case "dvclive":
                place = f"{folder}/dvclive"
                return {"dir": place, "dvcyaml": f"{place}/dvc.yaml", "resume": True}
            case "trackio":  # it knows a run by its name, which another may have had
                return {"name": name, "resume": "allow" if number else "never"}
            case "mlflow":
                return {"run_name": name}
        return {}

    def _send_config(self, number: int, config: TrainingConfig) -> None:
        settings = {"command": config.command, "dpok": __version__} | {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(config).items()
        }
        for tracker in self.accelerator.trackers:
            if self.name != "tensorboard":
                tracker.store_init_configuration(settings)
                continue
            # accelerate's would make a run of its own for them, named by the time.
            from torch.utils.tensorboard.summary import hparams

            _, start, _ = hparams({key: _plain(value) for key, value in settings.items()}, {})
            writer = tracker.tracker
            writer.file_writer.add_summary(start, number)
            lines = (f"    {line}" for line in to_toml(config).splitlines())
            writer.add_text("config.toml", "\n".join(lines), number)
            writer.flush()

    @contextmanager
    def _or_without(self) -> Iterator[None]:
        """Drop the tracker if it fails in the block: that must not end the run."""
        try:
            yield
        except Exception as error:
            self._drop(error)

    def _drop(self, error: Exception) -> None:
        self.accelerator.trackers = []
        reason = " ".join(f"{error}".split()) or type(error).__name__
        self.warn(
            f"The tracker {self.name} cannot be used, and training continues without it: {reason}."
        )


def _identity(run: RunFolder) -> dict[str, str]:
    """Return the ``name`` and ``id`` of a run at its tracker, which stay what they were at first.

    They are kept in the run folder, which may be moved.
    """
    if run.tracker.exists():
        known: dict[str, str] = json.loads(run.tracker.read_text(encoding="utf-8"))
        return known
    known = {"name": run.path.resolve().name, "id": secrets.token_hex(16)}
    write_text(run.tracker, dumps(known) + "\n")
    return known


def _plain(value: Any) -> Any:
    """Return a setting as TensorBoard takes it: a number, or a text that is not too long."""
    if isinstance(value, bool | int | float):
        return value
    text = "; ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"

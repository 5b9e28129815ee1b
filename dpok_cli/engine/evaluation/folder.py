"""The evaluation folder: each image and its scores, kept as they are made, to go on from."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpok_cli.engine.evaluation.plan import Evaluation, Place
from dpok_cli.engine.runs.folder import write_atomically
from dpok_cli.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

#: One image: "model", "row" (of its prompt), "seed", "scores" by reward, "kl".
Record = dict[str, Any]


class EvaluationFolder:
    """settings.json, images/MODEL/ROW/SEED.png, scores.jsonl, and what is made of them."""

    def __init__(self, path: Path):
        self.path = path
        self.settings = path / "settings.json"
        self.scores = path / "scores.jsonl"
        self.images = path / "images"
        self.results = path / "results.json"
        self.table = path / "results.csv"
        self.plots = path / "plots"
        self.report = path / "report.html"
        self.human = path / "human.html"
        self.key = path / "human-key.json"

    @classmethod
    def check(cls, path: Path, evaluation: Evaluation) -> EvaluationFolder:
        """Return the folder, which need not be there; writes nothing.

        Raises InputError for a folder of anything else, naming what differs.
        """
        folder, settings = cls(path), json.loads(json.dumps(evaluation.settings()))
        if folder.settings.is_file():
            try:
                old = json.loads(folder.settings.read_text(encoding="utf-8"))
                assert isinstance(old, dict), "it holds no object"
            except (OSError, ValueError, AssertionError, RecursionError) as error:
                raise InputError(
                    f"{folder.settings} cannot be read: {error}. Give another --output."
                ) from error
            for key in sorted(old.keys() | settings.keys()):
                if old.get(key) != settings.get(key):
                    raise InputError(
                        f"{path} was made with other settings: {key} = {_short(old.get(key))}"
                        f" there, {_short(settings.get(key))} now. Give another --output."
                    )
            return folder
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(f"{path} is there and is no evaluation: give another --output.")
        return folder

    @classmethod
    def open(cls, path: Path, evaluation: Evaluation) -> EvaluationFolder:
        """Make the folder, or go on in one that was made with the same settings.

        Raises InputError for a folder of anything else, or one that cannot be made.
        """
        folder = cls.check(path, evaluation)
        if not folder.settings.is_file():
            try:
                path.mkdir(parents=True, exist_ok=True)
                text = json.dumps(evaluation.settings(), indent=2)
                write_atomically(folder.settings, text + "\n")
            except OSError as error:
                raise InputError(
                    f"Cannot write to {path}: {error.strerror}. Give another --output."
                ) from error
        return folder

    @staticmethod
    def default(evaluation: Evaluation) -> Path:
        """Return where an evaluation goes by itself: other settings, another folder.

        It is in the run's folder if one run is compared, else among the runs.
        """
        text = json.dumps(evaluation.settings(), sort_keys=True)
        name = f"evaluation-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        runs = [each for each in evaluation.contenders if each.config]
        if len(evaluation.contenders) == 2 and runs and runs[0].adapter is not None:
            return runs[0].adapter.parent / name
        return Path(evaluation.config.runs_dir) / name

    def image(self, model: str, place: Place) -> Path:
        return self.images / model / f"{place.row:03}" / f"{place.seed}.png"

    def keep(self, records: list[Record], pictures: list[Image]) -> None:
        """Write a batch: first its images, each whole or not at all, then its lines at once."""
        for record, picture in zip(records, pictures, strict=True):
            file = self.image(record["model"], Place(record["row"], record["seed"]))
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_name(f".{file.name}.tmp")
            picture.save(temporary, "PNG")
            os.replace(temporary, file)
        with self.scores.open("a", encoding="utf-8") as lines:
            lines.write("".join(json.dumps(record) + "\n" for record in records))

    def records(self) -> dict[tuple[str, Place], Record]:
        """Return what was kept; a line that was cut off in the middle does not count.

        Such a line is ended, so that what comes next has a line of its own.
        """
        if not self.scores.exists():
            return {}
        found: dict[tuple[str, Place], Record] = {}
        text = self.scores.read_text(encoding="utf-8", errors="replace")
        if text and not text.endswith("\n"):
            with self.scores.open("a", encoding="utf-8") as lines:
                lines.write("\n")
        for line in text.splitlines():
            try:
                record = json.loads(line)
                place = Place(record["row"], record["seed"])
                if self.image(record["model"], place).is_file():
                    found[record["model"], place] = record
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # cut off; its batch is drawn again
        return found


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}..."

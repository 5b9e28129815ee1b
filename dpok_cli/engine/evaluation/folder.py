"""The evaluation folder: images and scores, written batch by batch, so that drawing can resume."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpok_cli.config import EvaluateConfig
from dpok_cli.engine.evaluation.plan import Evaluation, Place
from dpok_cli.engine.runs.files import make_folder, replacing, write_text
from dpok_cli.engine.runs.lock import is_free, one_writer
from dpok_cli.engine.runs.same import check_same, read_object
from dpok_cli.errors import InputError
from dpok_cli.strict_json import dumps

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

#: One image: "model", "row" (of its prompt), "seed", "scores" by reward, "kl".
Record = dict[str, Any]


class EvaluationFolder:
    """settings.json, images/MODEL/ROW/SEED.png and scores.jsonl, and the results and reports."""

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
        """Return the folder, which need not exist; writes nothing.

        Raises InputError for a folder of anything else, and says which setting differs.
        """
        folder, settings = cls(path), json.loads(dumps(evaluation.settings()))
        if not folder.begun:
            if not is_free(path):
                raise InputError(f"{path} exists and is no evaluation. Give another --output.")
            return folder
        check_same(path, read_object(folder.settings), settings, EvaluateConfig)
        return folder

    @contextmanager
    def writing(self, evaluation: Evaluation) -> Iterator[None]:
        """Make the folder, or take one that was made with the same settings, as its only writer.

        Raises InputError for a folder of anything else, one that cannot be made, or one that
        another process writes to.
        """
        self.check(self.path, evaluation)
        make_folder(self.path, "--output")
        with one_writer(self.path):
            if not self.check(self.path, evaluation).begun:
                settings = dumps(evaluation.settings(), indent=2)
                write_text(self.settings, settings + "\n")
            yield

    @staticmethod
    def default(evaluation: Evaluation) -> Path:
        """Return the folder of an evaluation that names none; it depends on the settings.

        It is in the run's folder if one run is compared, else in `runs_dir`.
        """
        text = dumps(evaluation.settings(), sort_keys=True)
        name = f"evaluation-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        runs = [each for each in evaluation.contenders if each.config]
        if len(evaluation.contenders) == 2 and runs and runs[0].adapter is not None:
            return runs[0].adapter.parent / name
        return Path(evaluation.config.runs_dir) / name

    @property
    def begun(self) -> bool:
        """Whether the folder holds an evaluation."""
        return self.settings.is_file()

    def image(self, model: str, place: Place) -> Path:
        return self.images / model / f"{place.row:03}" / f"{place.seed}.png"

    def keep(self, records: Sequence[Record], pictures: Sequence[Image]) -> None:
        """Write a batch: each image atomically, then the batch's lines at once."""
        for record, picture in zip(records, pictures, strict=True):
            file = self.image(record["model"], Place(record["row"], record["seed"]))
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as temporary:
                picture.save(temporary, "PNG")
        self.write(records)

    def write(self, records: Sequence[Record]) -> None:
        """Add lines to scores.jsonl; the last line of an image holds."""
        with self.scores.open("a", encoding="utf-8") as lines:
            lines.write("".join(dumps(record) + "\n" for record in records))

    def read(self, model: str, places: Sequence[Place]) -> Tensor:
        """Return images (B, 3, H, W), uint8."""
        import numpy as np
        import torch
        from PIL import Image

        images = []
        for place in places:
            with Image.open(self.image(model, place)) as picture:
                images.append(torch.from_numpy(np.array(picture.convert("RGB"))))
        return torch.stack(images).permute(0, 3, 1, 2)

    def records(self) -> dict[tuple[str, Place], Record]:
        """Return the records of all images; a truncated last line is ignored.

        Such a line is terminated, so that the next record starts on a new line.
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
                continue  # truncated; its batch is drawn again
        return found

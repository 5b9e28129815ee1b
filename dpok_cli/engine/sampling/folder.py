"""The folder of `dpok sample`: an image for each prompt and seed, and a manifest. Without torch."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dpok_cli import __version__
from dpok_cli.config import SampleConfig, SamplingConfig
from dpok_cli.engine.runs.files import replacing, write_text
from dpok_cli.engine.runs.lock import check_free, filling
from dpok_cli.engine.runs.same import check_same, read_object
from dpok_cli.engine.sampling.pictures import in_rows
from dpok_cli.strict_json import dumps

if TYPE_CHECKING:
    from PIL.Image import Image

#: Seconds between two writings of the manifest while images are drawn: it lists all of them.
EVERY = 1.0
# Settings that change no image, or that the manifest has a key of its own for.
_NOT_COMPARED = {"device", "offload", "seeds"}


class Place(NamedTuple):
    """One image: "before", "after" or "", the row of its prompt, and its seed."""

    side: str
    row: int
    seed: int

    @property
    def file(self) -> str:
        """Its file in the folder."""
        return Path(self.side, f"{self.row:03}_{self.seed}.png").as_posix()


class SampleFolder:
    """PNGs, and manifest.json with the settings and the PNGs that are there.

    A batch is drawn as a whole, so rounding does not depend on interruptions.
    """

    def __init__(
        self,
        path: Path,
        config: SamplingConfig,
        seeds: Sequence[int],
        adapter: Path | None = None,
        before: bool = False,
        fingerprint: str | None = None,
    ):
        """Plan the images of ``config`` and ``seeds``; ``before`` doubles them.

        ``adapter`` is for the manifest, and ``fingerprint`` that of its weights, "" without one;
        None is one that is not known yet.
        """
        self.path, self.config, self.seeds = path, config, tuple(seeds)
        self.adapter, self.before, self.fingerprint = adapter, before, fingerprint
        self.manifest = path / "manifest.json"
        self.there: set[str] = set()
        self._written = 0.0

    @property
    def sides(self) -> tuple[str, ...]:
        return ("before", "after") if self.before else ("",)

    def places(self, side: str) -> list[Place]:
        """Return the images of one of the `sides`, prompt by prompt."""
        rows = range(len(self.config.prompts))
        return [Place(side, row, seed) for row in rows for seed in self.seeds]

    def missing(self, side: str) -> list[Place]:
        """Return the images of the batches that are not complete."""
        batches = in_rows(self.places(side), self.config.sample_batch_size)
        return [
            place
            for batch in batches
            if any(each.file not in self.there for each in batch)
            for place in batch
        ]

    def check(self) -> None:
        """Raise InputError for a folder of anything else, or of other settings."""
        head = read_object(self.manifest) if self.manifest.is_file() else {}
        if not isinstance(head.get("settings"), dict):
            check_free(self.path, "--output")
            return
        now = json.loads(dumps(self._head()))
        check_same(self.path, self._compared(head), self._compared(now), SampleConfig)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Make the folder, or continue one with the same settings, as its only writer.

        However the block ends, the manifest lists the images that are there. Raises InputError.
        """
        with filling(self.path, "--output", self.check):
            self._look()
            try:
                yield
            finally:
                self._look()
                if self.there:
                    self._write_manifest()

    def keep(self, place: Place, picture: Image) -> None:
        """Write an image; a manifest is there before the first one."""
        if not self.manifest.exists():
            self._write_manifest()
        self.save(picture, place.file)
        self.there.add(place.file)
        if time.monotonic() - self._written >= EVERY:
            self._write_manifest()

    def save(self, picture: Image, file: str) -> Path:
        """Write a picture as a PNG, atomically; returns its path."""
        path = self.path / file
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as temporary:
            picture.save(temporary, "PNG")
        return path

    def open(self, place: Place) -> Image:
        from PIL import Image

        with Image.open(self.path / place.file) as picture:
            return picture.convert("RGB")

    def _look(self) -> None:
        planned = (place.file for side in self.sides for place in self.places(side))
        self.there = {file for file in planned if (self.path / file).is_file()}

    def _write_manifest(self) -> None:
        images = [
            {"file": place.file, "prompt": self.config.prompts[place.row], "seed": place.seed}
            for side in self.sides
            for place in self.places(side)
            if place.file in self.there
        ]
        write_text(self.manifest, dumps(self._head() | {"images": images}, indent=2) + "\n")
        self._written = time.monotonic()

    def _head(self) -> dict[str, Any]:
        return {
            "dpok": __version__,
            "adapter": str(self.adapter) if self.adapter else None,
            "adapter_sha256": self.fingerprint or None,
            "before": self.before,
            "settings": asdict(self.config),
            "seeds": list(self.seeds),
        }

    def _compared(self, head: dict[str, Any]) -> dict[str, Any]:
        keys = ["before", "seeds"] + ["adapter_sha256"] * (self.fingerprint is not None)
        own = {key: head.get(key) for key in keys}
        return own | {k: v for k, v in head["settings"].items() if k not in _NOT_COMPARED}

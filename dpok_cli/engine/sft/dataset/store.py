"""An image set on disk, written batch by batch, so that an interrupted run loses one at most.

    settings.json                       what made it; another model's or sampler's is refused
    metadata.jsonl                      one line an image, in Hugging Face's layout: file_name,
                                        text (the prompt), seed, latents, rewards (raw, by name)
    images/000000.png ...
    latents/000000-000015.safetensors   "latents": float32 (16, C, H, W), the x_0 of these images

A batch's images and latents are written first and its lines last, so a batch with missing
lines counts as not drawn.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpok_cli.config import TrainSFTConfig
from dpok_cli.config.fields import shown, typed
from dpok_cli.engine.runs.files import make_folder, replacing, write_text
from dpok_cli.engine.runs.lock import one_writer
from dpok_cli.engine.sft.dataset.imagefolder import METADATA, SETTINGS, Entry, parse, read_settings
from dpok_cli.errors import InputError
from dpok_cli.strict_json import dumps

#: Settings in which a set may differ from a run's: where the model and the user's images lie, and
#: the seed, which belongs to the set.
MAY_DIFFER = {"model", "folder", "seed"}


@dataclass(frozen=True)
class Picture:
    """An image on its way to the disk."""

    entry: Entry  # what metadata.jsonl says of it, less what the store adds
    pixels: Tensor  # (3, H, W), uint8, on the CPU
    latents: Tensor  # (C, h, w), float32, on the CPU


class ImageStore:
    """A folder of images with their latents. ``entries`` are the lines of its metadata.jsonl."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.entries: list[Entry] = []

    @contextmanager
    def writing(self, settings: Mapping[str, Any]) -> Iterator[None]:
        """Make the set, or repair an interrupted one, and write to it within the block.

        Raises InputError if its settings differ, or if another run writes to it.
        """
        make_folder(self.folder, "--dataset")
        with one_writer(self.folder):
            self._begin(settings)
            yield

    def settings(self) -> dict[str, Any]:
        """Return the settings that the set was made with; {} for a new set."""
        return read_settings(self.folder) if (self.folder / SETTINGS).exists() else {}

    def _begin(self, settings: Mapping[str, Any]) -> None:
        if made := self.settings():
            check_same(self.folder, made, settings)
        else:
            write_text(self.folder / SETTINGS, dumps(settings, indent=2) + "\n")
        for name in ("images", "latents"):
            (self.folder / name).mkdir(exist_ok=True)
        self.read()
        file = self.folder / METADATA
        if file.exists() and file.read_text("utf-8", errors="replace") != _lines(self.entries):
            self.write()

    def read(self) -> None:
        """Read the lines of all complete batches."""
        file = self.folder / METADATA
        text = file.read_text("utf-8", errors="replace") if file.exists() else ""
        lines = text.split("\n")[:-1]  # the last one is empty or truncated
        entries = [parse(line) for line in lines]
        if None in entries:
            raise InputError(f"{file}, line {entries.index(None) + 1}, is damaged.")
        self.entries = [entry for entry in entries if entry is not None]
        if self.entries:
            first, last = map(int, Path(self.entries[-1]["latents"]).stem.split("-"))
            if len(self.entries) != last + 1:
                del self.entries[first:]

    def append(self, pictures: Sequence[Picture], write: bool = True) -> None:
        """Add a batch; only one of several processes may ``write`` it."""
        first = len(self.entries)
        latents = f"latents/{first:06d}-{first + len(pictures) - 1:06d}.safetensors"
        fresh = []
        for number, picture in enumerate(pictures, first):
            own = {"file_name": f"images/{number:06d}.png", "latents": latents}
            fresh.append(own | picture.entry)
        if write:
            for entry, picture in zip(fresh, pictures, strict=True):
                _save_image(picture.pixels, self.folder / entry["file_name"])
            stacked = torch.stack([picture.latents for picture in pictures])
            with replacing(self.folder / latents) as temporary:
                save_file({"latents": stacked}, temporary)
            with (self.folder / METADATA).open("a", encoding="utf-8") as file:
                file.write(_lines(fresh))
        self.entries += fresh

    def write(self) -> None:
        """Rewrite metadata.jsonl after entries have changed."""
        write_text(self.folder / METADATA, _lines(self.entries))

    def pixels(self, rows: Sequence[int]) -> Tensor:
        """Return the images of these rows, uint8 (B, 3, H, W)."""
        return torch.stack([self._image(self.folder / self.entries[r]["file_name"]) for r in rows])

    def latents(self, count: int) -> Tensor:
        """Return x_0 of the first ``count`` images, float32 (count, C, H, W)."""
        files = dict.fromkeys(entry["latents"] for entry in self.entries[:count])
        parts = []
        for name in files:
            first, last = map(int, Path(name).stem.split("-"))
            try:
                part = load_file(self.folder / name)["latents"]
                assert len(part) == last - first + 1
            except Exception as error:  # safetensors has an error of its own
                raise InputError(
                    f"{self.folder / name} is missing or damaged; remove {self.folder} to draw its"
                    " images again."
                ) from error
            parts.append(part)
        return torch.cat(parts)[:count]

    @staticmethod
    def _image(file: Path) -> Tensor:
        try:
            with Image.open(file, formats=["PNG"]) as image:
                return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error}.") from error


def check_same(folder: Path, made: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise InputError that names the first setting in which a set differs from the run."""
    for key in [*asked, *(key for key in made if key not in asked)]:
        if key in MAY_DIFFER or made.get(key) == asked.get(key):
            continue
        if key == "weights":
            what = f"the model {made.get('model')!r}"
            other = made.get("model") != asked.get("model")
            wanted = f"{asked.get('model')!r}" if other else "which has other weights now"
        else:
            values = (shown(settings.get(key)) for settings in (made, asked))
            what, wanted = (
                typed(key, TrainSFTConfig, shorten(value, 100, placeholder="..."))
                for value in values
            )
        raise InputError(
            f"The image set {folder} was made with {what}, not {wanted}. Give --dataset another"
            " folder, or the settings that it was made with."
        )


def _lines(entries: Sequence[Entry]) -> str:
    return "".join(dumps(entry) + "\n" for entry in entries)


def _save_image(pixels: Tensor, file: Path) -> None:
    with replacing(file) as temporary:
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(temporary, format="PNG")

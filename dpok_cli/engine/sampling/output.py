"""Sampled images in a folder: a PNG each, a grid of all, and a manifest."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from math import ceil, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from dpok_cli import __version__
from dpok_cli.config import SamplingConfig
from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.engine.runs.files import replacing, write_text
from dpok_cli.engine.runs.lock import filling
from dpok_cli.engine.sampling.pictures import LARGEST, cell, grid_of, side_by_side, to_pil
from dpok_cli.engine.sampling.sampler import Sample, Sampler
from dpok_cli.strict_json import dumps

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

Progress = Callable[[Iterator[Sample]], Iterable[Sample]]


def write_samples(
    model: DiffusionModel,
    config: SamplingConfig,
    seeds: Sequence[int],
    folder: Path,
    *,
    adapter: Path | None = None,
    before: bool = False,
    progress: Progress = iter,
    warn: Callable[[str], None] = warnings.warn,
) -> Path:
    """Draw the config's prompts from ``seeds`` into ``folder``; returns the picture of all.

    That is grid.png, or with ``before`` before_after.png: the model without its adapter beside the
    model with it, and the images of both in before/ and after/. It has `LARGEST` pixels at the
    most; ``warn`` is told how many images fit, if there are more. manifest.json lists the images
    and the settings, with ``adapter`` as given. ``progress`` wraps the iterator over the images, as
    tqdm does. Raises InputError for a folder that has files already, and NotFiniteError.
    """
    sampler = Sampler(model, config)
    with filling(folder, "--output"):
        return _write(sampler, seeds, folder, adapter, before, progress, warn)


def _write(
    sampler: Sampler,
    seeds: Sequence[int],
    folder: Path,
    adapter: Path | None,
    before: bool,
    progress: Progress,
    warn: Callable[[str], None],
) -> Path:
    layout = Layout.of(sampler, len(seeds), LARGEST // 2 if before else LARGEST)
    if before:
        with sampler.model.reference():
            base, listed = _draw(sampler, seeds, folder, "before", layout, progress)
        tuned, listed_after = _draw(sampler, seeds, folder, "after", layout, progress)
        listed += listed_after
        picture = folder / "before_after.png"
        _save(side_by_side({"before": base, "after": tuned}), picture)
    else:
        _, listed = _draw(sampler, seeds, folder, "", layout, progress)
        picture = folder / "grid.png"
    total = len(sampler.config.prompts) * len(seeds)
    if layout.shown < total:
        warn(f"{picture.name} has room for {layout.shown} of the {total} images.")
    manifest = {
        "dpok": __version__,
        "adapter": str(adapter) if adapter else None,
        "settings": asdict(sampler.config),
        "images": listed,
    }
    write_text(folder / "manifest.json", dumps(manifest, indent=2) + "\n")
    return picture


class Layout(NamedTuple):
    """Which images are in a grid: the first seeds of the first prompts."""

    prompts: int
    seeds: int

    @classmethod
    def of(cls, sampler: Sampler, seeds: int, pixels: int) -> Self:
        """Return the layout of a grid of so many ``pixels`` at the most."""
        height, width = sampler.model.size
        wide, high, _ = cell((width, height))
        fit = max(1, pixels // (wide * high))
        seeds = min(seeds, fit)
        return cls(min(len(sampler.config.prompts), fit // seeds), seeds)

    @property
    def shown(self) -> int:
        return self.prompts * self.seeds


def _draw(
    sampler: Sampler,
    seeds: Sequence[int],
    folder: Path,
    subfolder: str,
    layout: Layout,
    progress: Progress,
) -> tuple[Image, list[dict[str, str | int]]]:
    """Draw into ``folder / subfolder``; returns the grid, and the manifest's entry of each image.

    A single prompt is laid out as a square, several as one row each.
    """
    prompts = sampler.config.prompts
    listed: list[dict[str, str | int]] = []

    def kept() -> Iterator[Tensor]:
        for number, drawn in enumerate(progress(sampler.sample(prompts, seeds))):
            (folder / subfolder).mkdir(exist_ok=True)  # once there is something to keep
            prompt, place = divmod(number, len(seeds))
            file = Path(subfolder, f"{prompt:03}_{drawn.seed}.png").as_posix()
            _save(to_pil(drawn.image), folder / file)
            listed.append({"file": file, "prompt": drawn.prompt, "seed": drawn.seed})
            if prompt < layout.prompts and place < layout.seeds:
                yield drawn.image

    columns = ceil(sqrt(layout.seeds)) if len(prompts) == 1 else layout.seeds
    picture = grid_of(kept(), layout.shown, columns)
    _save(picture, folder / subfolder / "grid.png")
    return picture, listed


def _save(picture: Image, file: Path) -> None:
    with replacing(file) as temporary:
        picture.save(temporary, "PNG")

"""Sampled images in a folder: a PNG each, pages of grids, and a manifest."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from math import ceil, sqrt
from pathlib import Path

from dpok_cli.config import SamplingConfig
from dpok_cli.engine.bases.fingerprint import adapter_fingerprint
from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.engine.sampling.folder import Place, SampleFolder
from dpok_cli.engine.sampling.pictures import in_rows, laid_out, room, side_by_side, to_pil
from dpok_cli.engine.sampling.sampler import Sample, Sampler
from dpok_cli.errors import StopRequested

#: Wraps the iterator over the images, given their number.
Progress = Callable[[Iterator[Sample], int], Iterable[Sample]]


def write_samples(
    model: DiffusionModel,
    config: SamplingConfig,
    seeds: Sequence[int],
    folder: Path,
    *,
    adapter: Path | None = None,
    before: bool = False,
    progress: Progress = lambda drawn, total: drawn,
    warn: Callable[[str], None] = warnings.warn,
    stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Draw the config's prompts from ``seeds`` into ``folder``; returns the picture of all.

    That is grid.png, or with ``before`` before_after.png: the model without its adapter beside the
    model with it, and the images of both in before/ and after/. What has no room there is in
    grid-2.png and so on, and ``warn`` is told how many there are. manifest.json lists the images
    and the settings, with ``adapter`` as given. A folder that was begun with the same settings is
    continued. ``progress`` wraps the iterator over the images that are missing, given their number.

    Raises InputError for a folder of anything else, NotFiniteError, and StopRequested once
    ``stop()`` is true. What was drawn until then stays, and is listed.
    """
    sampler = Sampler(model, config, stop=stop)
    store = SampleFolder(folder, config, seeds, adapter, before, adapter_fingerprint(model))
    with store.writing():
        if store.there:
            total = len(store.sides) * len(config.prompts) * len(seeds)
            warn(f"{len(store.there)} of the {total} images are in {folder} already.")
        for side in store.sides:
            with model.reference() if side == "before" else nullcontext():
                _draw(sampler, store, side, progress)
        return _write_pages(store, model.size, warn, stop)


def _draw(sampler: Sampler, store: SampleFolder, side: str, progress: Progress) -> None:
    """Draw the images of one side that are missing; no more than a batch is in memory."""
    missing = store.missing(side)
    if not missing:
        return
    wanted = ((place.row, place.seed) for place in missing)
    drawn = progress(sampler.draw(sampler.config.prompts, wanted), len(missing))
    for place, sample in zip(missing, drawn, strict=True):
        store.keep(place, to_pil(sample.image))


def _write_pages(
    store: SampleFolder,
    size: tuple[int, int],
    warn: Callable[[str], None],
    stop: Callable[[], bool],
) -> Path:
    """Write the pages of all images, from their files; returns the first one."""
    name = "before_after" if store.before else "grid"
    pages = {side: pages_of(store, side, size) for side in store.sides}
    pictures: list[Path] = []
    for number in range(len(pages[store.sides[0]])):
        if stop():
            raise StopRequested
        suffix = f"-{number + 1}.png" if number else ".png"
        grids = {side: laid_out(pages[side][number], store.open) for side in store.sides}
        files = [
            store.save(grid, Path(side, f"grid{suffix}").as_posix()) for side, grid in grids.items()
        ]
        if store.before:
            files = [store.save(side_by_side(grids), f"{name}{suffix}")]
        pictures += files
    if len(pictures) > 1:
        warn(f"The grid has {len(pictures)} pages: {name}.png to {pictures[-1].name}.")
    return pictures[0]


def pages_of(
    store: SampleFolder, side: str, size: tuple[int, int]
) -> list[Sequence[Sequence[Place]]]:
    """Return the rows of each page of a grid of images of ``size``, height and width in pixels.

    A single prompt is laid out as a square, several as one row each, or as more if it is too long.
    """
    height, width = size
    across, down = room((width, height))
    seeds = len(store.seeds)
    columns = min(across, ceil(sqrt(seeds)) if len(store.config.prompts) == 1 else seeds)
    prompts = in_rows(store.places(side), seeds)
    rows = [row for own in prompts for row in in_rows(own, columns)]
    return list(in_rows(rows, down))

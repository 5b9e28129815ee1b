"""`dpok sample`: draw images with the base model, or with an adapter, or with both."""

import json
from dataclasses import asdict
from datetime import datetime
from math import ceil, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpok_cli import __version__
from dpok_cli.allocator import keep_freed_memory
from dpok_cli.config import SampleConfig, sampling_settings, to_toml
from dpok_cli.config import flags as options
from dpok_cli.display import console
from dpok_cli.errors import InputError
from dpok_cli.memory import advice_when_full

if TYPE_CHECKING:
    from PIL.Image import Image

    from dpok_cli.engine.bases.model import DiffusionModel

Run = Annotated[
    str | None,
    typer.Option(
        help="Draw with the adapter of a run, as the run did: its folder, its name or 'latest'.",
        rich_help_panel="Adapter",
        metavar="RUN",
    ),
]
Adapter = Annotated[
    Path | None,
    typer.Option(help="Draw with a LoRA folder.", rich_help_panel="Adapter", metavar="FOLDER"),
]
Before = Annotated[
    bool,
    typer.Option(
        "--before",
        help="Draw without the adapter too, and put both into before_after.png.",
        rich_help_panel="Adapter",
    ),
]
RunsDir = Annotated[
    str,
    typer.Option(help="Where the run folders lie.", rich_help_panel="Adapter", metavar="DIR"),
]
Output = Annotated[
    Path | None,
    typer.Option(
        help="A new folder for the images; by default samples/DATE-TIME.",
        rich_help_panel="Run",
        metavar="DIR",
    ),
]


@options.config_flags(SampleConfig, without=["seed"])
def sample(
    *,
    run: Run = None,
    adapter: Adapter = None,
    before: Before = False,
    runs_dir: RunsDir = "runs",
    output: Output = None,
    preset: options.Preset = None,
    config: options.ConfigFile = None,
    print_config: options.PrintConfig = False,
    prompts_file: options.PromptsFile = None,
    category: options.Category = None,
    quiet: options.Quiet = False,
    **flags: Any,
) -> None:
    """Draw one image for each prompt and seed: PNGs, a grid of all, and a manifest.

    With neither --run nor --adapter it draws with the model as it was. The same seed gives the
    same image, whatever is drawn beside it.

    Example: dpok sample --run latest --before --seeds 0-8
    """
    if run and adapter:
        raise InputError("--run and --adapter both name an adapter: give one of them.")
    if run and (preset or config):
        raise InputError("--run brings its own settings: leave out --preset and --config.")
    if before and not (run or adapter):
        raise InputError("--before needs an adapter to compare with: give --run or --adapter.")
    of_run: dict[str, Any] = {}
    if run:
        from dpok_cli.engine.runs.folder import RunFolder

        folder = RunFolder.open(run, runs_dir)
        adapter = folder.adapter
        of_run = sampling_settings(folder.read_config())
    settings = options.resolve(
        SampleConfig,
        flags,
        preset=preset,
        file=config,
        prompts_file=prompts_file,
        category=category,
        under=of_run,
    )
    if print_config:
        console.say(to_toml(settings).rstrip(), console.out)
        return
    seeds = options.parse_seeds(settings.seeds)
    output = output or Path("samples", datetime.now().strftime("%Y%m%d-%H%M%S"))
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise InputError(f"{output} exists already: give another --output, or remove it.")
    with advice_when_full(settings):
        _draw(settings, seeds, adapter, before, output, quiet)


def _draw(
    settings: SampleConfig,
    seeds: list[int],
    adapter: Path | None,
    before: bool,
    output: Path,
    quiet: bool,
) -> None:
    from dpok_cli.engine.bases.source import check_adapter, check_source

    if adapter:
        check_adapter(adapter)
    check_source(settings.model)
    keep_freed_memory()
    from dpok_cli.engine.bases.model import load
    from dpok_cli.engine.runs.plots import side_by_side

    model = load(settings, adapter)
    listed: list[dict[str, Any]] = []
    if before:
        with model.reference():
            base = _draw_grid(model, settings, seeds, output, "before", listed, quiet)
        tuned = _draw_grid(model, settings, seeds, output, "after", listed, quiet)
        picture = output / "before_after.png"
        side_by_side({"before": base, "after": tuned}).save(picture)
    else:
        _draw_grid(model, settings, seeds, output, "", listed, quiet)
        picture = output / "grid.png"
    manifest = {
        "dpok": __version__,
        "adapter": str(adapter) if adapter else None,
        "settings": asdict(settings),
        "images": listed,
    }
    (output / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    console.say(str(picture), console.out)


def _draw_grid(
    model: "DiffusionModel",
    settings: SampleConfig,
    seeds: list[int],
    output: Path,
    subfolder: str,
    listed: list[dict[str, Any]],
    quiet: bool,
) -> "Image":
    """Draw every prompt and seed into ``output/subfolder`` and return the grid of all."""
    from dpok_cli.engine.sampling.sampler import grid, sample, to_pil

    (output / subfolder).mkdir(parents=True, exist_ok=True)
    samples = sample(model, settings.prompts, seeds, settings)
    total = len(settings.prompts) * len(seeds)
    images = []
    for number, drawn in enumerate(console.progress(samples, total, "Drawing", quiet)):
        name = f"{number // len(seeds):03}_{drawn.seed}.png"
        to_pil(drawn.image).save(output / subfolder / name)
        file = Path(subfolder, name).as_posix()
        listed.append({"file": file, "prompt": drawn.prompt, "seed": drawn.seed})
        images.append(drawn.image)
    columns = ceil(sqrt(len(seeds))) if len(settings.prompts) == 1 else len(seeds)
    picture = grid(images, columns)
    picture.save(output / subfolder / "grid.png")
    return picture

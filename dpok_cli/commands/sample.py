"""`dpok sample`: draw images with the base model, with an adapter, or with both."""

from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from dpok_cli.allocator import keep_freed_memory
from dpok_cli.commands import _prompts
from dpok_cli.commands._stopping import stopping
from dpok_cli.config import SampleConfig, sampling_settings, to_toml
from dpok_cli.config import flags as options
from dpok_cli.config.fields import Held
from dpok_cli.display import console
from dpok_cli.errors import InputError
from dpok_cli.memory import advice_when_full

Run = Annotated[
    str | None,
    typer.Option(
        help="Run whose adapter and settings are used: a folder, a name or 'latest'.",
        rich_help_panel="Adapter",
        metavar="RUN",
    ),
]
Adapter = Annotated[
    Path | None,
    typer.Option(help="LoRA folder or file to use.", rich_help_panel="Adapter", metavar="FOLDER"),
]
Before = Annotated[
    bool,
    typer.Option(
        "--before",
        help="Also draw without the adapter, and write both to before_after.png.",
        rich_help_panel="Adapter",
    ),
]
RunsDir = Annotated[
    str,
    typer.Option(help="Folder of the run folders.", rich_help_panel="Adapter", metavar="DIR"),
]
Output = Annotated[
    Path | None,
    typer.Option(
        help="Folder for the images; one that was begun with the same settings is continued."
        " Default: samples/DATE-TIME.",
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
    prompt_column: options.PromptColumn = None,
    category: options.Category = None,
    quiet: options.Quiet = False,
    **flags: Any,
) -> None:
    """Draw one image for each prompt and seed, and write PNGs, a grid and a manifest.

    Without --run and --adapter the base model is used. An image depends on its prompt, its seed
    and the settings, not on the other images. The same command with the same --output continues
    after an interruption.

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
        prompts_file=_prompts.settled(prompts_file, prompt_column, quiet),
        category=category,
        under=of_run,
    )
    if print_config:
        console.say(to_toml(settings).rstrip(), console.out)
        return
    seeds = options.parse_seeds(settings.seeds)
    _check(settings, seeds, adapter, before, output)

    keep_freed_memory()
    from dpok_cli.engine.bases.load import load
    from dpok_cli.engine.bases.memory import check_memory
    from dpok_cli.engine.runs.files import dated_folder
    from dpok_cli.engine.sampling.output import write_samples
    from dpok_cli.engine.sampling.sampler import Sampler

    total = len(settings.prompts) * len(seeds)
    with advice_when_full(settings):
        model = load(settings, adapter)
        for line in () if quiet else model.unread(settings.prompts):
            console.say(line)
        Sampler(model, settings)  # before a folder is made, since the steps may not fit the model
        check_memory(settings, model, Held("seeds", images=min(total, settings.sample_batch_size)))
        target = output or dated_folder(Path("samples"))
        again = "the same command" if output else f"the same with --output {quote(str(target))}"
        with stopping(f"{again} continues.", quiet) as stop:
            picture = write_samples(
                model,
                settings,
                seeds,
                target,
                adapter=adapter,
                before=before,
                progress=lambda drawn, missing: console.progress(drawn, missing, "Drawing", quiet),
                warn=console.say,
                stop=stop.requested,
            )
    console.say(str(picture), console.out)


def _check(
    settings: SampleConfig,
    seeds: list[int],
    adapter: Path | None,
    before: bool,
    output: Path | None,
) -> None:
    """Raise InputError for what can be refused before torch is imported."""
    from dpok_cli.engine.bases.source import check_source
    from dpok_cli.engine.lora.files import check_adapter
    from dpok_cli.engine.sampling.folder import SampleFolder

    if output:
        SampleFolder(output, settings, seeds, adapter, before).check()
    if adapter:
        check_adapter(adapter)
    check_source(settings)

"""`dpok evaluate`: compare models on the same seeds, on seen and unseen prompts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpok_cli.allocator import keep_freed_memory
from dpok_cli.commands import _prompts
from dpok_cli.commands._stopping import stopping
from dpok_cli.config import EvaluateConfig, to_toml
from dpok_cli.config import flags as options
from dpok_cli.display import console, tables
from dpok_cli.errors import InputError
from dpok_cli.memory import advice_when_full
from dpok_cli.prompts.benchmarks import BenchmarkFile
from dpok_cli.prompts.files import PromptFile
from dpok_cli.strict_json import dumps

if TYPE_CHECKING:
    from dpok_cli.engine.evaluation.folder import EvaluationFolder
    from dpok_cli.engine.evaluation.plan import Evaluation
    from dpok_cli.engine.evaluation.results import Results

#: The most unseen prompts that are printed.
SHOWN = 20

Runs = Annotated[
    list[str] | None,
    typer.Option(
        "--run",
        help="Run to compare with the base: a folder, a name or 'latest'; repeatable. Default: the"
        " newest run.",
        rich_help_panel="Model",
        metavar="[NAME=]RUN",
    ),
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        help="LoRA folder or file to compare; repeatable.",
        rich_help_panel="Model",
        metavar="[NAME=]FOLDER",
    ),
]
UnseenPrompts = Annotated[
    bool,
    typer.Option(
        "--unseen-prompts",
        help="Add unseen prompts: the paper's partners, or variants of the trained prompts.",
        rich_help_panel="Prompts",
    ),
]
UnseenPromptsFile = Annotated[
    PromptFile | None,
    typer.Option(
        parser=PromptFile,
        help="Your own unseen prompts, in one of the forms of --prompts.",
        rich_help_panel="Prompts",
        metavar="FILE",
    ),
]
BenchmarkName = Annotated[
    str | None,
    typer.Option(
        help="Draw a benchmark's prompts: drawbench, partiprompts, geneval, t2i-compbench,"
        " paper-drawbench or paper-coco; PATH is its file, or a folder with it.",
        rich_help_panel="Prompts",
        metavar="NAME[=PATH]",
    ),
]
Download = Annotated[
    bool,
    typer.Option(
        "--download",
        help="Fetch the benchmark from where it is published, if it is not on this machine.",
        rich_help_panel="Prompts",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the evaluation; an existing one is resumed. Default: in the run folder.",
        rich_help_panel="Run",
        metavar="DIR",
    ),
]
Human = Annotated[
    bool,
    typer.Option("--human", help="Also write human.html, a blind A/B page.", rich_help_panel="Run"),
]
Votes = Annotated[
    list[Path] | None,
    typer.Option(
        help="Only count answers saved from human.html; repeatable.",
        rich_help_panel="Run",
        metavar="FILE",
    ),
]
MoreVotes = Annotated[
    list[Path] | None,
    typer.Argument(help="More files for --votes.", metavar="FILE", show_default=False),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print results.json instead of tables.", rich_help_panel="Run"),
]


@options.config_flags(EvaluateConfig)
def evaluate(
    files: MoreVotes = None,
    *,
    run: Runs = None,
    adapter: Adapters = None,
    unseen_prompts: UnseenPrompts = False,
    unseen_prompts_file: UnseenPromptsFile = None,
    benchmark: BenchmarkName = None,
    download: Download = False,
    output: Output = None,
    human: Human = False,
    votes: Votes = None,
    as_json: Json = False,
    preset: options.Preset = None,
    config: options.ConfigFile = None,
    print_config: options.PrintConfig = False,
    prompts_file: options.PromptsFile = None,
    prompt_column: options.PromptColumn = None,
    category: options.Category = None,
    quiet: options.Quiet = False,
    **flags: Any,
) -> None:
    """Compare tuned models with the base on the same seeds, by every available reward.

    Writes tables, results.json, results.csv, plots and report.html. An interrupted evaluation
    resumes when the command is repeated.

    Example: dpok evaluate --unseen-prompts
    """
    if files and not votes:
        raise InputError(f"{files[0]} is an extra argument: name runs with --run.")
    runs_dir = flags["runs_dir"] or EvaluateConfig.runs_dir
    if votes:
        _count([*votes, *(files or [])], output or Path(runs_dir), as_json)
        return
    from dpok_cli.engine.evaluation.contenders import find_contenders, shared_settings

    others = (prompts_file, prompt_column, flags["prompts"], unseen_prompts, unseen_prompts_file)
    found = _benchmark(benchmark, download, any(others), quiet)
    prompts_file = found or _prompts.settled(prompts_file, prompt_column, quiet)
    unseen_prompts_file = _prompts.settled(unseen_prompts_file, None, quiet)
    tuned = find_contenders(run or [], adapter or [], runs_dir)
    given = {key for key, value in flags.items() if value not in (None, [])}
    settings = options.resolve(
        EvaluateConfig,
        flags,
        preset=preset,
        file=config,
        prompts_file=prompts_file,
        category=category,
        under=shared_settings(tuned, given),
        defaults={"samples": found.benchmark.samples} if found else None,
    )
    if print_config:
        console.say(to_toml(settings).rstrip(), console.out)
        return
    from dpok_cli.engine.evaluation.folder import EvaluationFolder
    from dpok_cli.engine.evaluation.official import write_official
    from dpok_cli.engine.evaluation.plan import settle
    from dpok_cli.engine.evaluation.report.human import check_samples

    categories = unseen_prompts_file.categories() if unseen_prompts_file else {}
    if prompts_file:
        categories |= prompts_file.categories(category)
    evaluation = settle(
        settings,
        tuned,
        unseen=unseen_prompts,
        extra_prompts=unseen_prompts_file.prompts() if unseen_prompts_file else (),
        categories=categories,
        benchmark=found.name if found else "",
    )
    if human:
        check_samples(evaluation)
    folder = EvaluationFolder.check(output or EvaluationFolder.default(evaluation), evaluation)

    keep_freed_memory()
    with advice_when_full(settings):
        results = _evaluate(evaluation, folder, human, quiet)
    if results:
        for line in write_official(found, evaluation, folder) if found else ():
            if not quiet:
                console.say(line)
        _show(results, folder, human, as_json)


def _benchmark(text: str | None, download: bool, others: bool, quiet: bool) -> BenchmarkFile | None:
    """Return the benchmark that is named, if one is; raises InputError beside ``others``."""
    if not text:
        if download:
            raise InputError("--download needs --benchmark NAME, which it fetches.")
        return None
    if others:
        raise InputError("--benchmark brings its own prompts: leave out those of other flags.")
    found = BenchmarkFile.find(text, download)
    _prompts.understood(found, None, quiet)
    return found


def _evaluate(
    evaluation: "Evaluation", folder: "EvaluationFolder", human: bool, quiet: bool
) -> "Results | None":
    """Draw, score and write results and pages; returns the results on rank 0."""
    from dpok_cli.engine.distributed import leave_group, process_state
    from dpok_cli.engine.evaluation.draw import draw
    from dpok_cli.engine.evaluation.evaluate import finish, start
    from dpok_cli.engine.evaluation.report.html import write_report
    from dpok_cli.engine.evaluation.report.human import write_human_page

    processes = process_state(evaluation.config.device)
    quiet = quiet or not processes.is_main_process
    changed: list[str] = []
    with start(evaluation, folder.path, changed.append) as (reward, folder):
        if not quiet:
            _announce(evaluation, folder)
            for line in changed:
                console.say(f"Warning: {line}")
        with stopping("the same command continues.", quiet) as stop:
            drawn = draw(evaluation, reward, folder, stop.requested)
            for _ in console.progress(drawn, evaluation.total, "Drawing", quiet):
                pass
        leave_group(processes)
        if not processes.is_main_process:
            return None
        results = finish(evaluation, reward, folder)
        write_report(results, evaluation, folder)
        if human:
            write_human_page(evaluation, folder)
        return results


def _announce(evaluation: "Evaluation", folder: "EvaluationFolder") -> None:
    """Print the unseen prompts, what was left out, and the folder."""
    from dpok_cli.rewards.manager import registry

    unseen = [prompt.text for prompt in evaluation.prompts if prompt.group == "unseen"]
    for text in unseen[:SHOWN]:
        console.say(f"Unseen: {text}")
    if len(unseen) > SHOWN:
        console.say(f"Unseen: {len(unseen) - SHOWN} more")
    for line in (*registry().left_out(), *evaluation.remarks):
        console.say(line)
    console.say(f"Evaluation folder: {folder.path}")


def _show(results: "Results", folder: "EvaluationFolder", human: bool, as_json: bool) -> None:
    """Print the results, their warnings and where the pages are."""
    if as_json:
        console.say(dumps(results, indent=2), console.out)
        return
    console.show(tables.evaluation_table(results))
    if any(each["trained_by"] for each in results["rewards"]):
        console.say("* trained on this score", console.out)
    for warning in results["warnings"]:
        console.say(f"Warning: {warning['text']}", console.out)
    console.say(f"Report: {folder.report}", console.out)
    if human:
        console.say(f"Page for raters: {folder.human}", console.out)


def _count(files: list[Path], where: Path, as_json: bool) -> None:
    """Count the votes in ``files`` and print the result; ``where`` has the page's key."""
    from dpok_cli.engine.evaluation.report.votes import read_votes, tally

    result = tally(*read_votes(files, [where]))
    if as_json:
        console.say(dumps(result, indent=2), console.out)
        return
    console.show(tables.votes_table(result))
    raters = result["raters"]
    console.say(f"{raters} rater{'s' if raters != 1 else ''}", console.out)

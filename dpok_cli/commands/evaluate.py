"""`dpok evaluate`: models side by side on the same seeds, on prompts seen and unseen."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpok_cli.allocator import keep_freed_memory
from dpok_cli.config import TINY, EvaluateConfig, to_toml
from dpok_cli.config import flags as options
from dpok_cli.display import console, tables
from dpok_cli.errors import InputError
from dpok_cli.memory import advice_when_full
from dpok_cli.prompts.files import read_categories, read_prompts

if TYPE_CHECKING:
    from dpok_cli.engine.evaluation.folder import EvaluationFolder
    from dpok_cli.engine.evaluation.plan import Evaluation

Runs = Annotated[
    list[str] | None,
    typer.Option(
        "--run",
        help="A run to compare with the base: its folder, its name or 'latest'; may be given again."
        " By default the newest.",
        rich_help_panel="Model",
        metavar="[NAME=]RUN",
    ),
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        help="A LoRA folder to compare; may be given again.",
        rich_help_panel="Model",
        metavar="[NAME=]FOLDER",
    ),
]
UnseenPrompts = Annotated[
    bool,
    typer.Option(
        "--unseen-prompts",
        help="Evaluate on prompts that training did not see, too: the paper's partners, or variants"
        " of the trained prompts.",
        rich_help_panel="Prompts",
    ),
]
UnseenPromptsFile = Annotated[
    Path | None,
    typer.Option(
        help="Unseen prompts of your own, one a line, or .json with categories.",
        rich_help_panel="Prompts",
        metavar="FILE",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        help="The folder of the evaluation; the same one again goes on there. By default in the run"
        " folder.",
        rich_help_panel="Run",
        metavar="DIR",
    ),
]
Human = Annotated[
    bool,
    typer.Option("--human", help="Write human.html, a blind A/B page.", rich_help_panel="Run"),
]
Votes = Annotated[
    list[Path] | None,
    typer.Option(
        help="Count answers that human.html saved, and draw nothing; may be given again.",
        rich_help_panel="Run",
        metavar="FILE",
    ),
]
MoreVotes = Annotated[
    list[Path] | None,
    typer.Argument(help="More files for --votes.", metavar="FILE", show_default=False),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print results.json, no table.", rich_help_panel="Run")
]


@options.config_flags(EvaluateConfig)
def evaluate(
    files: MoreVotes = None,
    *,
    run: Runs = None,
    adapter: Adapters = None,
    unseen_prompts: UnseenPrompts = False,
    unseen_prompts_file: UnseenPromptsFile = None,
    output: Output = None,
    human: Human = False,
    votes: Votes = None,
    as_json: Json = False,
    preset: options.Preset = None,
    config: options.ConfigFile = None,
    print_config: options.PrintConfig = False,
    prompts_file: options.PromptsFile = None,
    category: options.Category = None,
    quiet: options.Quiet = False,
    **flags: Any,
) -> None:
    """Compare tuned models with the base, seed by seed, on every score that is at hand.

    A table, results.json, results.csv, plots and report.html, one page to look at. An evaluation
    that was cut off goes on where it was when it is asked for again.

    Example: dpok evaluate --unseen-prompts
    """
    if files and not votes:
        raise InputError(f"{files[0]} is an extra argument: name runs with --run.")
    from dpok_cli.engine.evaluation import plan

    runs, adapters = run or [], adapter or []
    if votes:
        runs_dir = flags["runs_dir"] or EvaluateConfig.runs_dir
        _count([*votes, *(files or [])], [output] if output else [Path(runs_dir)], as_json)
        return
    tuned = plan.find_contenders(runs, adapters, flags["runs_dir"] or EvaluateConfig.runs_dir)
    given = {key for key, value in flags.items() if value not in (None, [])}
    settings = options.resolve(
        EvaluateConfig,
        flags,
        preset=preset,
        file=config,
        prompts_file=prompts_file,
        category=category,
        under=plan.shared_settings(tuned, given),
    )
    if print_config:
        console.say(to_toml(settings).rstrip(), console.out)
        return
    evaluation, remarks = _plan(settings, tuned, unseen_prompts, unseen_prompts_file, prompts_file)
    with advice_when_full(settings):
        _evaluate(evaluation, remarks, output, human, as_json, quiet)


def _plan(
    settings: EvaluateConfig,
    tuned: list[Any],
    derive: bool,
    unseen_file: Path | None,
    prompts_file: Path | None,
) -> tuple["Evaluation", list[str]]:
    """Settle models, prompts and rewards; returns remarks on what was left out."""
    from dpok_cli.engine.bases.source import check_source
    from dpok_cli.engine.evaluation import plan
    from dpok_cli.prompts.unseen import unseen_prompts
    from dpok_cli.rewards.held_out import bare, rewards_for
    from dpok_cli.rewards.manager import build

    if not settings.prompts:
        raise InputError(
            "It is not known what the adapter was trained on: give --prompt or --prompts."
        )
    derived = unseen_prompts(settings.prompts) if derive else {}
    bare_of = [prompt for prompt, unseen in derived.items() if not unseen.variants]
    if derive and len(bare_of) == len(derived):
        raise InputError(
            f"There are no variants of {bare_of[0]!r}: write some to a file and give it to"
            " --unseen-prompts-file."
        )
    categories: dict[str, str] = {}
    for file in filter(None, (prompts_file, unseen_file)):
        categories |= read_categories(file)
    unseen = read_prompts(unseen_file) if unseen_file else ()
    prompts = plan.arrange_prompts(settings.prompts, tuned, derived, unseen, categories)
    remarks = [f"There are no variants of {prompt!r}." for prompt in bare_of]
    if settings.rewards:
        rewards = [bare(text) for text in settings.rewards]
    else:
        trained = [text for each in tuned for text in each.trained_rewards]
        rewards, left_out = rewards_for(settings.model, [each.text for each in prompts], trained)
        remarks += left_out
    # What can be refused without torch is refused before it is imported.
    build(rewards, tiny=settings.model == TINY)
    check_source(settings.model)
    contenders = (plan.Contender(plan.BASE), *tuned)
    return plan.Evaluation(settings, contenders, prompts, tuple(rewards)), remarks


def _evaluate(
    evaluation: "Evaluation",
    remarks: list[str],
    output: Path | None,
    human: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    from dpok_cli.engine.evaluation.folder import EvaluationFolder

    path = output or EvaluationFolder.default(evaluation)
    begun = EvaluationFolder.check(path, evaluation).settings.is_file()
    keep_freed_memory()
    from dpok_cli.engine.device import device_of, process_state
    from dpok_cli.engine.distributed import in_first, part_ways
    from dpok_cli.engine.evaluation.draw import check_models
    from dpok_cli.engine.evaluation.draw import evaluate as records
    from dpok_cli.engine.evaluation.results import summarise
    from dpok_cli.rewards.embedding import image_embedding
    from dpok_cli.rewards.manager import build, registry

    processes = process_state(evaluation.config.device)
    main = processes.is_main_process
    quiet = quiet or not main
    device = device_of(evaluation.config.device)
    reward = build(evaluation.rewards, device, tiny=evaluation.config.model == TINY)
    if not begun:  # what cannot be used is refused before a folder is made
        check_models(evaluation)
        reward.prepare()
    folder = in_first(lambda: EvaluationFolder.open(path, evaluation), processes)
    if not quiet:
        for prompt in evaluation.prompts:
            if prompt.group == "unseen":
                console.say(f"Unseen: {prompt.text}")
        for line in registry().left_out():
            console.say(line)
        for remark in remarks:
            console.say(remark)
        console.say(f"Evaluation folder: {folder.path}")
    drawn = records(evaluation, reward, folder)
    for _ in console.progress(drawn, evaluation.total, "Drawing", quiet):
        pass
    part_ways(processes)
    if not main:
        return
    embedding = image_embedding(evaluation.config.model, device, reward)
    results = summarise(evaluation, reward, folder, embedding, remarks)
    _write(results, evaluation, folder, human)
    if as_json:
        console.say(json.dumps(results, indent=2), console.out)
        return
    console.out.print(tables.evaluation_table(results))
    if any(each["trained_by"] for each in results["rewards"]):
        console.say("* trained on this score", console.out)
    for warning in results["warnings"]:
        console.say(f"Warning: {warning['text']}", console.out)
    console.say(f"Report: {folder.report}", console.out)
    if human:
        console.say(f"For people: {folder.human}", console.out)


def _write(
    results: dict[str, Any], evaluation: "Evaluation", folder: "EvaluationFolder", human: bool
) -> None:
    from dpok_cli.engine.evaluation.report.html import render_report
    from dpok_cli.engine.evaluation.report.human import write_human_page
    from dpok_cli.engine.evaluation.report.plots import plot_evaluation
    from dpok_cli.engine.evaluation.results import to_csv
    from dpok_cli.engine.runs.folder import write_atomically

    write_atomically(folder.results, json.dumps(results, indent=2) + "\n")
    write_atomically(folder.table, to_csv(results))
    plots = plot_evaluation(results, folder.plots)
    write_atomically(folder.report, render_report(results, evaluation, folder, plots))
    if human:
        write_human_page(evaluation, folder)


def _count(files: list[Path], where: list[Path], as_json: bool) -> None:
    from dpok_cli.engine.evaluation.report.human import read_votes, tally

    result = tally(*read_votes(files, where))
    if as_json:
        console.say(json.dumps(result, indent=2), console.out)
        return
    console.out.print(tables.votes_table(result))
    raters = result["raters"]
    console.say(f"{raters} rater{'s' if raters != 1 else ''}", console.out)

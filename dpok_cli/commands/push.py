"""`dpok push`: an adapter, its card and images to the Hugging Face hub."""

from typing import Annotated

import typer

from dpok_cli.config import TrainSFTConfig, resolve
from dpok_cli.display import console
from dpok_cli.engine.rl.settings import TrainRLConfig

Run = Annotated[
    str,
    typer.Argument(help="Run: a folder, a name or 'latest'.", metavar="RUN", show_default=False),
]
Repo = Annotated[
    str,
    typer.Argument(
        help="Name on the hub; it is made if it does not exist.",
        metavar="USER/NAME",
        show_default=False,
    ),
]
Private = Annotated[bool, typer.Option("--private", help="Make a private repository.")]
Base = Annotated[
    str,
    typer.Option(
        "--base-model",
        help="Hub id of the base model, if the run was on a local copy of it.",
        metavar="ID",
        show_default=False,
    ),
]
RunsDir = Annotated[str, typer.Option(help="Folder of the run folders.", metavar="DIR")]


def push(
    run: Run,
    repo: Repo,
    *,
    private: Private = False,
    base_model: Base = "",
    runs_dir: RunsDir = "runs",
) -> None:
    """Upload a run's adapter, with its card and images before and after training.

    Uses the token of `hf auth login` or HF_TOKEN. The card names no folder of this machine.

    Example: dpok push latest USER/green-rabbit
    """
    from dpok_cli.engine.runs.folder import RunFolder
    from dpok_cli.engine.training.hub import check_repo, pictures
    from dpok_cli.engine.training.hub import push as upload

    check_repo(repo)
    if base_model:
        check_repo(base_model)
    folder = RunFolder.open(run, runs_dir)
    kinds = {each.command: each for each in (TrainRLConfig, TrainSFTConfig)}
    config = resolve(kinds[folder.command()], file=folder.config)
    if not pictures(folder):
        console.say("The run has no sample grids to show: --sample-every 0 draws none.")
    console.say(upload(folder, config, repo, private, base_model), console.out)

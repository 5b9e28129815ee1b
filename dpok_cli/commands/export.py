"""`dpok export`: an adapter in another tool's form, or merged into its model."""

from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from dpok_cli.config import Precision, SampleConfig
from dpok_cli.display import console
from dpok_cli.engine.lora.export import FORMS, Form
from dpok_cli.errors import InputError, suggest
from dpok_cli.inputs import at_home

Source = Annotated[
    str,
    typer.Argument(
        help="Run (a folder, a name or 'latest'), or a LoRA folder or file in any form.",
        metavar="RUN|ADAPTER",
        show_default=False,
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="Form to write: kohya is a file for ComfyUI, A1111 and kohya's scripts; diffusers a"
        " file for load_lora_weights; peft a folder for PeftModel.from_pretrained.",
        metavar="|".join(FORMS),
    ),
]
Merge = Annotated[
    bool,
    typer.Option("--merge", help="Write a pipeline folder with the adapter merged instead."),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="Floating-point precision to write; by default that of the weights.",
        metavar="fp32|fp16|bf16",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        help="New file, or folder of peft and --merge; by default NAME-FORMAT here.",
        metavar="PATH",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(help="Base model; by default that of the run.", metavar="ID|FOLDER|FILE"),
]
RunsDir = Annotated[str, typer.Option(help="Folder of the run folders.", metavar="DIR")]


def export(
    source: Source,
    *,
    form: Format = None,
    merge: Merge = False,
    dtype: Dtype = None,
    output: Output = None,
    model: Model = None,
    runs_dir: RunsDir = "runs",
) -> None:
    """Write an adapter in the form of another tool, or merged into its model.

    Example: dpok export latest --format kohya
    """
    if merge == bool(form):
        raise InputError(f"Give either --format {'|'.join(FORMS)} or --merge.")
    if form and form not in FORMS:
        raise InputError(f"--format {form!r}: no such form.{suggest(form, FORMS)}")
    if dtype and dtype not in get_args(Precision):
        raise InputError(
            f"--dtype {dtype!r}: no such precision.{suggest(dtype, get_args(Precision))}"
        )
    name, adapter, config = _find(source, runs_dir)
    base = model or str(config.get("model", ""))
    what = form or "merged"
    file = what in ("diffusers", "kohya")
    output = at_home(output or Path(f"{name}-{what}{'.safetensors' if file else ''}"))
    if file and output.suffix != ".safetensors":
        raise InputError(f"--output {output}: the file's name must end in .safetensors.")
    if output.exists():
        raise InputError(f"{output} already exists: give another --output, or remove it.")
    if merge and not base:
        raise InputError("--merge needs the base model: give --model.")
    kept = {"vae": config.get("vae", "")}
    if not model:  # the configuration is that of the run's own file
        kept["model_config"] = config.get("model_config", "")
    settings = SampleConfig(**kept, model=base or SampleConfig.model, device="cpu")
    from dpok_cli.engine.lora.files import read_adapter

    lora = read_adapter(adapter, "dpok export")
    from dpok_cli.engine.bases.load import load
    from dpok_cli.engine.bases.merge import write_merged
    from dpok_cli.engine.bases.parts import DTYPES
    from dpok_cli.engine.lora.export import write

    wanted = DTYPES[dtype] if dtype else None
    if form:
        write(lora, cast(Form, form), output, base=base, dtype=wanted)
    else:
        write_merged(load(settings, adapter), output, wanted)
    console.say(str(output), console.out)


def _find(source: str, runs_dir: str) -> tuple[str, Path, dict[str, Any]]:
    """Return a name, the adapter and the config of its run, {} if there is none."""
    from dpok_cli.engine.runs.folder import RunFolder

    path = Path(at_home(source))
    if path.exists() and not (path / "config.toml").is_file():
        run = RunFolder(path.resolve().parent)
        if path.name != run.adapter.name or not run.config.is_file():
            return path.resolve().stem, path, {}
    else:
        run = RunFolder.open(source, runs_dir)
    return run.path.resolve().name, run.adapter, run.read_config()

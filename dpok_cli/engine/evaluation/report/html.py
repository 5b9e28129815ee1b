"""report.html: an evaluation on one self-contained page, and the helpers that pages share."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpok_cli.engine.evaluation.contenders import BASE
from dpok_cli.engine.evaluation.folder import EvaluationFolder
from dpok_cli.engine.evaluation.plan import Evaluation, Place
from dpok_cli.engine.evaluation.report.plots import PLOTS, plot_evaluation
from dpok_cli.engine.runs.files import write_text
from dpok_cli.engine.sampling.pictures import enlarge, enlargement

if TYPE_CHECKING:
    from jinja2 import Template

Results = dict[str, Any]

#: The most pairs of pictures on the page, and the fewest and the most of a model and prompt.
MAX_PAIRS, MIN_PAIRS, MAX_BLOCKS = 120, 4, 30
#: The longest side of a picture on the page, in pixels.
MAX_SIDE = 256


def write_report(results: Results, evaluation: Evaluation, folder: EvaluationFolder) -> Path:
    """Write the plots and report.html of an evaluation's results; returns the page's path."""
    plots = plot_evaluation(results, folder.plots)
    write_text(folder.report, render_report(results, evaluation, folder, plots))
    return folder.report


def render_report(
    results: Results, evaluation: Evaluation, folder: EvaluationFolder, plots: Sequence[Path]
) -> str:
    """Return the page: warnings, table, plots, pairs of the same seed, settings and versions."""
    return template("report.html.j2").render(
        results=results,
        tables=_tables(results),
        spread="diversity" if results["diversity"] else "pixel_distance",
        plots={PLOTS[file.stem][1]: _data_uri(file.read_bytes(), "png") for file in plots},
        blocks=_blocks(results, evaluation, folder),
        base=BASE,
    )


def template(name: str) -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = number
    text = files(__package__).joinpath("templates", name).read_text(encoding="utf-8")
    return environment.from_string(text)


def number(value: float | None, sign: bool = False) -> str:
    """Format a number with three decimals, or with two significant digits if it is below 0.01."""
    if value is None:
        return ""
    form = ".3f" if value == 0 or abs(value) >= 0.01 else ".2g"
    return f"{value:{'+' if sign and value else ''}{form}}"


def picture(file: Path, side: int = MAX_SIDE) -> str:
    """Return a picture as a data URI without metadata.

    A small one is enlarged (`pictures.enlarge`) and kept without loss; one larger than ``side``
    is scaled down.
    """
    from PIL import Image

    with Image.open(file) as image:
        pixels = image.convert("RGB")
    if enlargement(pixels.size) > 1:
        return _data_uri(_encoded(enlarge(pixels), "PNG", optimize=True), "png")
    pixels.thumbnail((side, side), Image.Resampling.LANCZOS)
    return _data_uri(_encoded(pixels, "JPEG", quality=85), "jpeg")


def _encoded(image: Any, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _tables(results: Results) -> list[dict[str, Any]]:
    """Return the tables of each group: of all its prompts, by category and by prompt.

    The second categories, as in PartiPrompts, are challenges.
    """
    rows = results["rows"]
    tables = []
    for group in dict.fromkeys(row["group"] for row in rows):
        own = [row for row in rows if row["group"] == group]
        parts: list[tuple[str, list[dict[str, Any]]]] = []
        for scope in ("category", "challenge", "prompt"):
            titled: dict[str, list[dict[str, Any]]] = {}
            for row in own:
                if row["scope"] == scope:
                    title = row["prompt" if scope == "prompt" else "category"]
                    titled.setdefault(title, []).append(row)
            parts += [(f"{scope.capitalize()}: {title}", rows) for title, rows in titled.items()]
        count = len({row["prompt"] for row in own if row["scope"] == "prompt"})
        whole = [row for row in own if row["scope"] == "group"]
        tables.append({"group": group, "prompts": count, "rows": whole, "parts": parts})
    return tables


def _blocks(
    results: Results, evaluation: Evaluation, folder: EvaluationFolder
) -> list[dict[str, Any]]:
    """Return, for each tuned model and prompt, pairs of the same seed sorted by their change.

    The change is of a reward that the model was trained on, else of the first reward. If there are
    too many pairs, those with the largest rises and the largest falls are shown.
    """
    tuned = [each.name for each in evaluation.contenders if each.name != BASE]
    wanted = [(model, row) for model in tuned for row in range(len(evaluation.prompts))]
    shown = max(MIN_PAIRS, MAX_PAIRS // max(1, len(wanted)))
    kept = folder.records()
    blocks = []
    for model, row in wanted[:MAX_BLOCKS]:
        trained = [each for each in results["rewards"] if model in each["trained_by"]]
        reward = (trained or results["rewards"])[0]
        name, sign = reward["name"], 1 if reward["higher_is_better"] else -1
        pairs = []
        for seed in evaluation.seeds:
            place = Place(row, seed)
            before, after = (kept[who, place]["scores"][name] for who in (BASE, model))
            pairs.append({"seed": seed, "before": before, "after": after, "change": after - before})
        pairs.sort(key=lambda pair: (-sign * pair["change"], pair["seed"]))
        if len(pairs) > shown:
            pairs = pairs[: -(-shown // 2)] + pairs[-(shown // 2) :]
        for pair in pairs:
            place = Place(row, pair["seed"])
            for who, key in ((BASE, "before_image"), (model, "after_image")):
                pair[key] = picture(folder.image(who, place))
        blocks.append(
            {
                "model": model,
                "prompt": evaluation.prompts[row],
                "reward": name,
                "pairs": pairs,
                "all": evaluation.config.samples,
                "by_change": len(pairs) < evaluation.config.samples,
            }
        )
    return blocks

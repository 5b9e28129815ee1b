"""report.html: an evaluation on one self-contained page, and the helpers that pages share."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpok_cli.engine.evaluation.contenders import BASE
from dpok_cli.engine.evaluation.folder import EvaluationFolder
from dpok_cli.engine.evaluation.plan import Evaluation
from dpok_cli.engine.evaluation.report.pairs import blocks
from dpok_cli.engine.evaluation.report.pictures import data_uri
from dpok_cli.engine.evaluation.report.plots import PLOTS, plot_evaluation
from dpok_cli.engine.runs.files import write_text

if TYPE_CHECKING:
    from jinja2 import Template

Results = dict[str, Any]


def write_report(results: Results, evaluation: Evaluation, folder: EvaluationFolder) -> Path:
    """Write the plots and report.html of an evaluation's results; returns the page's path."""
    plots = plot_evaluation(results, folder.plots)
    write_text(folder.report, render_report(results, evaluation, folder, plots))
    return folder.report


def render_report(
    results: Results, evaluation: Evaluation, folder: EvaluationFolder, plots: Sequence[Path]
) -> str:
    """Return the page: warnings, pairs of the same seed, tables, plots, settings and versions."""
    sections = _sections(results, evaluation, folder)
    return template("report.html.j2").render(
        results=results,
        sections=sections,
        contents=_contents(sections),
        tables=_tables(results),
        spread="diversity" if results["diversity"] else "pixel_distance",
        plots={PLOTS[file.stem][1]: data_uri(file.read_bytes(), "png") for file in plots},
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


def _tables(results: Results) -> list[dict[str, Any]]:
    """Return the tables of each group: of all its prompts, and of its parts if it has several.

    These are the categories, and the second categories, as in PartiPrompts, which are challenges.
    """
    tables = []
    for group in dict.fromkeys(row["group"] for row in results["rows"]):
        own = [row for row in results["rows"] if row["group"] == group]
        parts: dict[str, list[dict[str, Any]]] = {}
        for scope in ("category", "challenge"):
            titled: dict[str, list[dict[str, Any]]] = {}
            for row in own:
                if row["scope"] == scope:
                    titled.setdefault(f"{scope.capitalize()}: {row['category']}", []).append(row)
            parts |= titled if len(titled) > 1 else {}
        tables.append(
            {
                "group": group,
                "prompts": len({row["prompt"] for row in own if row["scope"] == "prompt"}),
                "rows": [row for row in own if row["scope"] == "group"],
                "parts": parts,
            }
        )
    return tables


def _sections(
    results: Results, evaluation: Evaluation, folder: EvaluationFolder
) -> list[dict[str, Any]]:
    """Return what the page shows of each prompt: its pairs of pictures and its numbers."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in results["rows"]:
        if row["scope"] == "prompt":
            rows.setdefault((row["group"], row["prompt"]), []).append(row)
    sections = []
    for place, found in blocks(results, evaluation, folder).items():
        prompt = evaluation.prompts[place]
        own = rows[prompt.group, prompt.text]
        sections.append(
            {
                "number": place + 1,
                "prompt": prompt,
                "blocks": found,
                "rows": own,
                "changes": [_change(own, block, results) for block in found],
            }
        )
    return sections


def _change(
    rows: Sequence[dict[str, Any]], block: dict[str, Any], results: Results
) -> dict[str, Any]:
    """Return by how much a block's model changes its reward, and whether that is "up" or "down"."""
    (reward,) = (each for each in results["rewards"] if each["name"] == block["reward"])
    (row,) = (
        row for row in rows if (row["model"], row["measure"]) == (block["model"], block["reward"])
    )
    by = row["difference"] or 0.0
    better = by if reward["higher_is_better"] else -by
    return {"by": by, "side": "up" if better > 0 else "down" if better < 0 else ""}


def _contents(sections: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the sections by group and category, for the table of contents."""
    found: dict[str, list[dict[str, Any]]] = {}
    for section in sections:
        prompt = section["prompt"]
        title = f"{prompt.group.capitalize()} prompts"
        found.setdefault(f"{title}, {prompt.category}" if prompt.category else title, []).append(
            section
        )
    return found

"""Plots of an evaluation: means, differences and win rates, each with its interval."""

from __future__ import annotations

from pathlib import Path
from textwrap import wrap
from typing import Any

from dpok_cli.engine.evaluation.contenders import BASE
from dpok_cli.engine.runs.files import replacing
from dpok_cli.engine.runs.plots import plain_texts

Results = dict[str, Any]

#: By name: the keys of the value and its interval, the title, and the value of no change.
PLOTS: dict[str, tuple[tuple[str, str, str], str, float | None]] = {
    "means": (("mean", "low", "high"), "Mean score", None),
    "differences": (
        ("difference", "difference_low", "difference_high"),
        "Change against the base, same seeds",
        0.0,
    ),
    "win_rates": (("win_rate", "win_low", "win_high"), "Win rate against the base", 0.5),
}
#: The most panels in a row, so that they stay legible on the page.
COLUMNS = 3


def plot_evaluation(results: Results, folder: Path) -> list[Path]:
    """Write one PNG for each of `PLOTS` that has values into ``folder``; returns the files.

    A panel is a reward; a line in it is a model on a group of prompts, with its 95 % interval.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, (keys, title, reference) in PLOTS.items():
        if any(row[keys[0]] is not None for row in _group_rows(results)):
            files.append(folder / f"{name}.png")
            _plot(results, keys, title, reference, files[-1])
    return files


def _group_rows(results: Results) -> list[dict[str, Any]]:
    rewards = [reward["name"] for reward in results["rewards"]]
    return [row for row in results["rows"] if row["scope"] == "group" and row["measure"] in rewards]


@plain_texts()
def _plot(
    results: Results, keys: tuple[str, str, str], title: str, reference: float | None, file: Path
) -> None:
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    value, low, high = keys
    rows = [row for row in _group_rows(results) if row[value] is not None]
    lines = list(dict.fromkeys((row["group"], row["model"]) for row in rows))
    rewards = results["rewards"]
    across = min(COLUMNS, len(rewards))
    down = -(-len(rewards) // across)
    figure = Figure(
        figsize=(1.6 + 2.6 * across, 0.4 + down * (0.8 + 0.34 * len(lines))), layout="constrained"
    )
    grid = figure.subplots(down, across, sharey=True, squeeze=False)
    panels: list[Any] = grid.flatten().tolist()
    for panel in panels[len(rewards) :]:
        panel.remove()
    for panel, reward in zip(panels, rewards, strict=False):
        for place, line in enumerate(lines):
            (row,) = (
                row
                for row in rows
                if (row["group"], row["model"]) == line and row["measure"] == reward["name"]
            )
            colour = "tab:gray" if row["model"] == BASE else "tab:blue"
            panel.hlines(place, row[low], row[high], color=colour, linewidth=2)
            panel.plot([row[value]], [place], "o", color=colour)
        if reference is not None:
            panel.axvline(reference, color="black", linewidth=0.8, linestyle=":")
        panel.margins(x=0.08)
        if value == "win_rate":
            panel.set_xlim(-0.05, 1.05)
        by = reward["trained_by"]
        trained = wrap(f"trained on by {', '.join(by)}", 36) if by else []
        panel.set_title("\n".join([reward["name"], *trained]), fontsize=9)
        panel.tick_params(labelsize=8)
        panel.locator_params(axis="x", nbins=4)
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(lines)), [f"{model}, {group}" for group, model in lines])
    panels[0].set_ylim(len(lines) - 0.4, -0.6)
    figure.suptitle(title, fontsize=10)
    with replacing(file) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})

"""The plot of a run: its metrics over rounds or steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from dpok_cli.engine.runs.measures import Measure, Record

#: Of the panels, from the top.
COLOURS = ("tab:green", "tab:blue", "tab:orange")


def plot_metrics(
    history: Sequence[Record], measures: Iterable[Measure], unit: str, file: Path
) -> None:
    """Draw a run's plotted measures over its rounds or steps as PNG, one panel each.

    ``history`` is what metrics.jsonl holds; ``unit`` is its key that counts. A measure with a
    spread has a band of one standard deviation. Measures that no record has are left out.
    """
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    shown = [one for one in measures if one.plotted and one.key in history[0]]
    numbers = [record[unit] for record in history]
    figure = Figure(figsize=(7, 2.5 * len(shown)), layout="constrained")
    panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False).flatten()
    for place, (panel, measure) in enumerate(zip(panels, shown, strict=True)):
        values, colour = [record[measure.key] for record in history], COLOURS[place % 3]
        if measure.spread:
            spreads = [record[measure.spread] for record in history]
            low, high = (
                [v + sign * s for v, s in zip(values, spreads, strict=True)] for sign in (-1, 1)
            )
            panel.fill_between(numbers, low, high, alpha=0.2, color=colour, linewidth=0)
        panel.plot(numbers, values, color=colour, marker=".")
        panel.set_ylabel(measure.label or measure.key)
    panels[-1].set_xlabel(unit)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)

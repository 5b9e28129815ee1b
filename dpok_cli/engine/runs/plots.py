"""The plot of a run: its metrics over rounds or steps."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dpok_cli.engine.runs.files import replacing
from dpok_cli.engine.runs.measures import Measure, Record

#: Of the panels, from the top.
COLOURS = ("tab:green", "tab:blue", "tab:orange")
#: Fonts with other scripts than matplotlib's own, of Linux, Windows and macOS.
OTHER_SCRIPTS = (
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans Arabic", "Noto Sans Devanagari"),
    *("Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Nirmala UI", "Segoe UI Emoji"),
    *("Hiragino Sans", "PingFang SC", "Arial Unicode MS", "Apple Symbols"),
)


@contextmanager
def plain_texts() -> Iterator[None]:
    """Draw texts as they are in the block: any script that has a font here, and no mathematics.

    A character that is in no font is a box, without a warning.
    """
    import matplotlib
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    family = ["sans-serif", *(name for name in OTHER_SCRIPTS if name in installed)]
    settings = {"font.family": family, "text.parse_math": False}
    with matplotlib.rc_context(settings), warnings.catch_warnings():  # type: ignore[arg-type]
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


@plain_texts()
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
    with replacing(file) as temporary:
        figure.savefig(temporary, format="png", dpi=120)

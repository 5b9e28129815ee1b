"""Tables: before and after a training, an evaluation, and the votes of raters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dpok_cli.display.console import UNFOLDED

#: The columns of an evaluation after the names.
NUMBERS = ("mean [95 %]", "change [95 %]", "wins")


class PlainTable(Table):
    """A table without lines, whose texts are shown as they are: they may be anyone's.

    The columns of ``numbers`` come last, and are not narrowed.
    """

    def __init__(self, *headers: str, numbers: Sequence[str] = ()):
        super().__init__(box=None, pad_edge=False, header_style="bold")
        for header in headers:
            self.add_column(_plain(header), overflow="fold")
        for header in numbers:
            self.add_column(_plain(header), justify="right", no_wrap=True)

    def add_row(self, *cells: Any, **style: Any) -> None:
        super().add_row(*map(_plain, cells), **style)


def _plain(text: str) -> Text:
    """Return a text in one line, without markup."""
    return Text(" ".join(text.splitlines()))


@dataclass
class Listing:
    """A table whose last column is sentences; a narrow terminal has them on lines of their own."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = PlainTable(*self.headers)
        for row in self.rows:
            table.add_row(*row)
        if _fits(table, console, options):
            yield table
            return
        *columns, _ = zip(self.headers, *self.rows, strict=True)
        widths = [max(map(cell_len, column)) for column in columns]
        for place, row in enumerate([self.headers, *self.rows]):
            cells = zip(row[:-1], widths, strict=True)
            line = "  ".join(cell + " " * (width - cell_len(cell)) for cell, width in cells)
            yield Text(line.rstrip(), style="" if place else "bold")
            if place:
                yield Padding(_plain(row[-1]), (0, 0, 0, 2))


def _fits(table: Table, console: Console, options: ConsoleOptions) -> bool:
    """Whether no row of a table has to be folded."""
    unfolded = options.update_width(UNFOLDED)
    return console.measure(table, options=unfolded).maximum <= options.max_width


def before_after_table(before: Mapping[str, float], after: Mapping[str, float]) -> Table:
    """Make the table of the same measures before and after training."""
    table = PlainTable("", numbers=("before", "after", "change"))
    for name in _shown(before):
        change = after[name] - before[name]
        table.add_row(name, f"{before[name]:.3f}", f"{after[name]:.3f}", f"{change:+.3f}")
    return table


def plan_table(phases: Sequence[tuple[str, Mapping[str, int]]]) -> Table:
    """Make the table of the memory in each phase; the parts are in bytes."""
    names = list(dict.fromkeys(name for _, parts in phases for name in parts))
    table = PlainTable("GB to", numbers=(*names, "total"))
    for phase, parts in phases:
        sizes = [f"{parts[name] / 1e9:.2f}" if name in parts else "" for name in names]
        table.add_row(phase, *sizes, f"{sum(parts.values()) / 1e9:.2f}")
    return table


def evaluation_table(results: dict[str, Any]) -> _Evaluation:
    """Make the tables of an evaluation (results.json): one for each group of prompts.

    If a group has several categories or challenges, each of them has a table too. Where no terminal
    folds them they are one table, whose rows can each be read alone.
    """
    trained = {reward["name"]: reward["trained_by"] for reward in results["rewards"]}
    parts = []
    for group in dict.fromkeys(row["group"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["group"] == group]
        number = len({row["prompt"] for row in rows if row["scope"] == "prompt"})
        count = f" ({number} prompt{'s' if number > 1 else ''})"
        parts += [(group, count, [row for row in rows if row["scope"] == "group"])]
        for scope in ("category", "challenge"):
            named: dict[str, list[dict[str, Any]]] = {}
            for row in rows:
                if row["scope"] == scope:
                    named.setdefault(row["category"], []).append(row)
            if len(named) > 1:
                parts += [(f"{group}, {name}", "", own) for name, own in named.items()]
    return _Evaluation([_Scores(*part, trained) for part in parts])


@dataclass
class _Evaluation:
    parts: Sequence[_Scores]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if options.max_width < UNFOLDED:
            yield from self.parts
            return
        table = PlainTable("prompts", "score", "model", numbers=NUMBERS)
        for part in self.parts:
            for measure, lines in part.lines().items():
                for line in lines:
                    table.add_row(part.prompts, measure, *line)
        yield table


@dataclass
class _Scores:
    """The rows of one group or category; a narrow terminal has the measures on lines of their own.

    Otherwise the names of runs, which are long, would be folded.
    """

    prompts: str  # the group, and the category
    count: str
    rows: Sequence[dict[str, Any]]
    trained: dict[str, Any]  # the models that were trained on a reward, by its name

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = self.table(narrow=False)
        yield wide if _fits(wide, console, options) else self.table(narrow=True)

    def table(self, narrow: bool) -> Table:
        title = self.prompts + self.count
        table = PlainTable(*((title,) if narrow else (title, "model")), numbers=NUMBERS)
        for measure, lines in self.lines().items():
            if narrow:
                table.add_row(measure)
            for place, (model, *numbers) in enumerate(lines):
                names = [f"  {model}"] if narrow else ["" if place else measure, model]
                table.add_row(*names, *numbers)
        table.add_row()
        return table

    def lines(self) -> dict[str, list[tuple[str, ...]]]:
        """Return, by measure, the model and the numbers of each row; * is trained on it."""
        return {
            measure: [
                (
                    row["model"] + ("*" if row["model"] in self.trained.get(measure, ()) else ""),
                    _with_ends(row, "mean", "low", "high", "") or "not finite",
                    _with_ends(row, "difference", "difference_low", "difference_high", "+"),
                    "" if row["win_rate"] is None else f"{row['win_rate']:.0%}",
                )
                for row in self.rows
                if row["measure"] == measure
            ]
            for measure in _shown(dict.fromkeys(row["measure"] for row in self.rows))
        }


def votes_table(votes: dict[str, Any]) -> Table:
    """Make the table of raters' votes: a row for each model, question and group of prompts."""
    numbers = ("wins [95 %]", "sets", "votes", "agreement", "kappa")
    table = PlainTable("model", "question", "prompts", numbers=numbers)
    for row in votes["rows"]:
        agreement, kappa = row["agreement"], row["kappa"]
        table.add_row(
            row["model"],
            row["question"],
            row["group"],
            _with_ends(row, "win_rate", "win_low", "win_high", ""),
            str(row["sets"]),
            str(row["votes"]),
            "" if agreement is None else f"{agreement:.0%}",
            "" if kappa is None else f"{kappa:.2f}",
        )
    return table


def _shown(measures: Iterable[str]) -> list[str]:
    """Return the measures to show: the pixel distance only if there is no diversity."""
    measures = list(measures)
    hidden = "pixel_distance" if "diversity" in measures else ""
    return [measure for measure in measures if measure != hidden]


def _with_ends(row: dict[str, Any], value: str, low: str, high: str, sign: str) -> str:
    """Format a value and, with one digit less, the ends of its interval, if it has one."""
    if row[value] is None:
        return ""
    size = abs(row[value])
    digits = "1f" if size >= 100 else "3f" if size >= 5e-4 or size == 0 else "1e"
    end = f"{sign}.{'2f' if size >= 0.05 or size == 0 else digits}"
    if row[low] is None or row[high] is None:
        return f"{row[value]:{sign}.{digits}}"
    return f"{row[value]:{sign}.{digits}} [{row[low]:{end}}, {row[high]:{end}}]"

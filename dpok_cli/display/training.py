"""The view of a run while it trains: live on a terminal, plain lines elsewhere. Without torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Self

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dpok_cli.config import TrainingConfig
from dpok_cli.display import console
from dpok_cli.display.console import duration, say, sparkline
from dpok_cli.engine.runs.measures import Measure, Record, advice


class TrainingView:
    """The records of a run on stderr: live on a terminal, otherwise one plain line each.

    ``with TrainingView(...) as view: view.show(record)`` for each record. A hint of a measure that
    is unhealthy is printed once among plain lines; the live view shows it while it holds.
    """

    def __init__(
        self,
        config: TrainingConfig,
        measures: Sequence[Measure],
        unit: str,
        total: int,
        every: int = 1,
        quiet: bool = False,
    ):
        """``unit`` is the key that counts, up to ``total``; a record covers ``every`` of it."""
        self.config, self.measures, self.quiet = config, measures, quiet
        self.unit, self.total, self.every = unit, total, every
        self.parts = [one.key for one in measures if one.key.startswith("seconds/")]
        self.records: list[Record] = []
        #: The newest value of each measure: those of sample grids are not in every record.
        self.newest: dict[str, float] = {}
        self.hinted: set[str] = set()
        self.live: Live | None = None
        if console.is_live(console.err) and not quiet:
            self.live = Live("Starting ...", console=console.err, auto_refresh=False)

    def __enter__(self) -> Self:
        if self.live:
            self.live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def show(self, record: Record) -> None:
        """Show a record of metrics.jsonl."""
        self.records.append(record)
        self.newest |= record
        if self.live:
            self.live.update(self.picture(), refresh=True)
        elif not self.quiet:
            say(self.line())
            for key, hint in self.hints().items():
                if key not in self.hinted:
                    self.hinted.add(key)
                    say(f"  hint: {hint}")

    def warn(self, line: str) -> None:
        """Print a warning; the live view stays below it."""
        if not self.quiet:
            say(f"Warning: {line}")

    def hints(self) -> dict[str, str]:
        """Return, by key, what to do about each measure that is unhealthy now."""
        return advice(self.measures, self.records, self.config)

    def shown(self, record: Record) -> list[Measure]:
        """Return the measures of a record that the view has a name for."""
        return [one for one in self.measures if one.label and one.key in record]

    def seconds(self, record: Record) -> float:
        return sum(record[part] for part in self.parts)

    def seconds_left(self) -> float:
        """Estimate the time to the end, from that of the last ten records."""
        last = self.records[-10:]
        records_left = -(-(self.total - int(last[-1][self.unit])) // self.every)
        return sum(map(self.seconds, last)) / len(last) * records_left

    def line(self) -> str:
        """Write the newest record as a plain line."""
        last = self.records[-1]
        numbers = "  ".join(f"{one.label} {one.text(last)}" for one in self.shown(last))
        return (
            f"{self.unit} {last[self.unit]:.0f}/{self.total}  {numbers}"
            f"  {self.seconds(last):.1f} s  left {duration(self.seconds_left())}"
        )

    def rows(self) -> list[tuple[str, str, Text]]:
        """Return the rows of the live view: a name, the value now, and its course."""
        rows = []
        for one in self.shown(self.newest):
            course = sparkline([record[one.key] for record in self.records]) if one.plotted else ""
            rows.append((one.label, one.text(self.newest), Text(course, style="green")))
        return rows

    def picture(self) -> Group:
        """Draw the live view: progress, measures with their course, hints."""
        last = self.records[-1]
        head = bar(
            f"{self.unit.capitalize()} {last[self.unit]:.0f}/{self.total}",
            last[self.unit] / self.total,
            f"{duration(self.seconds_left())} left",
        )
        body = Table.grid(padding=(0, 2))
        body.add_column(style="dim")
        for row in self.rows():
            body.add_row(*row)
        parts = ", ".join(f"{last[part]:.1f} {part.partition('/')[2]}" for part in self.parts)
        body.add_row("seconds", f"{self.seconds(last):.1f}", parts)
        hints = [Text(f"! {hint}", style="yellow") for hint in self.hints().values()]
        return Group(head, body, *hints)


class SFTView(TrainingView):
    """The view of `dpok train-sft`, which collects its image set first."""

    tenth = 0  # of the images: the last one that a plain line was printed for
    began = 0.0
    had = 0  # images at the first count

    def drawn(self, done: int, total: int) -> None:
        """Show how many of the images are ready: drawn and scored, or newly scored."""
        left = ""
        if not self.had:
            self.had, self.began = done, time.monotonic()
        elif done > self.had:
            seconds = (time.monotonic() - self.began) / (done - self.had) * (total - done)
            left = f"{duration(seconds)} left"
        if self.live:
            self.live.update(bar(f"Images {done}/{total}", done / total, left), refresh=True)
        elif not self.quiet and 10 * done // total != self.tenth:
            self.tenth = 10 * done // total
            say(f"images {done}/{total}  {left}".rstrip())
        if done == total:  # another count may follow, of images to score
            self.had = self.tenth = 0

    def show(self, record: Record) -> None:
        if not self.records and not self.live and not self.quiet:
            say(f"{record['samples']:.0f} images: {self.images(record)}")
        super().show(record)

    def rows(self) -> list[tuple[str, str, Text]]:
        last = self.records[-1]
        return [("images", f"{last['samples']:.0f}", Text(self.images(last))), *super().rows()]

    def images(self, record: Record) -> str:
        """Write the rewards of the image set, and how many images have no weight."""
        return (
            f"reward {record['reward/mean']:.3f} ± {record['reward/std']:.3f},"
            f" {record['weight/zero']:.0f} weights cut to zero"
        )


def bar(what: str, done: float, left: str) -> Table:
    """Make a line with a progress bar; ``done`` is in [0, 1]."""
    line = Table.grid(padding=(0, 2))
    line.add_row(what, ProgressBar(total=1.0, completed=done, width=40), left)
    return line

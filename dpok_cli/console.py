"""What a person sees: plain lines, the view of a run while it trains, tables. Knows no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Self, TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.progress import track
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from dpok_cli.config import TrainRLConfig

Record = dict[str, float]
Item = TypeVar("Item")

#: Results go to ``out`` (stdout), everything else to ``err`` (stderr).
out = Console()
err = Console(stderr=True)


def say(text: str, console: Console | None = None) -> None:
    """Print a text as it is, without markup, to stderr if not told otherwise.

    It is one line, except that a terminal's stderr is wrapped between words.
    """
    one_line = console is not None or not err.is_terminal
    (console or err).print(text, markup=False, emoji=False, highlight=False, soft_wrap=one_line)


def progress(items: Iterable[Item], total: int, what: str, quiet: bool = False) -> Iterable[Item]:
    """Show on a terminal how many of the items have come."""
    hidden = quiet or not err.is_terminal
    return track(items, what, total, console=err, transient=True, disable=hidden)


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Draw one or more values as one line; over ``width`` of them are averaged into columns."""
    columns = min(width, len(values))
    edges = [len(values) * column // columns for column in range(columns + 1)]
    means = [sum(values[start:end]) / (end - start) for start, end in pairwise(edges)]
    low, high = min(means), max(means)
    scale = 7 / (high - low) if high > low else 0.0
    return "".join("▁▂▃▄▅▆▇█"[round((mean - low) * scale)] for mean in means)


def duration(seconds: float) -> str:
    """Write a time as 4:05 or 1:04:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def round_seconds(record: Record) -> float:
    return sum(record[f"seconds/{part}"] for part in ("rollout", "reward", "update"))


def seconds_left(records: Sequence[Record], rounds: int) -> float:
    """Estimate the time that the rounds still to come take, from that of the last ten."""
    last = records[-10:]
    mean = sum(map(round_seconds, last)) / len(last)
    return mean * (rounds - last[-1]["round"])


def plain_line(records: Sequence[Record], rounds: int) -> str:
    """Write the last round as one line."""
    last = records[-1]
    return (
        f"round {last['round']:.0f}/{rounds}"
        f"  reward {last['reward/mean']:.3f} ± {last['reward/std']:.3f}"
        f"  kl {last['kl']:.2e}"
        f"  ratio {last['ratio/mean']:.4f}"
        f"  clipped {last['clip_fraction']:.0%}"
        f"  {round_seconds(last):.1f} s"
        f"  left {duration(seconds_left(records, rounds))}"
    )


def hints(records: Sequence[Record], config: TrainRLConfig) -> dict[str, str]:
    """Say what of the last round's metrics is out of its healthy range, and what to do.

    The keys are the metrics.
    """
    last = records[-1]
    found = {}
    if last["reward/std"] < 1e-6:
        found["reward/std"] = (
            "All images of the round got the same reward, so there is nothing to learn from:"
            " raise --samples-per-round, or choose another reward."
        )
    deviation = last["ratio/first_max_dev"]
    if deviation > 0.1 * config.ratio_clip:
        found["ratio/first_max_dev"] = (
            f"Before the first update the ratio is off 1 by {deviation:.0e}, which is much of"
            f" --ratio-clip {config.ratio_clip:g}: train in fp32, or raise the clip."
        )
    if last["clip_fraction"] > 0.6:
        found["clip_fraction"] = (
            f"{last['clip_fraction']:.0%} of the ratios are clipped and teach nothing: lower"
            " --learning-rate or --updates-per-round, or raise --ratio-clip."
        )
    if len(records) >= 20:
        first, now = (
            sum(record["reward/mean"] for record in part) / 5
            for part in (records[:5], records[-5:])
        )
        spread = records[0]["reward/std"]
        if now < first - 0.5 * spread:
            found["reward/mean"] = "The reward has fallen since the start: lower --learning-rate."
        elif now < first + 0.05 * spread:
            found["reward/mean"] = (
                "The reward does not rise: raise --learning-rate or --samples-per-round."
            )
    return found


class TrainingView:
    """The rounds of a run on stderr: live on a terminal, otherwise one plain line each.

    ``with TrainingView(config) as view: view.show(record)`` for each round's metrics. A hint is
    said once on a plain line, and stands in the live view for as long as it holds.
    """

    def __init__(self, config: TrainRLConfig, quiet: bool = False):
        self.config = config
        self.quiet = quiet
        self.records: list[Record] = []
        self.hinted: set[str] = set()
        self.live: Live | None = None
        if err.is_terminal and not quiet:
            self.live = Live("Drawing the first round ...", console=err, auto_refresh=False)

    def __enter__(self) -> Self:
        if self.live:
            self.live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def show(self, record: Record) -> None:
        """Show the metrics of a round (the keys of a line of metrics.jsonl)."""
        self.records.append(record)
        if self.live:
            self.live.update(self.picture(), refresh=True)
        elif not self.quiet:
            say(plain_line(self.records, self.config.rounds))
            for metric, hint in hints(self.records, self.config).items():
                if metric not in self.hinted:
                    self.hinted.add(metric)
                    say(f"  hint: {hint}")

    def picture(self) -> Group:
        last, rounds = self.records[-1], self.config.rounds
        head = Table.grid(padding=(0, 2))
        head.add_row(
            f"Round {last['round']:.0f}/{rounds}",
            ProgressBar(total=rounds, completed=last["round"], width=40),
            f"{duration(seconds_left(self.records, rounds))} left",
        )
        body = Table.grid(padding=(0, 2))
        body.add_column(style="dim")
        body.add_row(
            "reward",
            f"{last['reward/mean']:.3f} ± {last['reward/std']:.3f}",
            Text(sparkline([record["reward/mean"] for record in self.records]), style="green"),
        )
        body.add_row(
            "kl", f"{last['kl']:.2e}", Text(sparkline([record["kl"] for record in self.records]))
        )
        body.add_row("ratio", f"{last['ratio/mean']:.4f}", f"{last['clip_fraction']:.0%} clipped")
        parts = ", ".join(
            f"{last[f'seconds/{part}']:.1f} {part}" for part in ("rollout", "reward", "update")
        )
        body.add_row("seconds", f"{round_seconds(last):.1f}", parts)
        found = hints(self.records, self.config)
        advice = [Text(f"! {hint}", style="yellow") for hint in found.values()]
        return Group(head, body, *advice)


def before_after_table(before: dict[str, float], after: dict[str, float]) -> Table:
    """Make the table of the same measures before and after training."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for column in ("before", "after", "change"):
        table.add_column(column, justify="right")
    for name, value in before.items():
        table.add_row(name, f"{value:.3f}", f"{after[name]:.3f}", f"{after[name] - value:+.3f}")
    return table

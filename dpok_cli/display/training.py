"""The view of a run while it trains: live on a terminal, plain lines elsewhere. Knows no torch."""

from __future__ import annotations

import time
from typing import Generic, Self, TypeVar

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dpok_cli.config import TrainingConfig, TrainRLConfig, TrainSFTConfig
from dpok_cli.display import console
from dpok_cli.display.console import duration, say, sparkline

Record = dict[str, float]
Config = TypeVar("Config", bound=TrainingConfig)


class TrainingView(Generic[Config]):
    """The records of a run on stderr: live on a terminal, otherwise one plain line each.

    ``with RLView(config) as view: view.show(record)`` for each line of metrics. A hint is said
    once on a plain line, and stands in the live view for as long as it holds.
    """

    #: What a record's number counts, and what is going on before the first one.
    unit, waiting = "round", "Drawing the first round ..."
    #: The parts of a record's time, as "seconds/PART".
    parts: tuple[str, ...] = ("rollout", "reward", "update")

    def __init__(self, config: Config, quiet: bool = False):
        self.config = config
        self.quiet = quiet
        self.records: list[Record] = []
        self.hinted: set[str] = set()
        self.live: Live | None = None
        if console.err.is_terminal and not quiet:
            self.live = Live(self.waiting, console=console.err, auto_refresh=False)

    # What differs between the methods

    @property
    def total(self) -> int:
        """The rounds or steps of the whole run."""
        raise NotImplementedError

    def numbers(self) -> str:
        """Write the last record's metrics as part of a line."""
        raise NotImplementedError

    def rows(self) -> list[tuple[RenderableType, ...]]:
        """Return the rows of the live view: a name, the metric now and what it was before."""
        raise NotImplementedError

    def hints(self) -> dict[str, str]:
        """Say what of the last metrics is out of its healthy range, and what to do.

        The keys are the metrics.
        """
        raise NotImplementedError

    def records_left(self) -> int:
        """How many records are still to come."""
        raise NotImplementedError

    # What is the same

    def __enter__(self) -> Self:
        if self.live:
            self.live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def show(self, record: Record) -> None:
        """Show a line of metrics.jsonl."""
        self.records.append(record)
        if self.live:
            self.live.update(self.picture(), refresh=True)
        elif not self.quiet:
            say(self.line())
            for metric, hint in self.hints().items():
                if metric not in self.hinted:
                    self.hinted.add(metric)
                    say(f"  hint: {hint}")

    def warn(self, what: str) -> None:
        """Tell what a person should know, once; the live view stays below it."""
        if not self.quiet:
            say(f"Warning: {what}")

    def seconds(self, record: Record) -> float:
        return sum(record[f"seconds/{part}"] for part in self.parts)

    def seconds_left(self) -> float:
        """Estimate the time that is still to come, from that of the last ten records."""
        last = self.records[-10:]
        return sum(map(self.seconds, last)) / len(last) * self.records_left()

    def course(self, metric: str) -> str:
        """Draw what a metric was over the records."""
        return sparkline([record[metric] for record in self.records])

    def line(self) -> str:
        last = self.records[-1]
        return (
            f"{self.unit} {last[self.unit]:.0f}/{self.total}  {self.numbers()}"
            f"  {self.seconds(last):.1f} s  left {duration(self.seconds_left())}"
        )

    def picture(self) -> Group:
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
        parts = ", ".join(f"{last[f'seconds/{part}']:.1f} {part}" for part in self.parts)
        body.add_row("seconds", f"{self.seconds(last):.1f}", parts)
        advice = [Text(f"! {hint}", style="yellow") for hint in self.hints().values()]
        return Group(head, body, *advice)


class RLView(TrainingView[TrainRLConfig]):
    """The rounds of `dpok train-rl`."""

    @property
    def total(self) -> int:
        return self.config.rounds

    def records_left(self) -> int:
        return self.total - int(self.records[-1]["round"])

    def numbers(self) -> str:
        last = self.records[-1]
        return (
            f"reward {last['reward/mean']:.3f} ± {last['reward/std']:.3f}"
            f"  kl {last['kl']:.2e}"
            f"  ratio {last['ratio/mean']:.4f}"
            f"  clipped {last['clip_fraction']:.0%}"
        )

    def rows(self) -> list[tuple[RenderableType, ...]]:
        last = self.records[-1]
        return [
            (
                "reward",
                f"{last['reward/mean']:.3f} ± {last['reward/std']:.3f}",
                Text(self.course("reward/mean"), style="green"),
            ),
            ("kl", f"{last['kl']:.2e}", Text(self.course("kl"))),
            ("ratio", f"{last['ratio/mean']:.4f}", f"{last['clip_fraction']:.0%} clipped"),
        ]

    def hints(self) -> dict[str, str]:
        last = self.records[-1]
        found = {}
        if last["reward/std"] < 1e-6:
            found["reward/std"] = (
                "All images of the round got the same reward, so there is nothing to learn from:"
                " raise --samples-per-round, or choose another reward."
            )
        deviation = last["ratio/first_max_dev"]
        if deviation > 0.1 * self.config.ratio_clip:
            found["ratio/first_max_dev"] = (
                f"Before the first update the ratio is off 1 by {deviation:.0e}, which is much of"
                f" --ratio-clip {self.config.ratio_clip:g}: train in fp32, or raise the clip."
            )
        if last["clip_fraction"] > 0.6:
            found["clip_fraction"] = (
                f"{last['clip_fraction']:.0%} of the ratios are clipped and teach nothing: lower"
                " --learning-rate or --updates-per-round, or raise --ratio-clip."
            )
        if len(self.records) >= 20:
            first, now = (
                sum(record["reward/mean"] for record in part) / 5
                for part in (self.records[:5], self.records[-5:])
            )
            spread = self.records[0]["reward/std"]
            if now < first - 0.5 * spread:
                found["reward/mean"] = (
                    "The reward has fallen since the start: lower --learning-rate."
                )
            elif now < first + 0.05 * spread:
                found["reward/mean"] = (
                    "The reward does not rise: raise --learning-rate or --samples-per-round."
                )
        return found


class SFTView(TrainingView[TrainSFTConfig]):
    """The images and then the steps of `dpok train-sft`."""

    unit, waiting = "step", "Looking for images ..."
    parts = ("update",)

    def __init__(self, config: TrainSFTConfig, quiet: bool = False):
        super().__init__(config, quiet)
        self.tenth = 0  # of the images, that a plain line has been said of
        self.began = time.monotonic()
        self.had = 0  # images, when the first count came

    def drawn(self, done: int, total: int) -> None:
        """Show how many of the images are there: drawn and scored, or newly scored."""
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

    @property
    def total(self) -> int:
        return self.config.steps

    def records_left(self) -> int:
        return -(-(self.total - int(self.records[-1]["step"])) // self.config.log_every)

    def show(self, record: Record) -> None:
        if not self.records and not self.live and not self.quiet:
            say(self.images(record))
        super().show(record)

    def images(self, record: Record) -> str:
        """Say what the images are worth, and how many do not count."""
        return (
            f"{record['samples']:.0f} images: reward {record['reward/mean']:.3f}"
            f" ± {record['reward/std']:.3f}, {record['weight/zero']:.0f} weights cut to zero"
        )

    def numbers(self) -> str:
        last = self.records[-1]
        return (
            f"loss {last['loss']:.4f}  kl {last['kl']:.2e}  grad norm {last['grad_norm']:.3f}"
            f"  lr {last['learning_rate']:.1e}"
        )

    def rows(self) -> list[tuple[RenderableType, ...]]:
        last = self.records[-1]
        return [
            ("images", f"{last['samples']:.0f}", self.images(last).partition(": ")[2]),
            ("loss", f"{last['loss']:.4f}", Text(self.course("loss"), style="green")),
            ("kl", f"{last['kl']:.2e}", Text(self.course("kl"))),
        ]

    def hints(self) -> dict[str, str]:
        last, found = self.records[-1], {}
        counting = 1 - last["weight/zero"] / last["samples"]
        if counting < 0.05:
            found["weight/zero"] = (
                f"Only {counting:.1%} of the images have a weight, so they will be learned by"
                " heart: raise --gamma, or --images."
            )
        if last["skipped"]:
            found["skipped"] = (
                f"{last['skipped']:.0f} updates were not finite and were left out: lower"
                " --learning-rate, or train in fp32."
            )
        return found


def bar(what: str, done: float, left: str) -> Table:
    """Make a line with a progress bar; ``done`` is in [0, 1]."""
    line = Table.grid(padding=(0, 2))
    line.add_row(what, ProgressBar(total=1.0, completed=done, width=40), left)
    return line

"""What commands that draw into a folder do at a signal: they end where they can be continued."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from dpok_cli.display import console
from dpok_cli.errors import StopRequested

if TYPE_CHECKING:
    from dpok_cli.engine.training.stop import Stop


@contextmanager
def stopping(advice: str, quiet: bool = False) -> Iterator[Stop]:
    """Within the block signals request a stop, which it heeds by a StopRequested.

    The command then ends with the signal's exit code, and ``advice`` on how to continue.
    """
    from dpok_cli.engine.training.stop import Stop

    def say(line: str) -> None:
        if not quiet:
            console.say(line)

    with Stop(lambda: say("Stopping; repeat to stop at once.")) as stop:
        try:
            yield stop
        except (StopRequested, KeyboardInterrupt) as error:
            if not stop.requested():  # a reward's own
                raise
            say(f"{'Stopped' if isinstance(error, StopRequested) else 'Interrupted'}; {advice}")
            raise typer.Exit(stop.exit_code) from None

"""Graceful stops: after Ctrl-C or SIGTERM a run ends at a safe point, where nothing is lost."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Within ``with Stop() as stop``, a signal requests a stop; a second one interrupts at once.

    The loops ask ``requested`` between batches, write a checkpoint and end. ``tell`` is called at
    the first signal, in a thread, so that the user sees that it arrived.
    """

    def __init__(self, tell: Callable[[], None] = lambda: None) -> None:
        self.signal, self.tell = 0, tell

    def requested(self) -> bool:
        """Return whether a signal has come."""
        return self.signal != 0

    @property
    def exit_code(self) -> int:
        """The exit code of a program that the signal ended: 130 or 143."""
        return 128 + self.signal

    def __enter__(self) -> Self:
        self._before = {each: signal.signal(each, self._ask) for each in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            self.__exit__()
            raise KeyboardInterrupt
        self.signal = number
        # The signal may arrive during a write, and a stream refuses nested writes.
        threading.Thread(target=self.tell).start()

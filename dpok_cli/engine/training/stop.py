"""Graceful stops: after Ctrl-C, SIGTERM or SIGHUP a run ends at a safe point; nothing is lost."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Self

#: SIGHUP comes when the terminal closes or ssh drops; Windows has none.
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))

BROKEN_PIPE = 13  # SIGPIPE, which Windows does not have


class Stop:
    """Within ``with Stop() as stop``, a signal requests a stop; a second one interrupts at once.

    A hangup never does: one that closes a terminal may come twice, from the kernel and the shell.

    The loops ask ``requested`` between batches, write a checkpoint and end. ``tell`` is called at
    the first signal, in a thread, so that the user sees that it arrived. ``reader_is_gone()`` says
    whether the program that read the log has ended, which requests a stop as well.
    """

    def __init__(
        self,
        tell: Callable[[], None] = lambda: None,
        reader_is_gone: Callable[[], bool] = lambda: False,
    ) -> None:
        self.signal, self.tell, self.reader_is_gone = 0, tell, reader_is_gone

    def requested(self) -> bool:
        """Return whether to stop."""
        return self.signal != 0 or self.reader_is_gone()

    @property
    def exit_code(self) -> int:
        """The exit code of a program that the signal ended: 130, 143 or 129; 141 by SIGPIPE."""
        return 128 + (self.signal or BROKEN_PIPE)

    def __enter__(self) -> Self:
        # What nohup makes a program ignore stays ignored.
        heard = [each for each in SIGNALS if not _is_ignored_hangup(each)]
        self._before = {each: signal.signal(each, self._ask) for each in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if not self.signal:
            self.signal = number
            # The signal may arrive during a write, and a stream refuses nested writes.
            threading.Thread(target=self.tell).start()
        elif signal.Signals(number).name != "SIGHUP":
            self.signal = number
            self.__exit__()
            raise KeyboardInterrupt


def _is_ignored_hangup(number: signal.Signals) -> bool:
    return number.name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN

"""Waiting for what another process or thread does, without a fixed time."""

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")
#: Seconds after which a test fails instead of waiting on; the machine may be busy.
PATIENCE = 300


def wait_for(condition: Callable[[], Value], timeout: float = PATIENCE) -> Value:
    """Ask until the answer is true, and return it; raises TimeoutError after ``timeout`` seconds.

    The last question is asked after the deadline, so that a slow machine alone does not fail it.
    """
    deadline = time.monotonic() + timeout
    while True:
        late = time.monotonic() > deadline
        if answer := condition():
            return answer
        if late:
            raise TimeoutError(f"{condition} did not become true within {timeout} s")
        time.sleep(0.002)

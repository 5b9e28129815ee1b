"""A plugin may raise anything; what it raises becomes an error of ours."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def plugin_code(error_of: Callable[[BaseException], Exception]) -> Iterator[None]:
    """Run a plugin's code; of what it raises, ``error_of`` makes the error to raise in its place.

    That is so for every class, SystemExit and CancelledError too; an interrupt is the user's.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise error_of(error) from error

"""One writer a folder: a second command that would write to it is refused."""

import errno
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from dpok_cli.engine.runs.files import make_folder
from dpok_cli.errors import InputError

LOCK = ".lock"
#: What a system answers that has no file locks, on many network and FUSE mounts.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
#: Seconds to wait for a writer that is about to end.
_WAIT = 1.0


@contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder that exists; blocks of one process may be nested.

    A process that dies frees the lock. Raises InputError if another process holds it, or if the
    folder cannot be written to.
    """
    lock = _acquire(folder)
    try:
        yield
    finally:
        if lock.lock_counter == 1:  # the outermost block; who waits for the file finds it gone
            with suppress(OSError):
                Path(lock.lock_file).unlink(missing_ok=True)
        with suppress(OSError):
            lock.release()


@contextmanager
def filling(folder: Path, flag: str) -> Iterator[None]:
    """Make a new folder, or take an empty one, and hold its lock.

    If the block raises before it has written anything, the folder is removed. Raises InputError,
    which names ``flag``, if it has files already or cannot be made.
    """
    check_free(folder, flag)
    make_folder(folder, flag)
    try:
        with one_writer(folder):
            check_free(folder, flag)  # another may have filled it meanwhile
            yield
    except BaseException:
        with suppress(OSError):
            folder.rmdir()  # only an empty one can be removed
        raise


def check_free(folder: Path, flag: str) -> None:
    """Raise InputError, which names ``flag``, unless the folder is empty or does not exist."""
    if not is_free(folder):
        raise InputError(f"{folder} already exists: give another {flag}, or remove it.")


def is_free(folder: Path) -> bool:
    """Return whether the folder is empty, but for a lock, or does not exist."""
    if not folder.exists():
        return True
    return folder.is_dir() and all(file.name.startswith(LOCK) for file in folder.iterdir())


def _acquire(folder: Path) -> BaseFileLock:
    """Return the folder's lock, held; where the system has no locks, it is a file that exists."""
    locks = (
        FileLock(folder / LOCK, is_singleton=True, thread_local=False),
        SoftFileLock(folder / f"{LOCK}-holder", is_singleton=True, thread_local=False),
    )
    for lock in locks:
        try:
            with warnings.catch_warnings(action="ignore"):  # that it takes the second kind itself
                lock.acquire(timeout=_WAIT, poll_interval=0.02)
            return lock
        except Timeout as error:
            hint = ""
            if isinstance(lock, SoftFileLock):  # of another machine it is not known who lives
                hint = f" If it died on another machine, remove {lock.lock_file}."
            raise InputError(
                f"Another dpok is writing to {folder}: wait until it ends.{hint}"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS or lock is locks[-1]:
                raise InputError(f"Cannot write to {folder}: {error.strerror}.") from error
            (folder / LOCK).unlink(missing_ok=True)
    raise AssertionError

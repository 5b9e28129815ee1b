"""One writer a folder: a second command that would write to it is refused."""

import errno
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import sha256
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from dpok_cli.engine.runs.files import make_folder, new_folders, remove_empty
from dpok_cli.errors import InputError

LOCK = ".lock"
#: What a system answers that has no file locks, on many network and FUSE mounts.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
#: Seconds to wait for a writer that is about to end.
_WAIT = 1.0


@contextmanager
def one_writer(folder: Path, file: str = "") -> Iterator[None]:
    """Hold the lock of a folder that exists, or of one ``file`` in it; blocks may be nested.

    A process that dies frees the lock. Raises InputError if another process holds it, or if the
    folder cannot be written to.
    """
    lock = _acquire(folder, file)
    try:
        yield
    finally:
        if lock.lock_counter == 1:  # the outermost block; who waits for the file finds it gone
            with suppress(OSError):
                Path(lock.lock_file).unlink(missing_ok=True)
        with suppress(OSError):
            lock.release()


@contextmanager
def filling(folder: Path, flag: str, check: Callable[[], None] | None = None) -> Iterator[None]:
    """Make a new folder, or take an empty one, and hold its lock.

    ``check`` raises InputError for a folder that cannot be used; by default that is one with files.
    If the block raises before it has written anything, the folder is removed. Raises InputError,
    which names ``flag``, if it cannot be made.
    """
    check = check or partial(check_free, folder, flag)
    check()
    new = new_folders(folder)
    make_folder(folder, flag)
    try:
        with one_writer(folder):
            check()  # another may have filled it meanwhile
            yield
    except BaseException:
        remove_empty([folder, *new])
        raise


@contextmanager
def making(path: Path, flag: str) -> Iterator[None]:
    """Make a new file or folder in the block, as its only writer.

    If the block raises, folders that were made for it are removed. Raises InputError, which names
    ``flag``, if there is one already or it cannot be made.
    """
    new = new_folders(path.parent)
    make_folder(path.parent, flag)
    try:
        with one_writer(path.parent, path.name):
            if path.exists():
                raise InputError(f"{path} already exists: give another {flag}, or remove it.")
            yield
    except BaseException:
        remove_empty(new)
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


def _acquire(folder: Path, file: str) -> BaseFileLock:
    """Return the held lock; where the system has no locks, it is a file that exists."""
    name = f"{LOCK}-{sha256(os.fsencode(file)).hexdigest()[:16]}" if file else LOCK
    locks = (
        FileLock(folder / name, is_singleton=True, thread_local=False),
        SoftFileLock(folder / f"{name}-holder", is_singleton=True, thread_local=False),
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
                f"Another dpok is writing to {folder / file}: wait until it ends.{hint}"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS or lock is locks[-1]:
                raise InputError(f"Cannot write to {folder}: {error.strerror}.") from error
            (folder / name).unlink(missing_ok=True)
    raise AssertionError

"""Atomic files and folders: complete or absent, whenever a process dies."""

import errno
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dpok_cli.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; what the block writes there takes its place.

    It may be a file or a folder. If the block raises, ``path`` is unchanged and the temporary
    one is removed; after a kill it stays, and the next write replaces it.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    remove(temporary)
    try:
        yield temporary
        if temporary.is_dir():  # a folder cannot be renamed onto one that is not empty
            remove(path)
        os.replace(temporary, path)
    except BaseException:
        remove(temporary)
        raise


def write_text(file: Path, text: str) -> None:
    """Write UTF-8 text to a file, atomically."""
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def make_folder(folder: Path, flag: str) -> None:
    """Make a folder, if need be; raises InputError, which names ``flag``, if that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Cannot make {folder}: {error.strerror}. Give another {flag}.") from error


def new_folders(folder: Path) -> list[Path]:
    """Return a folder and those around it that do not exist, the innermost first."""
    return [each for each in (folder, *folder.parents) if not each.exists()]


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove those folders that are empty."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def dated_folder(parent: Path, suffix: str = "") -> Path:
    """Make a new folder named by date and time; of two in a second, one gets a number as well."""
    parent.mkdir(parents=True, exist_ok=True)
    name, number = _now() + suffix, 1
    while True:
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
            return path
        except FileExistsError:
            number += 1


#: What systems answer that cannot flush this kind of file: SMB and FUSE mounts for a folder's
#: entries, Windows for opening a folder at all.
_CANNOT_FLUSH = {
    *(errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP),
    *(errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR),
}


def flush(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk, where the system can."""
    try:
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise


def _now() -> str:
    return time.strftime("%Y%m%d-%H%M%S")


def remove(path: Path) -> None:
    """Remove a file or folder as far as possible; what another system holds open may stay."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

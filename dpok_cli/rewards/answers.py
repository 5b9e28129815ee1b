"""Answers that cost time or money, kept on the disk of the user for all runs and processes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from dpok_cli.errors import RewardError
from dpok_cli.inputs import at_home, cache_folder

#: Seconds to wait for another process that writes.
_WAIT = 60.0


def folder_of(option: str) -> Path:
    """Return the folder that the user names, or with "auto" dpok's own; it need not exist."""
    return cache_folder() if option == "auto" else at_home(Path(option))


class Answers:
    """Numbers by key in an SQLite file, which threads and processes may share.

    All methods raise ``RewardError`` if the file cannot be used.
    """

    def __init__(self, file: Path):
        """Make the file and its folder, if need be."""
        self.file = file
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._error(error) from error
        with self._open() as answers:
            answers.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, value REAL)")

    def get(self, key: str) -> float | None:
        with self._open() as answers:
            row = answers.execute("SELECT value FROM answers WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def put(self, key: str, value: float) -> None:
        with self._open() as answers:
            answers.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, value))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection of its own, so that threads need none to share; the end commits."""
        try:
            with closing(sqlite3.connect(self.file, timeout=_WAIT)) as answers, answers:
                yield answers
        except sqlite3.Error as error:
            raise self._error(error) from error

    def _error(self, error: Exception) -> RewardError:
        return RewardError(
            f"the cache {self.file} cannot be used: {error}; remove it, or give cache=FOLDER or"
            " cache=none"
        )

"""Kept answers: by threads and processes at once, and where they are."""

import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from dpok_cli.errors import RewardError
from dpok_cli.rewards.answers import Answers


def test_an_answer_is_what_was_put_last(tmp_path):
    answers = Answers(tmp_path / "a" / "b.sqlite")
    assert answers.get("x") is None
    answers.put("x", 0.1)
    answers.put("y", -3.0)
    answers.put("x", 0.25)
    again = Answers(tmp_path / "a" / "b.sqlite")
    assert (again.get("x"), again.get("y"), again.get("z")) == (0.25, -3.0, None)


WRITER = """
import sys
from pathlib import Path
from dpok_cli.rewards.answers import Answers
answers = Answers(Path(sys.argv[1]))
for number in range(60):
    answers.put(f"{sys.argv[2]}-{number}", number)
    answers.put("both", number)
"""


def test_two_processes_and_threads_write_at_once(tmp_path):
    file = tmp_path / "answers.sqlite"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(file), name]) for name in ("one", "two")
    ]
    answers = Answers(file)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: answers.put(f"three-{number}", number), range(60)))
    assert [writer.wait() for writer in writers] == [0, 0]
    assert answers.get("both") == 59
    for name in ("one", "two", "three"):
        assert [answers.get(f"{name}-{number}") for number in range(60)] == list(range(60))
    with sqlite3.connect(file) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RewardError) as caught:
        Answers(tmp_path / "file" / "answers.sqlite")
    assert str(caught.value).startswith(f"the cache {tmp_path / 'file' / 'answers.sqlite'} cannot")
    assert str(caught.value).endswith("; remove it, or give cache=FOLDER or cache=none")

"""A folder has one writer at a time, on every file system, and a crash frees it."""

import errno
import fcntl
import os

import pytest

from dpok_cli.engine.runs.lock import check_free, filling, is_free, making, one_writer
from dpok_cli.errors import InputError
from support.writers import another_writer

#: What systems without file locks answer.
REFUSALS = [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP]

WITHOUT_LOCKS = """
import fcntl
def refuse(*_):
    raise OSError({}, "no locks here")
fcntl.flock = refuse
"""


@pytest.fixture(params=[0, *REFUSALS], ids=["locks", "ENOSYS", "ENOLCK", "EOPNOTSUPP"])
def before(request, monkeypatch):
    """Runs with the system's locks, then on systems without; what another process runs first."""
    if not request.param:
        return ""

    def refuse(*_):
        raise OSError(request.param, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    return WITHOUT_LOCKS.format(request.param)


def test_a_second_writer_is_refused(tmp_path, before):
    with (
        another_writer(tmp_path, before),
        pytest.raises(InputError, match=f"Another dpok is writing to {tmp_path}: wait until"),
        one_writer(tmp_path),
    ):
        pass
    with one_writer(tmp_path):
        assert not is_free(tmp_path.parent)
        assert is_free(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_frees_the_folder(tmp_path, before):
    with another_writer(tmp_path, before) as process:
        process.kill()
        process.wait()
        with one_writer(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


def test_blocks_of_one_process_may_be_nested(tmp_path, before):
    with one_writer(tmp_path):
        with one_writer(tmp_path):
            pass
        assert [file.name[:5] for file in tmp_path.iterdir()] == [".lock"]
    assert list(tmp_path.iterdir()) == []


def test_only_the_outermost_block_frees_the_folder(tmp_path):
    inner = one_writer(tmp_path)
    with one_writer(tmp_path):
        with inner:
            pass
        with pytest.raises(AssertionError), another_writer(tmp_path):
            pass


def test_a_folder_that_has_files_is_not_filled(tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    with (
        pytest.raises(InputError, match=r"already exists: give another --output, or remove it"),
        filling(tmp_path, "--output"),
    ):
        pass
    assert os.listdir(tmp_path) == ["thesis.txt"]


@pytest.mark.parametrize(("files", "left"), [((), []), (("one.png",), ["folder"])])
def test_a_folder_that_nothing_was_written_to_is_removed(files, left, tmp_path):
    def fail():
        for file in files:
            (tmp_path / "folder" / file).touch()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), filling(tmp_path / "folder", "--output"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == left


def test_a_new_folder_is_made_and_an_empty_one_is_taken(tmp_path):
    for _ in range(2):
        with filling(tmp_path / "a" / "b", "--output"):
            pass
        check_free(tmp_path / "a" / "b", "--output")
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match=r"Cannot make .*file/a: Not a directory. Give another"),
        filling(tmp_path / "file" / "a", "--output"),
    ):
        pass


def test_a_new_file_is_made_by_one_command(tmp_path, before):
    folder = tmp_path / "new" / "place"
    with making(folder / "a", "--output"), another_writer(folder, before, "b"):
        with (
            pytest.raises(InputError, match="dpok is writing to .*b: wait"),
            making(folder / "b", ""),
        ):
            pass
        (folder / "a").write_text("made")
    assert [file.name for file in folder.iterdir()] == ["a"]
    with (
        pytest.raises(InputError, match="a already exists: give another -o"),
        making(folder / "a", "-o"),
    ):
        pass
    assert (folder / "a").read_text() == "made"


@pytest.mark.parametrize("make", [making, filling])
def test_what_comes_to_nothing_leaves_no_folder(make, tmp_path):
    with pytest.raises(ValueError, match="nothing"), make(tmp_path / "new" / "place", "--output"):
        raise ValueError("nothing")
    assert list(tmp_path.iterdir()) == []

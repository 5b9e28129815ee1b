"""Files and folders are whole or not there."""

import pytest

from dpok_cli.engine.runs.files import replacing, write_text


def test_a_file_is_replaced_as_a_whole(tmp_path):
    file = tmp_path / "a.txt"
    write_text(file, "one")
    with replacing(file) as temporary:
        assert temporary.parent == tmp_path
        temporary.write_text("two")
        assert file.read_text() == "one"
    assert file.read_text() == "two"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    folder = tmp_path / "a"
    for name in ("old", "new"):
        with replacing(folder) as temporary:
            temporary.mkdir()
            (temporary / name).write_text(name)
    assert [file.name for file in folder.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("make", ["file", "folder"])
def test_after_an_error_the_old_one_stays(tmp_path, make):
    target = tmp_path / "a"
    write_text(target, "old")

    def fail():
        with replacing(target) as temporary:
            temporary.write_text("new") if make == "file" else temporary.mkdir()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_killed_write_left_is_replaced(tmp_path):
    (tmp_path / ".a.tmp").mkdir()
    (tmp_path / ".a.tmp" / "half").write_text("")
    write_text(tmp_path / "a", "whole")
    assert [file.name for file in tmp_path.iterdir()] == ["a"]

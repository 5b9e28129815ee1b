"""`dpok prompts`, and the columns of a prompts file in the commands that take one."""

import json

import pytest

TABLE = """\
id,Challenge,what,Category
1,Basic,a cat,A
2,Basic,a cat,B
3,Hard,a small dog,A
4,Hard,,A
"""


@pytest.fixture
def table(tmp_path):
    file = tmp_path / "set.csv"
    file.write_text(TABLE)
    return file


def test_it_shows_what_a_file_is_understood_as(dpok, table):
    shown = dpok("prompts", str(table))
    assert shown.code == 0
    assert [line.split() for line in shown.out.splitlines() if line] == [
        [f"{table}:", "CSV,", "column", "'what'."],
        ["3", "prompts,", "2", "different."],
        ["The", "longest", "has", "3", "words:", "a", "small", "dog"],
        ["Category", "prompts"],
        ["A", "2"],
        ["B", "1"],
        ["Challenge", "prompts"],
        ["Basic", "2"],
        ["Hard", "1"],
        ["The", "first", "3:"],
        ["a", "cat"],
        ["a", "cat"],
        ["a", "small", "dog"],
    ]
    assert "column 'what' is taken for the prompts" in shown.err
    assert "1 of its 4 rows have no prompt" in shown.err


def test_a_prompt_with_several_lines_is_shown_in_one(dpok, tmp_path):
    (tmp_path / "set.json").write_text(json.dumps(["a cat\r\nand a\tdog", "a cat"]))
    lines = dpok("prompts", str(tmp_path / "set.json")).out.splitlines()
    assert lines[2] == r"The longest has 5 words: a cat\r\nand a" + "\tdog"
    assert lines[-2:] == [r"a cat\r\nand a" + "\tdog", "a cat"]


def test_json_has_all_prompts_of_a_category(dpok, table):
    shown = dpok("prompts", str(table), "--category", "Hard", "--json")
    assert json.loads(shown.out) == [
        {"prompt": "a small dog", "categories": {"Category": "A", "Challenge": "Hard"}}
    ]


def test_other_commands_read_the_same_column(dpok, table):
    for command in ("sample", "train-rl", "train-sft"):
        flags = (command, "--prompts", str(table), "--prompt-column", "what", "--print-config")
        shown = dpok(*flags, "--category", "Hard")
        assert shown.code == 0
        assert '"a small dog"' in shown.out
        assert '"a cat"' not in shown.out
        assert "left out" in shown.err
        assert dpok(*flags, "--quiet").err == ""


def test_a_column_needs_a_file(dpok):
    refused = dpok("sample", "--prompt", "a cat", "--prompt-column", "what")
    assert refused.code == 2
    assert "--prompt-column needs --prompts FILE" in refused.err

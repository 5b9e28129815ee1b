import pytest

from dpok_cli.errors import InputError
from dpok_cli.prompts.files import read_categories, read_prompts

PAPER = """{
    "A green colored rabbit.": {"category": "color", "id": 1},
    "Four wolves in the park.": {"category": "count"},
    "A red colored dog.": {"category": "color"}
}"""


def write(folder, name, text):
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def test_text_has_one_prompt_a_line(tmp_path):
    file = write(tmp_path, "p.txt", 'a cat\n\n  a dög, "two" birds \r\na cat')
    assert read_prompts(file) == ("a cat", 'a dög, "two" birds', "a cat")


def test_json_keeps_the_order_of_the_file(tmp_path):
    assert read_prompts(write(tmp_path, "p.json", PAPER)) == (
        "A green colored rabbit.",
        "Four wolves in the park.",
        "A red colored dog.",
    )


def test_json_gives_the_prompts_of_one_category(tmp_path):
    file = write(tmp_path, "p.json", PAPER)
    assert read_prompts(file, "color") == ("A green colored rabbit.", "A red colored dog.")


@pytest.mark.parametrize("text", ["{}", '{"a cat": {}}'])
def test_json_without_the_category_is_refused(tmp_path, text):
    with pytest.raises(InputError, match="no category 'color'"):
        read_prompts(write(tmp_path, "p.json", text), "color")


def test_json_without_prompts_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no prompt in .*p\.json"):
        read_prompts(write(tmp_path, "p.json", "{}"))


def test_categories_are_by_prompt(tmp_path):
    file = tmp_path / "prompts.json"
    file.write_text('{"a red cat": {"category": "color"}, "two cats": {}, "x": {"category": 3}}')
    assert read_categories(file) == {"a red cat": "color", "x": "3"}
    lines = tmp_path / "prompts.txt"
    lines.write_text("a cat\n")
    assert read_categories(lines) == {}
    with pytest.raises(InputError, match="none.json: No such file"):
        read_categories(tmp_path / "none.json")

import pytest

from dpok_cli.errors import InputError
from dpok_cli.prompts.files import PromptFile

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
    assert PromptFile(file).prompts() == ("a cat", 'a dög, "two" birds', "a cat")


def test_json_keeps_the_order_of_the_file(tmp_path):
    assert PromptFile(write(tmp_path, "p.json", PAPER)).prompts() == (
        "A green colored rabbit.",
        "Four wolves in the park.",
        "A red colored dog.",
    )


def test_json_gives_the_prompts_of_one_category(tmp_path):
    file = write(tmp_path, "p.json", PAPER)
    assert PromptFile(file).prompts("color") == ("A green colored rabbit.", "A red colored dog.")


@pytest.mark.parametrize("text", ["{}", '{"a cat": {}}'])
def test_json_without_the_category_is_refused(tmp_path, text):
    with pytest.raises(InputError, match="no category 'color'"):
        PromptFile(write(tmp_path, "p.json", text)).prompts("color")


def test_json_without_prompts_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no prompt in .*p\.json"):
        PromptFile(write(tmp_path, "p.json", "{}")).prompts()


def test_categories_are_by_prompt(tmp_path):
    file = tmp_path / "prompts.json"
    file.write_text('{"a red cat": {"category": "color"}, "two cats": {}, "x": {"category": 3}}')
    assert PromptFile(file).categories() == {"a red cat": ("color",), "x": ("3",)}
    lines = tmp_path / "prompts.txt"
    lines.write_text("a cat\n")
    assert PromptFile(lines).categories() == {}
    with pytest.raises(InputError, match="none.json: No such file"):
        PromptFile(tmp_path / "none.json").categories()


def test_a_prompt_in_two_categories_counts_for_the_first(tmp_path):
    file = PromptFile(write(tmp_path, "p.csv", "prompt,category\na cat,\na cat,x\na cat,y\n"))
    assert file.categories() == {"a cat": ("x",)}
    assert file.categories("y") == {"a cat": ("y",)}


def test_json_is_known_by_its_content_too(tmp_path):
    assert PromptFile(write(tmp_path, "pipe", PAPER)).prompts("count") == (
        "Four wolves in the park.",
    )
    braces = write(tmp_path, "p.txt", "{a red|a blue} cat\n")
    assert PromptFile(braces).prompts() == ("{a red|a blue} cat",)


def test_a_prompt_that_is_twice_in_json_is_refused(tmp_path):
    file = write(tmp_path, "p.json", '{"a cat": {"category": "a"}, "a cat": {"category": "b"}}')
    with pytest.raises(InputError, match=r"p\.json: it has 'a cat' twice"):
        PromptFile(file).prompts()


def test_separators_within_a_line_belong_to_its_prompt(tmp_path):
    file = write(tmp_path, "p.txt", "a cat\u2028asleep\na\u0085dog\n")
    assert PromptFile(file).prompts() == ("a cat\u2028asleep", "a\u0085dog")


def test_half_of_a_character_is_refused(tmp_path):
    file = write(tmp_path, "p.json", r'{"a \ud83d cat": {}}')
    with pytest.raises(InputError, match=r"p\.json: the prompt .* is not valid Unicode"):
        PromptFile(file).prompts()


def test_the_file_is_read_once(tmp_path):
    """As a pipe can be."""
    file = PromptFile(write(tmp_path, "p.json", PAPER))
    assert len(file.prompts()) == 3
    file.path.unlink()
    assert file.categories()["Four wolves in the park."] == ("count",)

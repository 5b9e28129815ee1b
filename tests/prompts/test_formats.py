"""Each published form of prompts, from lines as they are in the real files."""

import json

import pytest

from dpok_cli.errors import InputError
from dpok_cli.prompts.files import PromptFile

DRAWBENCH = (
    "Prompts,Category\r\n"
    "A red colored car.,Colors\r\n"
    '"A sphere, made of Kitchen tile.",Descriptions\r\n'
    '"An umbrella on top of a spoon. It says ""hello"".",DALL-E\r\n'
)
PARTI = (
    "Prompt\tCategory\tChallenge\tNote\n"
    "bond\tAbstract\tBasic\tBiology-inspired concepts\n"
    'a sign that reads "no parking"\tWorld Knowledge\tWriting & Symbols\t\n'
    '"Space" on a wall\tArts\tWriting & Symbols\t\n'
)
GENEVAL = (
    '{"tag": "single_object", "include": [{"class": "bench", "count": 1}],'
    ' "prompt": "a photo of a bench"}\n'
    '{"tag": "counting", "include": [{"class": "clock", "count": 2}], "exclude": [{"class":'
    ' "clock", "count": 3}], "prompt": "a photo of two clocks"}\n'
)
HPS = '{"anime": ["a girl, reading", "two cats"], "photo": ["a dog"]}'


@pytest.fixture
def file(tmp_path):
    def write(name, text, column=""):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return PromptFile(path, column)

    return write


@pytest.mark.parametrize(
    ("name", "text", "form", "column", "prompts", "categories"),
    [
        (
            "DrawBench.csv",
            DRAWBENCH,
            "CSV",
            "Prompts",
            (
                "A red colored car.",
                "A sphere, made of Kitchen tile.",
                'An umbrella on top of a spoon. It says "hello".',
            ),
            ["Colors", "Descriptions", "DALL-E"],
        ),
        (
            "PartiPrompts.tsv",
            PARTI,
            "TSV",
            "Prompt",
            ("bond", 'a sign that reads "no parking"', '"Space" on a wall'),
            ["Abstract", "World Knowledge", "Arts"],
        ),
        (
            "evaluation_metadata.jsonl",
            GENEVAL,
            "JSON lines",
            "prompt",
            ("a photo of a bench", "a photo of two clocks"),
            ["single_object", "counting"],
        ),
        (
            "hps.json",
            HPS,
            "JSON by category",
            "prompt",
            ("a girl, reading", "two cats", "a dog"),
            ["anime", "anime", "photo"],
        ),
        ("P.JSON", '["a cat", " a dog "]', "a JSON list", "prompt", ("a cat", "a dog"), []),
        (
            "rows.json",
            '[{"id": 1, "caption": "a cat", "Category": "x"}, {"id": 2, "caption": "a dog"}]',
            "a JSON list",
            "caption",
            ("a cat", "a dog"),
            ["x"],
        ),
    ],
)
def test_what_a_published_file_is_understood_as(
    file, name, text, form, column, prompts, categories
):
    # By its name, and with a name that says nothing by its content.
    for each in (name, "pipe"):
        read = file(each, text)
        found = read.found()
        assert (found.form, found.column, read.prompts()) == (form, column, prompts)
        assert [first for first, *_ in read.categories().values()] == categories
        assert found.remarks == ()


def test_a_category_is_looked_for_in_all_columns_of_categories(file):
    parti = file("p.tsv", PARTI)
    assert parti.prompts("Writing & Symbols") == (
        'a sign that reads "no parking"',
        '"Space" on a wall',
    )
    assert parti.prompts("Arts") == ('"Space" on a wall',)
    assert file("g.jsonl", GENEVAL).prompts("counting") == ("a photo of two clocks",)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.csv", b'\xef\xbb\xbfprompt\r\n"a cat\r\non two lines"\r\na\xe2\x80\xa8dog\r\n'),
        ("p.csv", 'prompt\n"a cat\non two lines"\na\u2028dog\n'.encode("utf-16")),
        ("p.jsonl", '{"prompt": "a cat\\non two lines"}\r\n{"prompt": "a\u2028dog"}'),
        ("p.json", '["a cat\\non two lines", "a\u2028dog"]'),
    ],
)
def test_newlines_and_separators_in_a_prompt_belong_to_it(file, name, text):
    assert file(name, text).prompts() == ("a cat\non two lines", "a\u2028dog")


def test_a_prompt_without_a_category_has_none_in_the_tables(file):
    text = "prompt,challenge,category\na cat,Basic,A\na dog,Basic,\n"
    assert file("a.csv", text).categories() == {"a cat": ("A", "Basic"), "a dog": ("", "Basic")}
    assert file("a.csv", text).prompts("Basic") == ("a cat", "a dog")


def test_the_column_is_found_by_its_name_before_others(file):
    text = "id,caption,Text,PROMPT\n1,c,t,p\n"
    assert file("a.csv", text).prompts() == ("p",)
    assert file("b.csv", text.replace("PROMPT", "other")).prompts() == ("t",)
    assert file("c.csv", text, column="caption").prompts() == ("c",)
    with pytest.raises(InputError, match=r"d\.csv: it has no column 'capt'.*'caption'"):
        file("d.csv", text, column="capt").prompts()


def test_a_column_that_is_guessed_is_said(file):
    found = file("a.csv", "id,what\n1,a cat\n2,a dog\n").found()
    assert [entry.prompt for entry in found.entries] == ["a cat", "a dog"]
    assert found.remarks == (
        "column 'what' is taken for the prompts; --prompt-column names another.",
    )
    with pytest.raises(InputError, match="none of its columns has texts: id, n"):
        file("b.csv", "id,n\n1,2\n").prompts()


def test_rows_without_a_prompt_are_counted(file):
    found = file(
        "a.jsonl", '{"prompt": "a cat"}\n{"prompt": null}\n{"x": 1}\n{"prompt": " "}'
    ).found()
    assert [entry.prompt for entry in found.entries] == ["a cat"]
    assert found.remarks == ("3 of its 4 rows have no prompt and are left out.",)


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("a.csv", "a cat\na dog\n", "first line is 'a cat', and should name the column"),
        ("a.csv", "prompt,category\na cat, asleep,x\n", "line 2 has 3 cells and the first line 2"),
        ("a.csv", "prompt,prompt\na,b\n", "two columns are named 'prompt'"),
        ("a.csv", 'prompt\n"a cat', "it is not CSV"),
        ("a.jsonl", '{"prompt": "a cat"}\na dog\n', "line 2 is not JSON"),
        ("a.jsonl", '{"prompt": 3}\n', "the prompt of row 1 is not a text: 3"),
        ("a.json", '["a cat", {"prompt": "x"}]', "has to be of prompts alone, or of objects"),
        ("a.json", '"a cat"', "it is not a JSON list or object"),
        ("a.json", '{"a cat": 3}', "it is none of the known forms"),
        ("a.json", '{"a cat": {"prompt": "a dog"}}', "'a cat' has another prompt in it"),
        ("a.json", '{"x": [["a cat"]]}', "is not a text"),
    ],
)
def test_what_is_no_prompt_is_refused_and_the_file_is_named(file, name, text, error):
    with pytest.raises(InputError, match=rf"The prompt file .*{name}: .*{error}"):
        file(name, text).prompts()


@pytest.mark.parametrize(
    "text",
    [
        "text, bold, on a wall\na cat\n",
        "{a red|a blue} cat\na dog\n",
        "a cat, asleep\nprompt, of a stage\n",
        "[a cat]\n",
    ],
)
def test_lines_that_look_like_another_form_are_prompts(file, text):
    for name in ("p", "p.txt"):
        assert file(name, text).prompts() == tuple(text.strip().split("\n"))


@pytest.mark.parametrize(
    ("text", "form", "prompts"),
    [
        ('"Prompts"\n"a cat, asleep"\na dog\n', "CSV", ("a cat, asleep", "a dog")),
        (",prompt,image-id\n0,a cat,3\n1,a dog,4\n", "CSV", ("a cat", "a dog")),
        ("Prompt\tCategory\tSub Category\na cat\tx\ty\n", "TSV", ("a cat",)),
    ],
)
def test_a_table_from_a_pipe_is_known_by_its_first_line(file, text, form, prompts):
    assert file("pipe", text).found().form == form
    assert file("pipe", text).prompts() == prompts


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (GENEVAL[:-30], "line 2 is not JSON"),
        (GENEVAL[:50], "it is not JSON"),
        ('# animals\n{"prompt": "a cat"}\n', "line 1 is not JSON"),
        ('["a cat", "a d', "it is not JSON"),
        ('[\n  {\n    "prompt": "a cat"\n  },\n', "it is not JSON"),
        ('{\n  "anime": ["a cat",\n', "it is not JSON"),
    ],
)
def test_json_that_was_cut_off_is_no_list_of_lines(file, text, error):
    for name in ("pipe", "p.txt"):
        with pytest.raises(InputError, match=f"{name}: {error}"):
            file(name, text).prompts()


def test_columns_without_a_name_are_none(file):
    """As Google writes a sheet whose other columns are empty."""
    text = '"Prompts","Category","",""\n"a cat","Colors","",""\n'
    assert file("DrawBench.csv", text).prompts("Colors") == ("a cat",)


def test_a_table_in_a_text_file_is_lines(file):
    """Its name says so; the same from a pipe is a table."""
    text = "prompt,category\na cat,x\n"
    assert file("p.txt", text).prompts() == ("prompt,category", "a cat,x")
    assert file("pipe", text).prompts() == ("a cat",)


def test_lines_have_no_columns(file):
    with pytest.raises(InputError, match="one prompt per line, and no column 'x'"):
        file("p.txt", "a cat\n", column="x").prompts()


def test_json_lines_are_known_in_a_json_file(file):
    assert file("p.json", GENEVAL).prompts("counting") == ("a photo of two clocks",)


def test_json_values_other_than_the_prompt_may_be_anything(file):
    rows = [{"prompt": "a cat", "category": 3, "more": [1, {"x": None}]}]
    found = file("p.json", json.dumps(rows)).found("3")
    assert [entry.categories for entry in found.entries] == [("3",)]

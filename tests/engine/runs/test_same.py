"""A folder is continued with the same settings, and refused with others."""

import pytest

from dpok_cli.config import SampleConfig
from dpok_cli.engine.runs.same import check_same, read_object
from dpok_cli.errors import InputError


def test_the_first_setting_that_differs_is_named(tmp_path):
    there = {"eta": 1.0, "models": {"base": None}, "prompts": ["a"]}
    check_same(tmp_path, there, dict(there), SampleConfig)
    for changed, said in (
        ({"eta": 0.5}, "--eta 1.0 there, 0.5 now."),
        ({"models": {}}, 'models = {"base": null} there, {} now.'),
        ({"prompts": ["b" * 200]}, f'--prompt ["a"] there, ["{"b" * 115}... now.'),
        ({"height": 8}, "--height null there, 8 now."),
    ):
        with pytest.raises(InputError) as caught:
            check_same(tmp_path, there, there | changed, SampleConfig)
        assert str(caught.value) == (
            f"{tmp_path} was made with other settings: {said} Give another --output."
        )


@pytest.mark.parametrize("text", ["[1]", "{", '"a"', ""])
def test_what_is_no_object_cannot_be_read(text, tmp_path):
    file = tmp_path / "settings.json"
    file.write_text(text)
    with pytest.raises(InputError, match=f"{file} cannot be read: .*Give another --output"):
        read_object(file)

"""Prompts of Parquet files and datasets, made here with the library that reads them."""

import sys

import pytest
from PIL import Image

from dpok_cli.errors import InputError
from dpok_cli.prompts.files import PromptFile

ROWS = {"prompt": ["a cat", "a dog", None], "category": ["x", "y", "y"], "tags": [["a"], [], []]}


@pytest.fixture
def folder(tmp_path):
    """A dataset with two splits and a column of images."""
    from datasets import Dataset

    picture = Image.new("RGB", (2, 2))
    made = tmp_path / "set"
    for split, prompts in (("train", ["a lion"]), ("test", ["a fox", "two foxes"])):
        columns = {"text": prompts, "image": [picture] * len(prompts), "note": prompts[::-1]}
        Dataset.from_dict(columns).to_parquet(made / f"{split}.parquet")
    return made


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_a_parquet_file(tmp_path):
    from datasets import Dataset

    file = tmp_path / "p.Parquet"
    Dataset.from_dict(ROWS).to_parquet(file)
    read = PromptFile(file)
    assert read.prompts() == ("a cat", "a dog")
    assert read.prompts("y") == ("a dog",)
    found = read.found()
    assert (found.form, found.column) == ("Parquet", "prompt")
    assert found.remarks == ("1 of its 3 rows have no prompt and are left out.",)


@pytest.mark.parametrize("content", [b"", b"a cat\n", b"PAR1"])
def test_what_is_no_parquet_is_refused(tmp_path, content):
    file = tmp_path / "p.parquet"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"p\.parquet: it cannot be read as Parquet: "):
        PromptFile(file).prompts()


def test_a_dataset_by_split_and_column(folder):
    assert PromptFile(f"hf:{folder}:test").prompts() == ("a fox", "two foxes")
    assert PromptFile(f"hf:{folder}:test:note").prompts() == ("two foxes", "a fox")
    assert PromptFile(f"hf:{folder}:test", column="note").prompts() == ("two foxes", "a fox")
    found = PromptFile(f"hf:{folder}").found()
    assert [entry.prompt for entry in found.entries] == ["a lion"]
    assert found.remarks == ("split 'train' is taken, of train, test.",)


def test_a_dataset_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="The prompt file hf:.*none: it cannot be loaded: "):
        PromptFile(f"hf:{tmp_path / 'none'}").prompts()


def test_without_the_library_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    for name in (tmp_path / "p.parquet", "hf:user/name"):
        with pytest.raises(InputError, match=r"pip install 'dpok\[datasets\]'"):
            PromptFile(name).prompts()

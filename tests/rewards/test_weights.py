import pickle

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import save_file

from dpok_cli.errors import RewardError
from dpok_cli.rewards.weights import find, read
from dpok_cli.tiny import folder


@pytest.fixture
def hub(monkeypatch):
    """A hub with one model that has one file; records the requests."""
    asked = []

    def download(model, name, local_files_only):
        asked.append((model, name))
        if local_files_only:
            raise EntryNotFoundError("not in the cache")
        if model != "org/model":
            raise ConnectionError("no route")
        if name != "b.pt":
            raise EntryNotFoundError("no such file")
        return f"/cache/{name}"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


def test_a_folder_gives_the_first_file_that_it_has(tmp_path, hub):
    (tmp_path / "b.pt").touch()
    assert find(str(tmp_path), "a.safetensors", "b.pt") == tmp_path / "b.pt"
    (tmp_path / "a.safetensors").touch()
    assert find(str(tmp_path), "a.safetensors", "b.pt") == tmp_path / "a.safetensors"
    with pytest.raises(RewardError, match=r"has no c\.txt or d\.txt$"):
        find(str(tmp_path), "c.txt", "d.txt")
    assert hub == []


def test_tiny_is_the_bundled_folder_and_never_the_hub(hub):
    with pytest.raises(RewardError) as caught:
        find("tiny", "no-such-file", tiny="judge")
    assert str(folder("judge")) in str(caught.value)
    assert hub == []


def test_a_hub_id_gives_the_first_file_that_it_has(hub):
    assert str(find("org/model", "a.safetensors", "b.pt")) == "/cache/b.pt"
    assert hub == [("org/model", "a.safetensors"), ("org/model", "b.pt")]


def test_nothing_is_downloaded_with_local_only(hub):
    with pytest.raises(RewardError, match=r"cannot get b\.pt of 'org/model'"):
        find("org/model", "b.pt", local_only=True)
    assert hub == [("org/model", "b.pt")]


@pytest.mark.parametrize("model", ["org/model", "org/other"])
def test_a_file_missing_on_the_hub_is_an_error_with_advice(hub, model):
    with pytest.raises(RewardError) as caught:
        find(model, "c.txt", advice="do without")
    assert f"cannot get c.txt of '{model}'" in str(caught.value)
    assert str(caught.value).endswith("check the name and the network, or do without")


def test_a_missing_path_is_not_a_hub_id():
    with pytest.raises(RewardError, match=r"'/no/such/folder' is neither a folder nor a hub id"):
        find("/no/such/folder", "a.pt")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_both_formats_are_read(tmp_path, name):
    weights = {"a": torch.tensor([1.0, 2.0])}
    (save_file if name.endswith("safetensors") else torch.save)(weights, tmp_path / name)
    assert read(tmp_path / name)["a"].tolist() == [1.0, 2.0]


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return print, ("ran",)

    torch.save({"a": Bomb()}, tmp_path / "w.pt")
    with pytest.raises(pickle.UnpicklingError):
        read(tmp_path / "w.pt")

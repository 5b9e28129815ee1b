"""The reward that runs the published package: what its worker asks of the package.

`make parity` runs the package itself.
"""

import runpy
import sys
from types import ModuleType, SimpleNamespace

import pytest

from dpok_cli.errors import RewardError
from dpok_plugins.image_reward_package import ImageRewardPackage


@pytest.fixture
def package(monkeypatch):
    """The package and what its worker imports with it, as far as that uses them; notes calls."""
    calls = []

    def load(*arguments, **options):
        calls.append(("load", *arguments, options))
        return SimpleNamespace(score=lambda prompt, image: len(prompt) + image)

    class BertTokenizer:
        def __init__(self, file):
            calls.append(("vocabulary", file))

        @classmethod
        def from_pretrained(cls, name):
            raise OSError("no network")

    parts = {
        "ImageReward": {"load": load},
        "torchvision": {},
        "transformers": {"BertTokenizer": BertTokenizer},
    }
    for name, members in parts.items():
        module = ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
    return SimpleNamespace(calls=calls, tokenizer=BertTokenizer)


def load(model):
    return runpy.run_path(str(ImageRewardPackage.worker))["load"]({"model": model}, "cpu")


def test_a_name_is_loaded_by_the_packages_own_loader(package):
    score = load("ImageReward-v1.0")
    assert package.calls == [("load", "ImageReward-v1.0", "cpu", {})]
    assert score([1, 2], ["a", "cat"]) == [2, 5]


def test_a_folder_is_loaded_with_its_configuration_and_vocabulary(package, tmp_path):
    files = str(tmp_path / "ImageReward.pt"), str(tmp_path / "med_config.json")
    load(str(tmp_path))
    assert package.calls == [("load", files[0], "cpu", {"med_config": files[1]})]
    with pytest.raises(OSError, match="no network"):
        package.tokenizer.from_pretrained("bert-base-uncased")
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    load(str(tmp_path))
    package.tokenizer.from_pretrained("bert-base-uncased")
    assert package.calls[-1] == ("vocabulary", str(tmp_path / "vocab.txt"))


def test_its_files_are_where_the_package_keeps_them_or_in_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    cache = tmp_path / ".cache" / "ImageReward"
    cache.mkdir(parents=True)
    with pytest.raises(RewardError, match=r"has no ImageReward\.pt and no med_config\.json$"):
        ImageRewardPackage().files()
    names = "ImageReward.pt", "med_config.json"
    for name in names:
        (cache / name).touch()
    assert ImageRewardPackage().files() == tuple(cache / name for name in names)
    of_folder = ImageRewardPackage(ImageRewardPackage.Options(model=str(tmp_path)))
    with pytest.raises(RewardError, match=f"^{tmp_path} has no ImageReward"):
        of_folder.files()


def test_it_has_an_environment():
    environment = ImageRewardPackage.environment
    assert "image-reward==1.5" in environment.requirements
    assert environment.shared == ("torch", "torchvision")

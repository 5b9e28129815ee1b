import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import dpok_cli
from dpok_cli.errors import InputError, RewardError
from dpok_cli.rewards import manager
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.manager import build, check_specs, registry

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
PLUGIN = """
from dataclasses import dataclass
from dpok_cli import RewardModel, hookimpl

class Reward(RewardModel):
    name = "NAME"
    higher_is_better = False

    @dataclass(frozen=True)
    class Options:
        scale: float = 2.0

    def score_batch(self, images, prompts):
        return self.options.scale * images.mean((1, 2, 3))

@hookimpl
def register_rewards(register):
    register(Reward)
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package with one plugin, as pip would leave it, until the test is over."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("DPOK_PLUGINS", raising=False)
    modules = []

    def install(package: str, source: str) -> None:
        module = f"plugin_of_{package.replace('-', '_')}"
        modules.append(module)
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{package.replace('-', '_')}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[dpok]\nplugin = {module}\n")
        registry.cache_clear()

    registry.cache_clear()
    yield install
    registry.cache_clear()
    for module in modules:
        sys.modules.pop(module, None)


def named(name: str) -> str:
    return PLUGIN.replace("NAME", name)


def test_built_in_rewards_use_the_same_entry_points(install):
    for name in ("image-reward", "judge"):
        entry = registry().rewards[name]
        assert entry.cls.__module__.startswith("dpok_plugins.")
        assert (entry.package, entry.version) == ("dpok", version("dpok"))


def test_a_third_partys_reward_is_found_and_built(install):
    install("their-rewards", named("theirs"))
    assert registry().failures == {}
    assert registry().rewards["theirs"].package == "their-rewards"
    assert registry().rewards["theirs"].version == "1.5"
    reward = build(["theirs=0.5:scale=4", "theirs"])
    assert reward.names == ("theirs", "theirs-2")
    (first, weight), (second, _) = reward.rewards.values()
    assert (first.options.scale, weight, second.options.scale) == (4.0, 0.5, 2.0)

    import torch

    scores = reward.score(torch.full((1, 3, 2, 2), 0.25), ["a"])
    assert scores.raw["theirs"].tolist() == [1.0]
    assert scores.total.tolist() == [-(0.5 * 1.0 + 0.5)]


def test_built_in_plugins_come_before_third_party_ones(install):
    install("aaa", named("aaa"))
    packages = [entry.package for entry in registry().rewards.values()]
    assert packages.index("aaa") == len(packages) - 1
    assert set(packages[:-1]) == {"dpok"}


WRONG_NAME = "from dpok_cli import hookimpl\n@hookimpl\ndef register_reward(register): ...\n"
WRONG_ARGUMENT = "from dpok_cli import hookimpl\n@hookimpl\ndef register_rewards(add): ...\n"
NO_CLASS = named("half").replace("register(Reward)", "register(Reward); register(3)")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_package_of_ours", "No module named 'no_such_package_of_ours'"),
        ("1 / 0", "ZeroDivisionError"),
        ("import argparse\nargparse.ArgumentParser().parse_args(['--none'])", "SystemExit: 2"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("import asyncio\nraise asyncio.CancelledError('gone')", "CancelledError: gone"),
        ("class Skipped(BaseException): ...\nraise Skipped('no GPU')", "Skipped: no GPU"),
        ("def f(:", "SyntaxError"),
        (named("half") + "    raise OSError('gone')", "OSError: gone"),
        ("", "it registers no reward"),
        (WRONG_NAME, "register_reward"),
        (WRONG_ARGUMENT, "add"),
        (NO_CLASS, "3 is not a subclass of RewardModel"),
        (named("Bad Name"), "'Bad Name', not of the form"),
        (named("half").replace("@dataclass(frozen=True)", ""), "Options is not a dataclass"),
    ],
)
def test_a_plugin_that_fails_is_left_out_with_its_reason(install, source, reason):
    install("broken-rewards", source)
    install("good-rewards", named("good"))
    assert set(registry().failures) == {"broken-rewards (plugin_of_broken_rewards)"}
    assert reason in registry().failures["broken-rewards (plugin_of_broken_rewards)"]
    assert {"judge", "good"} <= registry().rewards.keys()
    assert "half" not in registry().rewards
    assert build(["good"]).names == ("good",)
    with pytest.raises(InputError) as caught:  # requesting its reward reports it
        build(["half"])
    assert "broken-rewards (plugin_of_broken_rewards) was left out: " in str(caught.value)
    assert reason in str(caught.value)


def test_two_plugins_with_one_name_are_an_error_that_names_both(install):
    install("one", named("same"))
    install("two", named("same"))
    install("three", named("other"))
    assert build(["other"]).names == ("other",)
    with pytest.raises(InputError, match=r"'same' is claimed by one and by two"):
        build(["same"])


def test_a_plugin_cannot_silently_take_a_built_in_name(install):
    install("taker", named("judge"))
    with pytest.raises(InputError, match=r"'judge' is claimed by dpok and by taker"):
        build(["judge"])


@pytest.mark.parametrize(
    ("allowed", "found"),
    [
        (None, {"first", "second"}),
        ("", set()),
        ("first-rewards", {"first"}),
        ("Second_Rewards , other", {"second"}),
    ],
)
def test_the_environment_says_which_packages_are_loaded(install, monkeypatch, allowed, found):
    install("first-rewards", named("first"))
    install("second-rewards", named("second"))
    if allowed is not None:
        monkeypatch.setenv("DPOK_PLUGINS", allowed)
    assert registry().rewards.keys() & {"first", "second"} == found
    assert {"image-reward", "judge"} <= registry().rewards.keys()


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["imag-reward"], "Unknown reward 'imag-reward'. Did you mean 'image-reward' or"),
        (["judge:modle=tiny"], "no option 'modle'. Did you mean 'model'?"),
        (["judge", "judge=0"], "not zero"),
        ([], "No reward was given"),
    ],
)
@pytest.mark.parametrize("function", [build, check_specs])
def test_invalid_specs_are_input_errors(install, function, specs, message):
    with pytest.raises(InputError) as caught:
        function(specs)
    assert message in str(caught.value)


def test_a_reward_that_cannot_be_made_is_named(install):
    source = named("theirs").replace(
        "    def score_", "    def __init__(self): ...\n    def score_"
    )
    install("their-rewards", source)
    with pytest.raises(RewardError, match=r"^theirs: TypeError"):
        build(["theirs"])
    check_specs(["theirs"])  # constructs no reward


def test_for_the_bundled_model_rewards_use_their_tiny_version():
    specs = ["image-reward=2", "clip:model=mine", "aesthetic", "pickscore", "jpeg-compressibility"]

    def models(**tiny):
        parts = build(specs, **tiny).rewards.values()
        return [getattr(part.options, "model", None) for part, _ in parts]

    pick = "yuvalkirstain/PickScore_v1"
    assert models(tiny=True) == ["tiny", "mine", "tiny", pick, None]
    published = ["THUDM/ImageReward", "mine", "trl-lib/ddpo-aesthetic-predictor", pick, None]
    assert models() == models(tiny=False) == published


def test_finding_rewards_imports_no_torch():
    code = (
        "import sys; from dpok_cli.rewards.manager import build, registry;"
        "build(['judge', 'image-reward=2:model=tiny']); assert not registry().failures;"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_example_of_the_documentation_is_a_plugin(install):
    import torch

    install("my-package", PAGE.split("```python\n")[1].split("```")[0])
    scores = build(["brightness:power=2"]).score(torch.full((1, 3, 2, 2), 0.5), ["a"])
    assert scores.total.tolist() == [0.25]


def test_all_members_of_the_contract_are_documented():
    given = {name for name in vars(RewardModel) if not name.startswith("_")}
    given -= {"score", "prepare"}  # called by the engine
    given |= set(RewardModel.__annotations__)
    assert {name for name in given if f"| `{name}" not in PAGE} == set()


def test_the_version_is_the_packages():
    assert dpok_cli.__version__ == version("dpok")
    assert manager.OWN_PACKAGE == "dpok"


def scoring(*methods):
    return type("Odd", (RewardModel,), {"name": "odd", **{each: each for each in methods}})


@pytest.mark.parametrize(
    ("methods", "reason"),
    [
        ((), "TypeError: Odd defines neither score_batch nor score_group"),
        (
            ("score_batch", "score_group"),
            "TypeError: Odd defines score_batch and score_group, but not compares, which says which"
            " of them scores",
        ),
        (("score_batch",), None),
        (("score_group",), None),
        (("score_batch", "score_group", "compares"), None),
    ],
)
def test_a_reward_scores_images_or_groups(monkeypatch, methods, reason):
    try:
        manager._check(scoring(*methods))
        found = None
    except TypeError as error:
        found = f"TypeError: {error}"
    assert found == reason

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from dpok_cli.commands.rewards import _weights
from dpok_cli.errors import RewardError
from dpok_cli.rewards import manager
from dpok_cli.rewards.base import RewardModel


class Sharpness(RewardModel):
    """How sharp the image is.

    Measured with [brackets].
    """

    name = "sharpness"
    higher_is_better = False
    range = (0.0, 2.5)

    @dataclass(frozen=True)
    class Options:
        """``size`` in pixels; ``kernel`` is the filter's name."""

        kernel: str
        size: int = 3

    def score_batch(self, images, prompts):
        raise NotImplementedError


@pytest.fixture
def found(monkeypatch):
    registry = manager.Registry(
        rewards={"sharpness": manager.Entry(Sharpness, "dpok-sharp", "1.2")},
        failures={"dpok-broken (broken.plugin)": "ImportError: no [module]"},
        clashes={"twice": ["one", "two"]},
    )
    monkeypatch.setattr(manager, "registry", lambda: registry)


@pytest.mark.usefixtures("found")
def test_list(dpok):
    code, out, err = dpok("rewards")
    assert code == 0
    assert [line.split() for line in out.splitlines()] == [
        "reward package range weights what it is".split(),
        "sharpness dpok-sharp 1.2 0 to 2.5 none needed How sharp the image is.".split(),
    ]
    assert err.splitlines() == [
        "Warning: reward plugin dpok-broken (broken.plugin) was left out: ImportError: no [module]",
        "Warning: reward 'twice' was left out: one and two both claim it",
    ]


@pytest.mark.usefixtures("found")
def test_show(dpok):
    code, out, err = dpok("rewards", "show", "sharpness")
    assert (code, err) == (0, "")
    for line in (
        "Measured with [brackets].",
        "Range: 0 to 2.5; lower is better.",
        "Weights: none needed",
        "Option kernel (str, must be given)",
        "Option size (int, default 3)",
        "``size`` in pixels; ``kernel`` is the filter's name.",
        "Use it with: --reward sharpness:kernel=...",
    ):
        assert line in out.splitlines()


FACTS = {
    "name": "sharpness",
    "package": "dpok-sharp",
    "version": "1.2",
    "summary": "How sharp the image is.",
    "range": [0.0, 2.5],
    "higher_is_better": False,
    "differentiable": False,
    "weights": "none needed",
}


@pytest.mark.usefixtures("found")
def test_the_list_as_json(dpok):
    code, out, err = dpok("rewards", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "rewards": [FACTS],
        "failures": {"dpok-broken (broken.plugin)": "ImportError: no [module]"},
        "clashes": {"twice": ["one", "two"]},
    }


@pytest.mark.usefixtures("found")
def test_show_as_json(dpok, monkeypatch):
    monkeypatch.setattr(Sharpness, "range", (0.0, float("inf")))
    code, out, err = dpok("rewards", "show", "sharpness", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == FACTS | {
        "range": [0.0, None],
        "description": "How sharp the image is.\n\nMeasured with [brackets].",
        "options": {
            "kernel": {"type": "str", "default": None, "required": True},
            "size": {"type": "int", "default": 3, "required": False},
        },
        "about_options": "``size`` in pixels; ``kernel`` is the filter's name.",
    }


@pytest.mark.usefixtures("found")
def test_json_is_said_after_the_command_that_it_is_for(dpok):
    result = dpok("rewards", "--json", "show", "sharpness")
    assert (result.code, result.out) == (2, "")
    assert "Say --json after show" in result.err


def test_every_reward_here_can_be_shown_as_json(dpok):
    listed = {facts["name"] for facts in json.loads(dpok("rewards", "--json").out)["rewards"]}
    assert {"image-reward", "http", "judge"} <= listed
    for name in listed:
        shown = json.loads(dpok("rewards", "show", name, "--json").out)
        assert shown["name"] == name
        assert shown["description"].startswith(shown["summary"])


def test_first_party_rewards_are_listed(dpok):
    names = [line.split()[0] for line in dpok("rewards").out.splitlines() if line[0] != " "]
    assert {"image-reward", "judge"} <= set(names)


def reads(what) -> type[RewardModel]:
    """A reward that reads these files, or raises this if it has to look for them."""

    class Reading(Sharpness):
        Options = RewardModel.Options

        def files(self, local_only=False):
            assert local_only
            if isinstance(what, Exception):
                raise what
            return what

    return Reading


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ((Path(__file__), Path(__file__).parent), "here"),
        ((Path(__file__), Path("/no/such/file")), "not here"),
        (RewardError("cannot get it"), "not here"),
        (TypeError("of the plugin's own"), "not here"),
    ],
)
def test_whether_the_weights_are_here(what, told):
    assert _weights(reads(what)) == told


def test_weights_that_an_option_names_cannot_be_looked_for():
    class Named(reads(())):
        Options = Sharpness.Options

    assert _weights(Named) == "by kernel="


class Mean(RewardModel):
    """The mean of all pixels."""

    name = "mean"
    range = (0.0, 1.0)
    differentiable = True

    @dataclass(frozen=True)
    class Options:
        factor: float = 1.0

    def load(self):
        self.factor = self.options.factor

    def score_batch(self, images, prompts):
        return images.mean((1, 2, 3)) * self.factor


@pytest.fixture
def mean(monkeypatch):
    registry = manager.Registry(rewards={"mean": manager.Entry(Mean, "dpok-mean", "1")})
    monkeypatch.setattr(manager, "registry", lambda: registry)


@pytest.mark.usefixtures("mean")
def test_check_tells_scores_speed_and_memory(dpok):
    code, out, err = dpok("rewards", "check", "mean:factor=0.5", "--device", "cpu")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "mean:factor=0.5 works on cpu."
    assert lines[2] == "Scores: 0.2500 for a colour gradient, 0.2504 for noise."
    assert [line.split()[0] for line in lines[1:]] == ["Loaded", "Scores:", "Speed:", "Peak"]
    assert lines[3].endswith("images/s, 16 at a time of 256 x 256 pixels.")


@pytest.mark.usefixtures("mean")
def test_check_as_json(dpok):
    code, out, err = dpok("rewards", "check", "mean:factor=0.5", "--device", "cpu", "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert (told["reward"], told["device"]) == ("mean:factor=0.5", "cpu")
    assert (told["image_size"], told["batch_size"]) == (256, 16)
    assert told["scores"] == pytest.approx([0.25, 0.2504], abs=1e-4)
    assert min(told["load_seconds"], told["images_per_second"], told["peak_memory"]) > 0


@pytest.mark.usefixtures("mean")
@pytest.mark.parametrize(
    ("spec", "code", "told"),
    [
        ("mean:factor=3", 1, "mean: scored [1.5, 1.5026"),
        ("mean:factor=nan", 2, "must be a finite number"),
        ("means", 2, "Unknown reward 'means'. Did you mean 'mean'?"),
    ],
)
def test_check_tells_what_is_wrong(dpok, spec, code, told):
    result = dpok("rewards", "check", spec, "--device", "cpu")
    assert (result.code, result.out) == (code, "")
    assert told in result.err

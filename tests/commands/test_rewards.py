"""`dpok rewards`: what is installed, in a table and as JSON, and whether it works."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from dpok_cli import RewardModel
from dpok_cli.errors import RewardError


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


def twice(base: type[RewardModel]) -> type[RewardModel]:
    return type("Twice", (base,), {"name": "twice"})


@pytest.fixture
def found(install):
    """A reward that is found, a plugin that is broken, and a name that two packages claim."""
    install(Sharpness, package="dpok-sharp", version="1.2")
    install(package="dpok-broken", source='raise ImportError("no [module]")')
    for package in ("one", "two"):
        install(twice(Sharpness), package=package)


BROKEN = "dpok-broken (plugin_of_dpok_broken)"


@pytest.mark.usefixtures("found")
def test_list(dpok):
    code, out, err = dpok("rewards")
    assert code == 0
    head, *lines = [line.split() for line in out.splitlines()]
    assert head == "reward package range weights description".split()
    assert [line[:10] for line in lines if "dpok-sharp" in line] == [
        "sharpness dpok-sharp 1.2 0 to 2.5 none needed How sharp".split(),
    ]
    names = [line[0] for line in lines]
    assert {"image-reward", "judge", "http"} < set(names)
    assert "twice" not in names
    assert err.splitlines() == [
        f"Warning: reward plugin {BROKEN} was left out: ImportError: no [module]",
        "Warning: reward 'twice' was left out: one and two both claim it",
    ]


@pytest.mark.usefixtures("found")
def test_show(dpok):
    code, out, err = dpok("rewards", "show", "sharpness")
    assert (code, err) == (0, "")
    for line in (
        "Measured with [brackets].",
        "Range: 0 to 2.5; lower is better.",
        "Scores each image by itself.",
        "Weights: none needed",
        "Option kernel (str, required)",
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
    "scores": "each image by itself",
    "weights": "none needed",
    "environment": None,
}


@pytest.mark.usefixtures("found")
def test_the_list_as_json(dpok):
    code, out, err = dpok("rewards", "--json")
    assert (code, err) == (0, "")
    printed = json.loads(out)
    assert [each for each in printed["rewards"] if each["package"] != "dpok"] == [FACTS]
    assert printed["failures"] == {BROKEN: "ImportError: no [module]"}
    assert printed["clashes"] == {"twice": ["one", "two"]}


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


def test_every_reward_here_can_be_shown_as_json(dpok):
    listed = {facts["name"] for facts in json.loads(dpok("rewards", "--json").out)["rewards"]}
    assert {"image-reward", "http", "judge"} <= listed
    for name in listed:
        shown = json.loads(dpok("rewards", "show", name, "--json").out)
        assert shown["name"] == name
        assert shown["description"].startswith(shown["summary"])


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


def weights(name, dpok):
    return json.loads(dpok("rewards", "show", name, "--json").out)["weights"]


@pytest.mark.parametrize(
    ("what", "answer"),
    [
        ((Path(__file__), Path(__file__).parent), "here"),
        ((Path(__file__), Path("/no/such/file")), "not here"),
        (RewardError("cannot get it"), "not here"),
        (TypeError("of the plugin's own"), "not here"),
    ],
    ids=["there", "missing", "refused", "broken"],
)
def test_whether_the_weights_are_here(what, answer, dpok, install):
    install(reads(what))
    assert weights("sharpness", dpok) == answer


def test_a_tiny_version_that_is_bundled_is_told(dpok, install):
    class Small(reads(RewardError("cannot get it"))):
        has_tiny = True

    install(Small)
    assert weights("sharpness", dpok) == "not here (model=tiny is)"


def test_weights_that_an_option_names_cannot_be_looked_for(dpok, install):
    class Named(reads(())):
        Options = Sharpness.Options

    install(Named)
    assert weights("sharpness", dpok) == "by kernel="


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
def mean(install):
    install(Mean, package="dpok-mean")


@pytest.mark.usefixtures("mean")
def test_check_prints_scores_speed_and_memory(dpok):
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
    printed = json.loads(out)
    assert (printed["reward"], printed["device"]) == ("mean:factor=0.5", "cpu")
    assert (printed["image_size"], printed["batch_size"]) == (256, 16)
    assert printed["scores"] == pytest.approx([0.25, 0.2504], abs=1e-4)
    assert min(printed["load_seconds"], printed["images_per_second"], printed["peak_memory"]) > 0


@pytest.mark.usefixtures("mean")
@pytest.mark.parametrize(
    ("spec", "code", "reason"),
    [
        ("mean:factor=3", 1, "mean: scored 1.5 and 1.50266, outside its range 0 to 1"),
        ("mean:factor=nan", 2, "must be a finite number"),
        ("means", 2, "Unknown reward 'means'. Did you mean 'mean'?"),
    ],
)
def test_check_says_what_is_wrong(dpok, spec, code, reason):
    result = dpok("rewards", "check", spec, "--device", "cpu")
    assert (result.code, result.out) == (code, "")
    assert reason in result.err

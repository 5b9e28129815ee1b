from dataclasses import fields

import pytest

from dpok_cli.config import PRESETS, SampleConfig, TrainRLConfig, to_toml
from dpok_cli.config import flags as options
from dpok_cli.errors import InputError

NOTHING = {"preset": None, "file": None, "prompts_file": None, "category": None}


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0-3", [0, 1, 2, 3]), ("7", [7]), ("5-5", [5]), ("9, 0 - 2,4", [9, 0, 1, 2, 4])],
)
def test_seeds(text, seeds):
    assert options.parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["-1", "1-", "1.5", "0x3", "1,,2", "1 2", "0-3-5", str(2**63)])
def test_seeds_that_are_none(text):
    with pytest.raises(InputError, match="seeds"):
        options.parse_seeds(text)


def test_the_greatest_seed():
    assert options.parse_seeds(str(2**63 - 1)) == [2**63 - 1]


def test_flags_not_given_leave_the_preset_alone():
    flags = {"rounds": None, "rewards": [], "prompts": ["a cat"], "eta": 0.5}
    config = options.resolve(TrainRLConfig, flags, **NOTHING | {"preset": "sd15"})
    assert (config.rounds, config.rewards, config.prompts, config.eta) == (
        2000,
        ("image-reward",),
        ("a cat",),
        0.5,
    )


def test_zero_and_empty_text_are_given():
    flags = {"sample_every": 0, "tracker": ""}
    config = options.resolve(TrainRLConfig, flags, **NOTHING)
    assert (config.sample_every, config.tracker) == (0, "")


def test_prompts_of_flags_and_file_are_joined(tmp_path):
    file = tmp_path / "p.txt"
    file.write_text("a dog\na bird\n")
    flags = {"prompts": ["a cat"]}
    config = options.resolve(TrainRLConfig, flags, **NOTHING | {"prompts_file": file})
    assert config.prompts == ("a cat", "a dog", "a bird")


def test_flags_are_over_a_run_and_a_run_is_over_the_preset(tmp_path):
    run = {"prompts": ["a lion"], "eta": 0.25, "guidance_scale": 5.0}
    file = tmp_path / "p.txt"
    file.write_text("a dog\n")
    given = NOTHING | {"prompts_file": file}
    config = options.resolve(SampleConfig, {"guidance_scale": 2.0}, **given, under=run)
    assert (config.prompts, config.eta, config.guidance_scale) == (("a dog",), 0.25, 2.0)


@pytest.fixture
def run_config(tmp_path):
    file = tmp_path / "config.toml"
    config = TrainRLConfig(prompts=("a cat",), rounds=9, batch_size=60, lora_rank=4)
    file.write_text(to_toml(config))
    return file


@pytest.mark.parametrize(
    "changes",
    [
        {"rounds": 12},
        {"checkpoint_every": 5, "keep": 7, "tracker": ""},
        {"sample_every": 0, "sample_count": 2, "evaluation_samples": 0},
        {"device": "cpu", "sample_batch_size": 1, "gradient_checkpointing": True},
        {"batch_size": 30, "gradient_accumulation": 2},
        {"lora_rank": 4, "prompts": ["a cat"]},  # what it is already
    ],
)
def test_what_may_change_when_a_run_is_gone_on_with(changes, run_config):
    settings = options.resume(TrainRLConfig, {"eta": None, "rewards": []} | changes, run_config)
    kept = TrainRLConfig(prompts=("a cat",), rounds=9, batch_size=60, lora_rank=4)
    expected = vars(kept) | changes | {"prompts": ("a cat",)}
    assert vars(settings) == expected


@pytest.mark.parametrize(
    "changes",
    [
        *({"lora_rank": 8}, {"seed": 1}, {"learning_rate": 0.5}, {"prompts": ["a dog"]}),
        *({"rewards": ["judge"]}, {"model": "some/other"}, {"precision": "bf16"}, {"eta": 0.5}),
        *({"batch_size": 30}, {"batch_size": 30, "gradient_accumulation": 3}, {"alpha": 2.0}),
        *({"init_adapter": "x"}, {"name": "other"}, {"guidance_scale": 1.0}),
    ],
)
def test_what_may_not_change_is_named(changes, run_config):
    with pytest.raises(InputError) as caught:
        options.resume(TrainRLConfig, {"rounds": 10} | changes, run_config)
    assert str(caught.value).startswith(f"{next(iter(changes))} = ")
    assert f"in {run_config}, and cannot change" in str(caught.value)


def test_every_help_text_is_of_a_field():
    assert set(options.FLAGS) == {field.name for kind in PRESETS for field in fields(kind)}
    assert {flag.panel for flag in options.FLAGS.values()} == set(options.PANELS)

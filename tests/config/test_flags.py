import inspect

import pytest

from dpok_cli.config import EvaluateConfig, SampleConfig, TrainSFTConfig, to_toml
from dpok_cli.config import flags as options
from dpok_cli.config.fields import flag, settings_of
from dpok_cli.engine.rl.settings import TrainRLConfig
from dpok_cli.errors import InputError
from dpok_cli.prompts.files import PromptFile

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
    config = options.resolve(TrainRLConfig, flags, **NOTHING | {"prompts_file": PromptFile(file)})
    assert config.prompts == ("a cat", "a dog", "a bird")


def test_flags_are_over_a_run_and_a_run_is_over_the_preset(tmp_path):
    run = {"prompts": ["a lion"], "eta": 0.25, "guidance_scale": 5.0}
    file = tmp_path / "p.txt"
    file.write_text("a dog\n")
    given = NOTHING | {"prompts_file": PromptFile(file)}
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
def test_what_may_change_when_a_run_is_resumed(changes, run_config):
    settings = options.resume(TrainRLConfig, {"eta": None, "rewards": []} | changes, run_config)
    kept = TrainRLConfig(prompts=("a cat",), rounds=9, batch_size=60, lora_rank=4)
    expected = vars(kept) | changes | {"prompts": ("a cat",)}
    assert vars(settings) == expected


@pytest.mark.parametrize(
    "changes",
    [
        *({"lora_rank": 8}, {"seed": 1}, {"learning_rate": 0.5}, {"prompts": ["a dog"]}),
        *({"rewards": ["judge"]}, {"precision": "bf16"}, {"eta": 0.5}),
        *({"batch_size": 30}, {"batch_size": 30, "gradient_accumulation": 3}, {"alpha": 2.0}),
        *({"init_adapter": "x"}, {"name": "other"}, {"guidance_scale": 1.0}),
    ],
)
def test_what_may_not_change_is_named(changes, run_config):
    with pytest.raises(InputError) as caught:
        options.resume(TrainRLConfig, {"rounds": 10} | changes, run_config)
    assert str(caught.value).startswith(f"{flag(next(iter(changes)))} ")
    message = str(caught.value)
    assert (
        f"in {run_config}, and cannot change when a run is resumed; only --model, --model-config,"
        " --vae, --sample-batch-size, "
    ) in message
    assert message.endswith("if their product stays 60.")


@pytest.mark.parametrize(("kind", "length"), [(TrainRLConfig, "rounds"), (TrainSFTConfig, "steps")])
def test_all_that_may_change_on_resuming(kind, length):
    free = {name for name, known in settings_of(kind).items() if known.may_change}
    assert free == {
        length,
        *("checkpoint_every", "keep", "sample_every", "sample_count", "evaluation_samples"),
        *("tracker", "device", "sample_batch_size", "gradient_checkpointing", "runs_dir", "model"),
        "patience",
        "auto_batch_size",
        *("model_config", "vae", "evaluation_steps", "evaluation_eta", "offload"),
        *(("dataset",) if kind is TrainSFTConfig else ()),
    }


def options_of(kind, **more):
    @options.config_flags(kind, **more)
    def command(*, quiet: options.Quiet = False, **flags):
        """Do nothing."""

    return {
        name: each.annotation.__metadata__[0]
        for name, each in inspect.signature(command).parameters.items()
    }


@pytest.mark.parametrize("kind", [TrainRLConfig, TrainSFTConfig, SampleConfig, EvaluateConfig])
def test_every_setting_is_a_flag_with_its_panel_and_help(kind):
    flags = options_of(kind)
    assert {*flags} - {"quiet"} == {*settings_of(kind)}
    for name, known in settings_of(kind).items():
        assert (flags[name].rich_help_panel, flags[name].help) == (known.panel, known.help)
    panels = [each.rich_help_panel for each in flags.values()]
    assert panels == sorted(panels, key=options.PANELS.index)


def test_names_metavars_and_defaults_of_flags():
    flags = options_of(TrainRLConfig)
    written = {name: flags[name].show_default for name in flags}
    assert flags["prompts"].default == "--prompt"
    assert flags["num_inference_steps"].default == "--num-inference-steps"
    assert (flags["kl"].metavar, flags["tracker"].metavar) == ("epsilon|gaussian", "NAME")
    assert written["num_inference_steps"] == "20; sd15: 50"
    assert written["lr_schedule"] == "cosine; sd15: constant"
    assert written["beta"] == "0.3; sd15: 0.01"
    assert written["kl"] == "epsilon"  # the same in sd15
    assert written["gradient_checkpointing"] == "off"
    assert written["model"] == "tiny"
    assert written["lora_targets"] is False
    assert written["name"] is False


def test_a_flag_can_be_left_out():
    assert {*options_of(SampleConfig)} - {*options_of(SampleConfig, without=["seed"])} == {"seed"}


@pytest.mark.parametrize(
    ("flags", "kept"), [([], True), (["--no-noise-window"], False), (["--noise-window"], True)]
)
def test_what_is_on_can_be_turned_off(flags, kept, dpok):
    result = dpok("train-rl", "--prompt=a cat", "--print-config", *flags)
    assert f"noise_window = {str(kept).lower()}" in result.out.splitlines()

"""Config files, flat and with tables; what overrides what; presets that build on presets."""

import subprocess
import sys

import pytest

from dpok_cli.config import (
    EvaluateConfig,
    SampleConfig,
    TrainSFTConfig,
    presets,
    resolve,
    sources,
    to_toml,
)
from dpok_cli.engine.rl.settings import TrainRLConfig
from dpok_cli.errors import InputError

SECTIONS = """
guidance_scale = 5
prompts = ["a cat"]

[train-rl]
rounds = 7
guidance_scale = 6

[train-sft]
steps = 9

[sample]
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="config.toml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


@pytest.fixture
def preset_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PRESETS", tmp_path)


def refusal(*arguments):
    with pytest.raises(InputError) as caught:
        resolve(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_flags_override_the_file_and_the_file_the_preset(write):
    file = write("rounds = 7\nalpha = 3\nprompts = ['a cat']\n")
    config = resolve(TrainRLConfig, "sd15", file, rounds=9, beta=None)
    assert (config.rounds, config.alpha, config.beta) == (9, 3.0, 0.01)
    assert config.prompts == ("a cat",)
    assert config.num_inference_steps == 50
    assert repr(config.alpha) == "3.0"


def test_lists_from_python():
    config = resolve(TrainRLConfig, prompts=["a cat"], rewards=["judge", "image-reward"])
    assert (config.prompts, config.rewards) == (("a cat",), ("judge", "image-reward"))


def test_a_commands_table_overrides_the_top_and_others_are_ignored(write):
    file = write(SECTIONS)
    rl, sft, sample = (
        resolve(kind, file=file) for kind in (TrainRLConfig, TrainSFTConfig, SampleConfig)
    )
    assert (rl.guidance_scale, rl.rounds, rl.prompts) == (6.0, 7, ("a cat",))
    assert (sft.guidance_scale, sft.steps) == (5.0, 9)
    assert (sample.guidance_scale, sample.prompts) == (5.0, ("a cat",))


def test_a_file_can_build_on_a_preset(write):
    file = write('preset = "sd15-multi"\n[train-rl]\nbeta = 0.5\nrounds = 3\n')
    config = resolve(TrainRLConfig, "tiny", file, rounds=4)
    assert (config.alpha, config.beta, config.rounds, config.group_size) == (1000.0, 0.5, 4, 1)
    assert config.model.startswith("stable-diffusion-v1-5/")


@pytest.mark.parametrize("kind", [SampleConfig, EvaluateConfig])
def test_a_runs_config_is_no_config_of_sample_and_evaluate(kind, tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    file = tmp_path / "config.toml"
    file.write_text(to_toml(TrainRLConfig()))
    with pytest.raises(InputError) as error:
        resolve(kind, file=file)
    assert str(error.value) == f"{file} has the settings of a training: give --run {tmp_path}."
    assert resolve(TrainRLConfig, file=file) == TrainRLConfig()


def test_the_files_preset_overrides_the_given_one(write):
    file = write('preset = "sd15-multi"\n')
    assert resolve(TrainRLConfig, "sd15", file).alpha == 1000.0
    assert resolve(TrainRLConfig, "sd15", write('preset = "tiny"\nbeta = 0.5\n')).alpha == 10.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("round = 3", "{file}: there is no setting 'round'. Did you mean 'rounds'"),
        ("[train-rl]\nround = 3", "{file}: there is no setting 'round'. Did you mean 'rounds'"),
        ("[train-rl]\nsteps = 3", "{file}: there is no setting 'steps'."),
        ("[train-lr]\nrounds = 3", "{file}: there is no table [train-lr]. Did you mean 'train-rl'"),
        ("[train-rl.rounds]\nx = 3", "--rounds {{'x': 3}}: must be a whole number."),
        ("[train-rl.more]\nx = 3", "{file}: there is no table [more]."),
        ("train-rl = 3", "{file}: train-rl must be a table: [train-rl]."),
        ("train-sft = 3", "{file}: train-sft must be a table: [train-sft]."),
        ("preset = 'sd51'", "{file}: there is no preset 'sd51' for train-rl. Did you mean 'sd35'"),
        ("preset = 'sd15-sft'", "{file}: there is no preset 'sd15-sft' for train-rl."),
        ("preset = 15", "{file}: there is no preset 15 for train-rl."),
        ("preset = ['sd15']", "{file}: there is no preset ['sd15'] for train-rl."),
        ("rounds = 3.0", "--rounds 3.0: must be a whole number."),
        ("prompts = [1]", "--prompt 1: must be a list of strings."),
        ("kl = 'gausian'", "--kl 'gausian': no such choice. Did you mean 'gaussian'?"),
        ("rounds", "{file} is not TOML"),
        ("rounds = 1\nrounds = 2", "{file} is not TOML"),
    ],
)
def test_a_file_that_cannot_be_used(text, message, write):
    file = write(text)
    assert refusal(TrainRLConfig, "tiny", file).startswith(message.format(file=file))


def test_a_file_that_is_not_there(tmp_path):
    message = refusal(TrainRLConfig, "tiny", tmp_path / "no.toml")
    assert message == f"Cannot read the config file {tmp_path}/no.toml: No such file or directory."


def test_a_preset_that_is_not_there():
    assert refusal(SampleConfig, "sd15-multi") == (
        "There is no preset 'sd15-multi' for sample. Did you mean 'sd15'?"
        " Known: flux, sd15, sd35, sdxl, tiny."
    )


@pytest.mark.usefixtures("preset_folder")
def test_presets_that_form_a_cycle(write):
    write('preset = "b"\nrounds = 1', "a.toml")
    write('preset = "c"\nrounds = 2', "b.toml")
    file = write('preset = "b"\nrounds = 3', "c.toml")
    message = f"{file}: the presets form a cycle: b -> c -> b."
    assert refusal(TrainRLConfig, "a") == message
    alone = write('preset = "self"\nrounds = 3', "self.toml")
    assert refusal(TrainRLConfig, "self") == f"{alone}: the presets form a cycle: self -> self."


@pytest.mark.usefixtures("preset_folder")
def test_a_preset_is_for_the_commands_that_its_own_file_names(write):
    write("eta = 0.5", "all.toml")
    write("preset = 'all'\n[train-sft]\nsteps = 3", "sft.toml")
    write("preset = 'all'", "none.toml")
    assert presets(TrainSFTConfig) == ["tiny", "all", "sft"]
    assert presets(SampleConfig) == ["tiny", "all"]
    config = resolve(TrainSFTConfig, "sft")
    assert (config.steps, config.eta) == (3, 0.5)


def test_importing_the_settings_is_light():
    code = "import sys, dpok_cli.config; print({'torch', 'typer', 'rich'} & {*sys.modules})"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"

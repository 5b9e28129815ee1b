"""Pipelines as people have them: weights that are damaged, and schedules for other samplers.

Every command that draws ends with one line, and leaves no folder of its own behind.
"""

import json
import shutil

import pytest

COMMANDS = {
    "sample": "sample --seeds=0 --output=new",
    "sample by date": "sample --seeds=0",
    "train-rl": "train-rl --name=x --rounds=1 --samples-per-round=2 --updates-per-round=1"
    " --batch-size=2 --reward=jpeg-compressibility --evaluation-samples=0 --sample-every=0"
    " --tracker=",
    "train-sft": "train-sft --name=x --images=2 --steps=1 --batch-size=2 --evaluation-samples=0"
    " --reward=jpeg-compressibility --sample-every=0 --tracker=",
    "evaluate": "evaluate --adapter=lora --samples=1 --reward=jpeg-compressibility --output=new",
}


@pytest.fixture(params=COMMANDS)
def run(request, dpok, adapters, tmp_path):
    """Run each command on a model: ``run(model, ...)``."""
    shutil.copytree(adapters["shaken"], tmp_path / "lora")
    given = {"--prompt": "a cat", "--device": "cpu"}

    def run(model, *more, steps=2):
        flags = [f"{name}={value}" for name, value in given.items()]
        flags += [f"--model={model}", f"--num-inference-steps={steps}", *more]
        return dpok(*COMMANDS[request.param].split(), *flags, "--quiet")

    run.command = request.param
    return run


@pytest.fixture
def changed(pipeline_folder, tmp_path):
    """Makes a copy of the very small pipeline with another scheduler config."""

    def changed(**scheduler):
        folder = tmp_path / "model"
        shutil.copytree(pipeline_folder, folder)
        file = folder / "scheduler/scheduler_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | scheduler))
        return folder

    return changed


@pytest.mark.parametrize("part", ["unet", "vae"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(run, changed, part, value, tmp_path):
    from safetensors.torch import load_file, save_file

    (file,) = (changed() / part).glob("*.safetensors")
    weights = load_file(file)
    weights["conv_in.bias" if part == "unet" else "decoder.conv_out.bias"].fill_(value)
    save_file(weights, file, {"format": "pt"})
    result = run("model")
    assert result.code == 1
    assert "The images are not finite." in result.err
    assert result.err.count("\n") == 1
    assert result.out == ""
    if run.command == "sample":
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("steps", [1000, 1001])
def test_more_steps_than_the_schedule_has(run, changed, steps, tmp_path):
    """With an offset of 1, as Stable Diffusion has, 1000 steps would begin one past the last."""
    changed()
    result = run("model", steps=steps)
    assert result.code == 2
    assert result.err == f"Error: --num-inference-steps {steps}: this model has 999 at most.\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lora", "model"]


def test_noise_predicted_from_pure_noise(run, changed, tmp_path):
    """A flag for zero terminal SNR that was set for a model which predicts noise."""
    changed(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    result = run("model")
    assert result.code == 2
    assert "has a step of pure noise (zero terminal SNR)" in result.err
    assert result.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lora", "model"]

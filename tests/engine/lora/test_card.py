"""The adapter's model card: a person can copy its code, and gets the trained images."""

import json

import pytest
import torch

from dpok_cli.config import SampleConfig, resolve
from dpok_cli.engine.bases.load import load
from dpok_cli.engine.lora.card import adapter_card
from dpok_cli.engine.rl.loop import train_rl
from dpok_cli.engine.rl.settings import TrainRLConfig
from dpok_cli.engine.runs.folder import RunFolder
from dpok_cli.engine.sampling.pictures import to_pil
from dpok_cli.engine.sampling.sampler import Sampler
from support.families import NEWER


def test_what_the_card_says(make_config, tmp_path):
    config = make_config(prompts=('a "green" rabbit', "two: cats"), rewards=("green", "red=0.5"))
    card = adapter_card(config, 1234, "FluxPipeline", "pipe = 1", None, {})
    _, head, text = card.split("---\n", 2)
    assert "base_model" not in head  # a folder is no model of the hub
    assert "library_name: diffusers\n" in head
    (prompt,) = (line for line in head.splitlines() if line.startswith("instance_prompt: "))
    assert json.loads(prompt.removeprefix("instance_prompt: ")) == 'a "green" rabbit'
    assert "on 1234 images" in text
    assert '- a "green" rabbit\n- two: cats\n' in text
    assert "scored by `green`, `red=0.5`." in text
    file = tmp_path / "config.toml"
    file.write_text(text.split("```toml\n")[1].split("```")[0])
    assert resolve(TrainRLConfig, file=file) == config


def test_of_many_prompts_the_card_lists_the_first_once(make_config, tmp_path):
    config = make_config(prompts=tuple(f"cat {number}." for number in range(25)))
    text = adapter_card(config, 1, "FluxPipeline", "", None, {})
    assert "\n- cat 19.\n- and 5 more, which the settings below list\n" in text
    assert text.count("cat 20.") == 1
    few = make_config(prompts=config.prompts[:20])
    assert "more, which" not in adapter_card(few, 1, "FluxPipeline", "", None, {})


def test_a_base_on_the_hub_is_linked(make_config):
    config = make_config(model="org/base")
    card = adapter_card(config, 1, "StableDiffusionXLPipeline", "", {}, {})
    assert card.startswith("---\nbase_model: org/base\nlibrary_name: ")
    assert "\ntags: [text-to-image, lora, diffusers, stable-diffusion-xl, dpok]\n" in card


@pytest.mark.parametrize("family", ["sd", *NEWER])
def test_the_code_of_the_card_draws_the_trained_images(
    make_config, green, pipeline_folder, family_folder, family, tmp_path, monkeypatch
):
    """A flow-matching family's own scheduler takes deterministic steps, and no eta."""
    settings = dict(
        model=str(pipeline_folder if family == "sd" else family_folder(family)),
        guidance_scale=3.0,
        negative_prompt="" if family == "flux" else "two cats",
        height=16,
        width=24 if family == "sd" else 32,
    )
    config = make_config(runs_dir=str(tmp_path), rounds=1, learning_rate=0.1, **settings)
    model = load(config)
    run = RunFolder.create(config)
    list(train_rl(config, model, green, run))
    card = (run.adapter / "README.md").read_text()
    monkeypatch.chdir(run.adapter)
    names: dict = {}
    exec(card.split("```python\n")[1].split("```")[0], names)
    eta = 0.0 if family not in ("sd", "sdxl") else 1.0
    drawing = make_config(SampleConfig, **settings, eta=eta)
    (ours,) = Sampler(model, drawing).sample(config.prompts[:1], [0])
    with model.reference():
        (before,) = Sampler(model, drawing).sample(config.prompts[:1], [0])
    assert (ours.image - before.image).abs().max() > 3 / 255
    theirs = torch.tensor(list(names["image"].tobytes()))
    assert (theirs - torch.tensor(list(to_pil(ours.image).tobytes()))).abs().max() <= 1

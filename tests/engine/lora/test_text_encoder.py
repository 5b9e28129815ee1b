"""An adapter that changes the text encoder: applied, kept, and no part of the reference."""

import pytest
import torch

from dpok_cli.config import SampleConfig, TrainSFTConfig
from dpok_cli.engine.bases.load import load
from dpok_cli.engine.lora.export import write
from dpok_cli.engine.lora.files import ADAPTER_FILE, read_adapter
from dpok_cli.engine.rl.loop import train_rl
from dpok_cli.engine.runs.folder import RunFolder
from dpok_cli.engine.sampling.sampler import Sampler
from dpok_cli.engine.sft.loop import train_sft
from engine.lora.conftest import equal, images
from support.text import has_lines


@pytest.fixture
def lora(make_model, make_config, shake, text_lora):
    """The weights of an adapter of the UNet and the text encoder, both of which matter."""
    model = make_model()
    model.adapter.add(4, 0.0, make_config().lora_targets, seed=0)
    shake(model)
    return model.adapter.weights() | {"text_encoder": text_lora(model.pipeline)}


@pytest.fixture
def kohya(lora, tmp_path):
    write(lora, "kohya", tmp_path / "mine.safetensors")
    return tmp_path / "mine.safetensors"


def draw(model, config):
    return torch.stack([one.image for one in Sampler(model, config).sample(config.prompts, [3])])


def test_its_images_are_those_of_diffusers_and_before_is_the_base(
    kohya, make_config, template, tmp_path
):
    config = make_config(SampleConfig, guidance_scale=3.0)
    model, base = load(config, kohya), load(config)
    with model.reference():
        assert torch.equal(draw(model, config), draw(base, config))
    plain = load(config)
    with plain.encoders.present():
        plain.pipeline.set_progress_bar_config(disable=True)
        plain.pipeline.load_lora_weights(kohya.parent, weight_name=kohya.name)
        theirs = images(plain.pipeline)
    with model.encoders.present(model.adapter.text):
        assert (theirs - images(model.pipeline)).abs().max() <= 1 / 255
    assert (draw(model, config) - draw(base, config)).abs().max() > 0.02
    unet_only = read_adapter(kohya)
    del unet_only["text_encoder"]
    write(unet_only, "kohya", tmp_path / "unet.safetensors")
    other = draw(load(config, tmp_path / "unet.safetensors"), config)
    assert (draw(model, config) - other).abs().max() > 1 / 255  # the text encoder's part matters


def test_the_reference_of_a_step_has_other_embeddings(kohya, make_config):
    config = make_config(SampleConfig)
    model, base = load(config, kohya), load(config)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    step, one = torch.tensor([0, 1]), [1, 0]
    mean = Sampler(model, config).reference(latents, step, model.encode(config.prompts)[one]).mean
    expected = Sampler(base, config).policy(latents, step, base.encode(config.prompts)[one]).mean
    assert torch.equal(mean, expected)
    assert model.encode(config.prompts).reference is not None
    assert base.encode(config.prompts).reference is None


def test_rl_from_it_keeps_the_text_encoders_part_and_resumes_without_the_file(
    kohya, lora, make_config, make_model, green, tmp_path
):
    config = make_config(init_adapter=str(kohya), runs_dir=str(tmp_path), name="rl", rounds=1)
    run = RunFolder.create(config)
    model = make_model()
    (record,) = train_rl(config, model, green, run)
    assert record["kl"] > 1e-4
    saved = read_adapter(run.adapter)
    assert equal({"text_encoder": saved["text_encoder"]}, {"text_encoder": lora["text_encoder"]})
    assert not equal({"unet": saved["unet"]}, {"unet": lora["unet"]})
    trained = model.adapter.parameters()
    everything = [*model.pipeline.unet.parameters(), *model.pipeline.text_encoder.parameters()]
    assert {id(p) for p in everything if p.requires_grad} == {id(p) for p in trained}

    kohya.unlink()
    again = make_model()
    list(train_rl(config, again, green, run))
    assert equal(again.adapter.weights(), model.adapter.weights())


def test_a_resume_has_layers_of_different_ranks(lora, make_config, make_model, green, tmp_path):
    part = lora["unet"]
    for number, (name, layer) in enumerate(list(part.items())[:3], 1):
        part[name] = layer._replace(
            down=layer.down[:number], up=layer.up[:, :number], alpha=2.0 * number
        )
    del part[list(part)[5]]
    write(lora, "kohya", tmp_path / "mixed.safetensors")
    given = dict(init_adapter=str(tmp_path / "mixed.safetensors"), runs_dir=str(tmp_path))
    config = make_config(**given, name="two", rounds=2)
    whole = make_model()
    list(train_rl(config, whole, green, RunFolder.create(config)))

    config = make_config(**given, name="one", rounds=2)
    run = RunFolder.create(config)
    list(train_rl(config, make_model(), green, run, has_lines(run.metrics, 1)))
    assert [record["round"] for record in run.history()] == [1]
    resumed = make_model()
    list(train_rl(config, resumed, green, run))
    assert equal(resumed.adapter.weights(), whole.adapter.weights())
    assert not equal(whole.adapter.weights(), lora)
    assert {layer.rank for layer in whole.adapter.weights()["unet"].values()} == {1, 2, 3, 4}


def test_the_image_set_of_sft_is_the_bases(kohya, make_config, make_model, green, tmp_path):
    records = []
    for name, adapter in {"from it": str(kohya), "new": ""}.items():
        config = make_config(
            TrainSFTConfig, init_adapter=adapter, runs_dir=str(tmp_path), name=name, log_every=1
        )
        run = RunFolder.create(config)
        records.append(next(iter(train_sft(config, make_model(), green, run))))
    assert records[0]["reward/mean"] == records[1]["reward/mean"]
    assert records[0]["kl"] > 1e-4
    assert records[1]["kl"] == 0


def test_one_of_the_text_encoder_alone(lora, make_config, make_model, green, tmp_path):
    write({"text_encoder": lora["text_encoder"]}, "kohya", tmp_path / "text.safetensors")
    config = make_config(
        init_adapter=str(tmp_path / "text.safetensors"), runs_dir=str(tmp_path), name="rl", rounds=1
    )
    run = RunFolder.create(config)
    list(train_rl(config, make_model(), green, run))
    assert read_adapter(run.adapter / ADAPTER_FILE).keys() == {"unet", "text_encoder"}

"""Settings that the machine cannot hold are refused, and only those."""

import pytest

from dpok_cli.config import SampleConfig, TrainSFTConfig
from dpok_cli.config.fields import Held, flag
from dpok_cli.engine.bases import memory
from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.engine.rl.settings import TrainRLConfig
from dpok_cli.errors import InputError
from support.families import make

LATENT, IMAGE = 4 * (4 * 8 * 8), 4 * (3 * 16 * 16)  # bytes

CASES = {
    "samples_per_round": (
        dict(samples_per_round=100, num_inference_steps=9),
        100 * (10 * LATENT + IMAGE),
    ),
    "buffer_size": (dict(buffer_size=1000, rounds=10**9), 2 * 1000 * LATENT),
    "sample_count": (dict(sample_count=100, sample_every=1), 100 * IMAGE),
    "images": (dict(images=1000), 1000 * LATENT),
    "batch_size": (dict(batch_size=100, gradient_accumulation=10), 2 * 1000 * LATENT),
}


def config_of(make_config, setting):
    kind = TrainSFTConfig if setting in ("images", "batch_size") else TrainRLConfig
    return make_config(kind, **CASES[setting][0])


@pytest.mark.parametrize("setting", CASES)
def test_what_does_not_fit_is_refused(setting, make_config, model, monkeypatch):
    config, need = config_of(make_config, setting), CASES[setting][1]
    monkeypatch.setattr(memory, "_memory", lambda device: need)
    memory.check_memory(config, model)
    monkeypatch.setattr(memory, "_memory", lambda device: need - 1)
    with pytest.raises(InputError, match=f"^{flag(setting)} {getattr(config, setting)} needs more"):
        memory.check_memory(config, model)


def test_an_evaluation_needs_no_more_than_a_batch(make_config, model, monkeypatch):
    monkeypatch.setattr(memory, "_memory", lambda device: 100 * IMAGE)
    memory.check_memory(make_config(evaluation_samples=100_000), model)


def test_a_buffer_that_is_never_full_needs_no_more_than_comes(make_config, model, monkeypatch):
    monkeypatch.setattr(memory, "_memory", lambda device: 100_000)
    memory.check_memory(make_config(buffer_size=10**9, rounds=2), model)


def test_a_batch_is_never_larger_than_what_is_drawn(make_config, model, monkeypatch):
    """Of four images a batch, the very small UNet keeps two maps of 8 channels and 8 x 8."""
    config = make_config(sample_batch_size=10**9, guidance_scale=3.0, evaluation_samples=0)
    need = 2 * 4 * 2 * 8 * 8 * 8 * 2  # guidance takes two rows a sample; half precision
    unet = model.pipeline.unet.config
    assert (unet.layers_per_block, unet.block_out_channels[0]) == (1, 8)
    monkeypatch.setattr(TrainRLConfig, "held", lambda self: [Held("samples_per_round", images=4)])
    monkeypatch.setattr(memory, "_memory", lambda device: need)
    memory.check_memory(config, model)
    monkeypatch.setattr(memory, "_memory", lambda device: need - 1)
    with pytest.raises(InputError, match="^--sample-batch-size 1000000000 needs more than"):
        memory.check_memory(config, model)


@pytest.mark.parametrize(
    ("family", "rows", "values"),
    [
        ("sdxl", 2, 2 * 8 * 8 * 8),  # two maps of 8 channels and 8 x 8
        ("sd35", 2, 5 * 16 * 16),  # 16 tokens 16 wide, and four times as wide in the MLP
        ("flux", 1, 5 * 16 * 32),  # its guidance takes no second row
        ("qwen", 2, 5 * 16 * 32),
        ("zimage", 2, 5 * 16 * 32),
    ],
)
def test_what_each_family_keeps(family, rows, values):
    model = DiffusionModel(make(family))
    assert model.base.rows(3.0) == rows
    assert model.base.rows(1.0) == 1
    assert model.base.kept(model.latent_shape) == values


def test_what_a_command_holds_besides(make_config, model, monkeypatch):
    config = make_config(SampleConfig, seeds="0-99")
    monkeypatch.setattr(memory, "_memory", lambda device: 100 * IMAGE - 1)
    with pytest.raises(InputError, match=r"^--seeds 0-99 needs more than 0 GB .*16 x 16 pixels"):
        memory.check_memory(config, model, Held("seeds", images=100))
    memory.check_memory(config, model)

"""Starting from an adapter: the reference stays the pre-trained model, and what misfits is told."""

import pytest
import torch

from dpok_cli.config import TrainSFTConfig
from dpok_cli.engine.rl.loop import train_rl
from dpok_cli.engine.runs.folder import RunFolder
from dpok_cli.engine.sampling.step import epsilon_kl
from dpok_cli.engine.sft.loop import train_sft
from dpok_cli.errors import InputError


@pytest.fixture
def adapter(make_model, make_config, shake, tmp_path):
    """The folder of an adapter that changes much."""
    model = make_model()
    model.adapter.start(make_config())
    shake(model)
    model.adapter.save(tmp_path / "adapter")
    return str(tmp_path / "adapter")


def gap(model, config):
    """How far the adapter is from the reference, at one latent."""
    random = torch.Generator().manual_seed(0)
    given = (torch.randn(2, 4, 8, 8, generator=random), torch.tensor([200, 700]))
    texts = model.encode(config.prompts)
    with torch.no_grad():
        output = model.denoiser(*given, texts, 1.0)
        with model.reference():
            frozen = model.denoiser(*given, texts, 1.0)
    return epsilon_kl(output, frozen).mean().item(), frozen


def test_its_weights_are_taken_and_the_reference_stays(adapter, make_model, make_config, shake):
    config = make_config(init_adapter=adapter)
    made, plain, model = make_model(), make_model(), make_model()
    made.adapter.start(make_config())
    shake(made)
    model.adapter.start(config)
    own = dict(model.pipeline.unet.named_parameters())
    for name, weight in made.pipeline.unet.named_parameters():
        assert torch.equal(own[name], weight)
    assert all(parameter.requires_grad for parameter in model.adapter.parameters())
    plain.adapter.start(make_config())
    assert gap(plain, config)[0] == 0
    assert gap(model, config)[0] > 1e-4
    assert torch.equal(gap(model, config)[1], gap(plain, config)[1])


def test_rl_from_sft_measures_its_kl_to_the_pre_trained_model(
    make_model, make_config, green, tmp_path
):
    runs = dict(runs_dir=str(tmp_path))
    config = make_config(TrainSFTConfig, name="sft", steps=20, **runs)
    run = RunFolder.create(config)
    first = make_model()
    *_, last = train_sft(config, first, green, run)
    start, _ = gap(first, config)
    assert start > 1e-6

    config = make_config(name="rl", rounds=2, init_adapter=str(run.adapter), **runs)
    # the first update's KL, before anything moved: an update a round
    config = make_config(
        name="rl", init_adapter=str(run.adapter), updates_per_round=1, batch_size=16, **runs
    )
    model = make_model()
    records = list(train_rl(config, model, green, RunFolder.create(config)))
    assert records[0]["kl"] > 0.2 * last["kl"] > 0
    assert records[0]["ratio/first_max_dev"] <= 1e-6
    from_nothing = make_config(updates_per_round=1, batch_size=16)
    assert next(iter(train_rl(from_nothing, make_model(), green)))["kl"] == 0
    before, after = (dict(m.pipeline.unet.named_parameters()) for m in (first, model))
    assert any(not torch.equal(before[name], after[name]) for name in before if "lora" in name)


def test_sft_from_rl(adapter, make_model, make_config, green, tmp_path):
    config = make_config(
        TrainSFTConfig, init_adapter=adapter, runs_dir=str(tmp_path), name="sft", log_every=1
    )
    run = RunFolder.create(config)
    record = next(iter(train_sft(config, make_model(), green, run)))
    assert record["kl"] > 1e-4
    plain = make_config(TrainSFTConfig, runs_dir=str(tmp_path), name="plain", log_every=1)
    run = RunFolder.create(plain)
    other = next(iter(train_sft(plain, make_model(), green, run)))
    assert other["kl"] == 0
    assert other["reward/mean"] == record["reward/mean"]  # the reference drew both sets


def test_a_run_resumes_without_the_adapter_it_started_from(
    adapter, make_model, make_config, green, tmp_path
):
    config = make_config(init_adapter=adapter, runs_dir=str(tmp_path), name="rl", rounds=1)
    run = RunFolder.create(config)
    model = make_model()
    list(train_rl(config, model, green, run))
    (tmp_path / "adapter/pytorch_lora_weights.safetensors").unlink()
    again = make_model()
    list(train_rl(config, again, green, run))
    own = dict(again.pipeline.unet.named_parameters())
    assert all(torch.equal(own[k], w) for k, w in model.pipeline.unet.named_parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_rank": 2}, "is of rank 4, and lora_rank is 2: give --lora-rank 4."),
        ({"lora_alpha": 8.0}, "has another scale: give --lora-alpha 4."),
        (
            {"lora_targets": ("to_q", "to_v")},
            "is on the layers to_k, to_out.0, to_q, to_v, not on to_q, to_v: give --lora-targets"
            " to_k --lora-targets to_out.0",
        ),
    ],
)
def test_one_that_does_not_fit(changes, message, adapter, model, make_config):
    with pytest.raises(InputError) as caught:
        model.adapter.start(make_config(init_adapter=adapter, **changes))
    assert message in str(caught.value)


def test_one_of_another_model(adapter, build, make_config):
    from dpok_cli.engine.bases.model import DiffusionModel

    with pytest.raises(InputError, match="does not fit this model"):
        DiffusionModel(build(blocks=(8, 16, 16))).adapter.start(make_config(init_adapter=adapter))


def test_one_that_is_no_adapter(model, make_config, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"a.safetensors cannot be read"):
        model.adapter.start(make_config(init_adapter=str(tmp_path / "a.safetensors")))

"""The plan of a training's memory: what it counts, and what it says when there is too little."""

import json
import shutil
from dataclasses import replace
from functools import cache

import pytest
import torch

from dpok_cli.config import TrainSFTConfig
from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.engine.bases.structure import PUBLISHED, size_of_denoiser, structure
from dpok_cli.engine.rl.settings import TrainRLConfig
from dpok_cli.engine.training import plan as module
from dpok_cli.engine.training.plan import Phase, Plan, check_plan, plan_memory
from dpok_cli.errors import InputError
from support.families import FAMILIES, random_pipeline

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
#: Millions of weights (denoiser, text encoders), as the models' cards and papers have them.
WEIGHTS = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": (860, 123),
    "stabilityai/stable-diffusion-xl-base-1.0": (2567, 818),
    "stabilityai/stable-diffusion-3.5-medium": (2243, 5581),
    "black-forest-labs/FLUX.1-dev": (11_901, 4885),
    "Qwen/Qwen-Image": (20_430, 8292),
    "Tongyi-MAI/Z-Image-Turbo": (6155, 4022),
}


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of 10 GB."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**9, 10**10))
    return GPU


@pytest.fixture(scope="module")
def planned():
    """Plans of a GPU, each made once: a dry run takes seconds."""

    @cache
    def planned(config, processes=1):
        return plan_memory(config, GPU, processes)

    return planned


@pytest.fixture(params=FAMILIES)
def settings(request, family_folder):
    def make(kind=TrainRLConfig, **changes):
        small = dict(height=16, width=16, samples_per_round=4, batch_size=4)
        if kind is TrainSFTConfig:
            del small["samples_per_round"]
        folder = str(family_folder(request.param))
        return kind(model=folder, prompts=("cat",), **small | changes)

    return make


#: What no family has a part in is tried with one, or with one of each kind.
UNET_AND_TRANSFORMER = pytest.mark.parametrize("settings", ["sd15", "flux"], indirect=True)
TRANSFORMER = pytest.mark.parametrize("settings", ["flux"], indirect=True)


def phases(plan):
    return {phase.name: phase.parts for phase in plan.phases}


# --------------------------------------------------------------------------- published models


@pytest.mark.parametrize("model", WEIGHTS)
def test_a_published_models_sizes(model):
    config = TrainRLConfig(model=model, precision="bf16")
    pipeline = structure(config)
    denoiser, *encoders = (
        sum(weight.numel() for weight in part.parameters()) // 10**6
        for name, part in sorted(pipeline.components.items(), reverse=True)
        if name in ("unet", "transformer") or name.startswith("text_encoder")
        if part is not None
    )
    assert (denoiser, sum(encoders)) == pytest.approx(WEIGHTS[model], abs=2)
    assert size_of_denoiser(config) == pytest.approx(2 * WEIGHTS[model][0] * 1e6, rel=1e-3)


def test_the_published_configurations_are_those_of_the_recipe(tmp_path):
    names = dict(zip(FAMILIES, WEIGHTS, strict=True))
    for family, model in names.items():
        random_pipeline.write_configuration(family, tmp_path / family)
        kept = PUBLISHED / model.replace("/", "--")
        files = sorted(file.relative_to(kept) for file in kept.rglob("*.json"))
        assert files
        for file in files:
            ours, made = (json.loads((at / file).read_text()) for at in (kept, tmp_path / family))
            for each in (ours, made):
                for version in ("_diffusers_version", "transformers_version"):
                    each.pop(version, None)
            assert ours == made


# ------------------------------------------------------------------------------ what is counted


def test_the_parts_of_each_phase(settings, gpu, planned):
    config = settings()
    parts = phases(planned(config))
    assert parts.keys() == {"encode the prompts", "draw", "decode", "score", "update"}
    pipeline = structure(config)
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    for phase in ("draw", "decode", "score", "update"):
        assert parts[phase]["denoiser"] == 4 * denoiser.num_parameters() + buffers(denoiser)
        assert "text encoders" not in parts[phase]
        assert parts[phase]["VAE"] == 4 * pipeline.vae.num_parameters()
    assert "VAE" not in parts["encode the prompts"]  # it is not on the GPU then
    assert parts["encode the prompts"]["text encoders"] > 0
    assert parts["update"]["batch"] > parts["draw"]["batch"] / 2
    attention = DiffusionModel(pipeline).adapter
    attention.add(1, 1.0, (), 0)
    of_rank_one = sum(weight.numel() for weight in attention.parameters())
    # In float32: the weights, their gradients and Adam's two means.
    assert parts["draw"]["adapter"] == 4 * 4 * config.lora_rank * of_rank_one > 0


def buffers(network):
    return sum(each.numel() * each.element_size() for each in network.buffers())


@UNET_AND_TRANSFORMER
def test_gradient_checkpointing_is_of_updates_and_the_sample_batch_of_drawing(
    settings, gpu, planned
):
    parts = phases(planned(settings()))
    less = phases(planned(settings(sample_batch_size=1, gradient_checkpointing=True)))
    assert less["draw"]["batch"] < 0.5 * parts["draw"]["batch"]
    assert less["update"]["batch"] < parts["update"]["batch"]


@TRANSFORMER
def test_what_each_setting_changes(settings, gpu, planned):
    parts = phases(planned(settings()))

    def changed(processes=1, **changes):
        return phases(planned(settings(**changes), processes))

    assert changed(batch_size=8)["update"]["batch"] > 1.8 * parts["update"]["batch"]
    assert changed(processes=2)["update"]["batch"] < 0.7 * parts["update"]["batch"]
    half = changed(precision="bf16", offload=True)
    assert half["draw"]["denoiser"] <= 0.6 * parts["draw"]["denoiser"]
    assert "VAE" not in half["draw"]
    assert half["decode"]["VAE"] == parts["decode"]["VAE"]  # which stays in float32


def test_supervised_updates_have_no_second_row_for_guidance(settings, gpu, planned):
    plans = [phases(planned(settings(kind))) for kind in (TrainRLConfig, TrainSFTConfig)]
    rl, sft = (each["update"]["batch"] for each in plans)
    if "flux" in settings().model:
        assert sft == rl
    else:
        assert sft < 0.7 * rl


@TRANSFORMER
def test_the_rewards_files_are_counted_or_named(settings, gpu):
    plan = plan_memory(settings(rewards=("image-reward:model=tiny", "pickscore")), gpu)
    assert plan.unknown == ("pickscore",)
    assert phases(plan)["score"]["rewards"] > 10**6


# ---------------------------------------------------------------------------------- too little


@TRANSFORMER
def test_what_helps_is_said_and_no_more_than_that(settings, gpu, planned, monkeypatch):
    config = settings(rewards=("jpeg-compressibility",), batch_size=12)
    plan = planned(config)
    less = planned(replace(config, gradient_checkpointing=True)).peak.total
    assert plan.peak.total > less

    def said(memory):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1, memory))
        with pytest.raises(InputError) as raised:
            check_plan(replace(plan, memory=memory), config, GPU)
        return str(raised.value)

    assert said(less) == (
        "The training needs 0.6 GB to update, and cuda:0 has 0.6 GB. Give"
        " --gradient-checkpointing, which needs 0.6 GB."
    )
    assert " Give --gradient-checkpointing --batch-size 1 --gradient-accumulation 12, which " in (
        said(less - 1)
    )


@TRANSFORMER
def test_a_model_that_fits_nowhere_is_refused_with_its_largest_part(settings, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1, 600_000_001))
    config = settings(offload=True, precision="bf16", sample_batch_size=2)
    with pytest.raises(InputError, match=r"use a smaller model, a smaller --height and --width"):
        check_plan(plan_memory(config, GPU), config, GPU)
    monkeypatch.setattr(module, "_less", lambda *_: iter(()))
    plan = Plan((Phase("update", {"samples": 5 * 10**9, "denoiser": 2 * 10**9}),), 6 * 10**9, ())
    with pytest.raises(InputError, match="use fewer --samples-per-round, a smaller model"):
        check_plan(plan, config, GPU)


@TRANSFORMER
def test_a_plan_that_fits_says_nothing(settings):
    plan = Plan((Phase("draw", {"denoiser": 5}), Phase("update", {"denoiser": 7})), 7, ())
    assert (plan.peak.name, plan.fits) == ("update", True)
    check_plan(plan, settings(), CPU)


# ------------------------------------------------------------------------------- the commands


@pytest.mark.parametrize("command", ["train-rl", "train-sft"])
def test_the_plan_is_a_table_and_needs_no_weights(dpok, family_folder, tmp_path, command):
    folder = shutil.copytree(family_folder("sd35"), tmp_path / "model")
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    result = dpok(command, "--prompt=cat", "--model=model", "--device=cpu", "--plan")
    assert (result.code, result.err) == (0, "")
    header, *rows = result.out.splitlines()
    assert header.split()[-2:] == ["batch", "total"]
    assert [row.split("  ")[0] for row in rows] == [
        "encode the prompts",
        "draw",
        "decode",
        "score",
        "update",
    ]
    assert all(float(row.split()[-1]) > 0.1 for row in rows)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model"]


def test_a_hub_id_whose_configuration_is_unknown_is_refused(dpok, tmp_path):
    result = dpok("train-rl", "--prompt=cat", "--model=nobody/nothing", "--plan")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("Error: Cannot load the model nobody/nothing: ")
    assert len(result.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_large_model_is_planned_before_a_run(dpok, family_folder, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "LARGE", 1)
    given = f"--prompt=cat --device=cpu --model={family_folder('sd15')} --rounds=1 --tracker="
    small = "--samples-per-round=2 --batch-size=2 --num-inference-steps=2 --evaluation-samples=0"
    result = dpok("train-rl", *given.split(), *small.split(), "--reward=jpeg-compressibility")
    assert result.code == 0, result.err
    assert " GB to draw; --plan shows all phases." in result.err
    monkeypatch.setattr(module, "LARGE", 10**12)
    result = dpok("train-rl", *given.split(), *small.split(), "--reward=jpeg-compressibility")
    assert "Memory:" not in result.err


def test_a_run_that_cannot_fit_is_refused_before_anything_is_made(
    dpok, family_folder, monkeypatch, tmp_path
):
    monkeypatch.setattr(module, "LARGE", 1)
    monkeypatch.setattr(module.psutil, "virtual_memory", lambda: type("M", (), {"total": 1}))
    given = f"--prompt=cat --device=cpu --model={family_folder('sd15')} --rounds=1"
    # Nothing is left that would help.
    least = "--gradient-checkpointing --batch-size=1 --sample-batch-size=1 --precision=bf16"
    result = dpok("train-rl", *given.split(), *least.split(), "--reward=jpeg-compressibility")
    assert result.code == 2
    assert result.err.splitlines()[-1].startswith("Error: The training needs ")
    assert list(tmp_path.iterdir()) == []

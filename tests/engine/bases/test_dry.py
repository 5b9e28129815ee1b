"""A dry run keeps in memory what the run itself keeps, and computes nothing."""

import pytest
import torch
from torch import nn

from dpok_cli.engine.bases.conditioning import Conditioning, Text
from dpok_cli.engine.bases.dry import Live, size_of, without_values
from dpok_cli.engine.bases.model import DiffusionModel
from support.families import FAMILIES, make

FLOAT = 4


def test_what_lives_at_once():
    with Live() as live:
        one = torch.zeros(10)
        two = one + 1
        del one
        three = two * 2
        view = three.view(2, 5)
    assert (live.now, live.peak) == (20 * FLOAT, 20 * FLOAT)
    del two, three
    assert live.now == 10 * FLOAT  # the view keeps it
    del view
    assert live.now == 0


def test_weights_are_not_counted():
    network = nn.Linear(3, 3)
    with Live(network) as live:
        turned = network.weight.t()
        network(torch.zeros(1, 3))
    assert turned.shape == (3, 3)
    assert live.peak == 2 * 3 * FLOAT  # what goes in and what comes out


def test_a_convolution_on_the_cpu_has_its_tensors_twice():
    network = nn.Conv2d(2, 3, 1, bias=False)
    sizes = [FLOAT * size for size in (5 * 2 * 4 * 4, 3 * 2, 5 * 3 * 4 * 4)]  # in, weight, out
    peaks = []
    for reorders in (False, True):
        image = torch.zeros(5, 2, 4, 4)
        with Live(network, reorders=reorders) as live, torch.no_grad():
            network(image)
        peaks.append(live.peak)
    assert peaks == [sizes[2], sizes[2] + sum(sizes)]


def test_what_a_backward_pass_needs_is_kept():
    network = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 1))
    with Live(network) as live:
        loss = network(torch.zeros(5, 4)).sum()
    assert live.now == FLOAT * (5 * 4 + 5 * 8 + 1)  # two inputs of layers with weights, the loss
    del loss
    assert live.now == 0


def test_the_size_of_a_network():
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)).half()
    assert size_of(network) == 2 * (4 * 8 + 8 + 4 * 8) + 8  # the last is a counter, of 8 bytes


@pytest.mark.parametrize(
    ("family", "checkpointing"),
    # Checkpointing is torch's in all networks: it is tried with a UNet and with a transformer.
    [*((family, False) for family in FAMILIES), ("sd15", True), ("flux", True)],
)
def test_a_dry_run_keeps_what_the_run_keeps(family, checkpointing):
    """A step of each family with its gradients, and decoding."""

    def measured(pipeline, dry):
        if dry:
            for part in (pipeline.components[name] for name in ("vae", denoiser(pipeline))):
                part.to("meta")
        model = DiffusionModel(pipeline)
        model.adapter.add(2, 0, (), 0)
        if checkpointing:
            model.base.network.enable_gradient_checkpointing()
        # Of one length: without values nobody knows where a mask ends.
        encoded = model.encode(["cat", "dog"], "" if family == "flux" else "fox")
        networks = model.base.network, pipeline.vae
        mode = without_values(*networks) if dry else torch.enable_grad()
        with mode:
            latents = torch.zeros(2, *model.latent_shape)
            texts = Conditioning(zeros(encoded.prompts), zeros(encoded.negative))
            with Live(*networks) as live:
                output = model.denoiser(latents, torch.tensor([500, 500]), texts, 3.0)
                kept = live.now
                output.mean().backward()
            with Live(*networks) as decoding:
                model.decode(latents)
        return kept, live.peak, decoding.peak

    real, dry = measured(make(family), dry=False), measured(make(family), dry=True)
    assert min(real) > 1000
    if family == "qwen":  # the table of its rotary embedding, a constant that is no weight
        table = 4096 * 8 * 2 * FLOAT
        dry = (dry[0] + table, dry[1] + table, dry[2])
    assert real == pytest.approx(dry, rel=0.01)


def zeros(text):
    pooled = None if text.pooled is None else torch.zeros(text.pooled.shape)
    mask = None if text.mask is None else torch.ones(text.mask.shape, dtype=torch.bool)
    return Text(torch.zeros(text.embeds.shape), pooled, mask)


def denoiser(pipeline):
    return "unet" if hasattr(pipeline, "unet") else "transformer"

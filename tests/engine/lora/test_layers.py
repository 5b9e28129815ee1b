"""The linear LoRA layer against peft's own."""

import contextlib

import pytest
import torch
from peft.tuners.lora import Linear as PeftLinear

from dpok_cli.engine.lora.layers import Linear, lora_layers


@pytest.mark.parametrize("half", [False, True], ids=["float32", "autocast"])
def test_output_and_gradients_are_those_of_peft(model, make_config, shake, half):
    model.adapter.start(make_config(lora_rank=4, lora_alpha=6.0))
    shake(model)
    network = model.base.network
    layers = lora_layers(network).values()
    assert {type(layer) for layer in layers} == {Linear}
    latents = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    length, width, _ = model.base.text_shape
    texts = torch.linspace(-1, 1, 2 * length * width).view(2, length, width)

    def run():
        context = torch.autocast("cpu", torch.bfloat16) if half else contextlib.nullcontext()
        with context:
            output = network(latents, torch.tensor([3, 700]), texts).sample
        output.float().square().mean().backward()
        gradients = torch.cat([weight.grad.flatten() for weight in model.adapter.parameters()])
        network.zero_grad()
        return output.detach().float(), gradients

    ours = run()
    with model.reference():
        assert not torch.allclose(network(latents, torch.tensor([3, 700]), texts).sample, ours[0])
    for layer in layers:
        layer.__class__ = PeftLinear
    for mine, theirs in zip(ours, run(), strict=True):
        limit = (0.05 if half else 1e-5) * theirs.abs().max()
        assert (mine - theirs).abs().max() <= limit


def test_the_reference_is_the_base_wherever_the_layers_are_from(model, make_config, shake):
    """Also where another training put its layers in place of the first one's."""
    latents = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    length, width, _ = model.base.text_shape
    texts = torch.linspace(-1, 1, 2 * length * width).view(2, length, width)

    @torch.no_grad()
    def predict():
        return model.base.network(latents, torch.tensor([3, 700]), texts).sample

    base = predict()
    for targets in (("to_q",), ("conv1", "to_k")):  # linear ones, and convolutions too
        model.adapter.start(make_config(lora_targets=targets))
        shake(model)
        assert not torch.equal(predict(), base)
        with model.reference():
            assert torch.equal(predict(), base)
        assert not torch.equal(predict(), base)
    model.adapter.remove()
    assert torch.equal(predict(), base)

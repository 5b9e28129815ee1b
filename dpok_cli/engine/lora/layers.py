"""The LoRA layers of a network: put in with given weights, read, and taken out."""

from collections.abc import Iterable
from typing import Any

import torch
from diffusers.utils import recurse_remove_peft_layers
from peft import LoraConfig
from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from dpok_cli.engine.lora.weights import TEXT_MODEL, Layer, Part, peft_config
from dpok_cli.errors import InputError

#: What peft calls the only adapter of a network.
NAME = "default"

ADVICE = "Give --model the model that it was trained on."


class Linear(PeftLinear):
    """peft's layer, with the LoRA added to the layer's output in one pass in place of three."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        down, up = self.lora_A[NAME].weight, self.lora_B[NAME].weight
        same = x.dtype == down.dtype or torch.is_autocast_enabled(x.device.type)
        if self.disable_adapters or self.merged or args or kwargs or not same:
            return super().forward(x, *args, **kwargs)
        output, inner = self.base_layer(x), nn.functional.linear(x, down)
        flat = output.flatten(0, -2), inner.flatten(0, -2)
        return torch.addmm(*flat, up.T, alpha=self.scaling[NAME]).view_as(output)


def use_fast_layers(network: nn.Module) -> None:
    """Turn the linear LoRA layers of a network into `Linear`."""
    for layer in lora_layers(network).values():
        if type(layer) is PeftLinear and isinstance(layer.base_layer, nn.Linear):
            layer.__class__ = Linear


def lora_layers(network: Any) -> dict[str, BaseTunerLayer]:
    """Return the LoRA layers of a network by their names."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, BaseTunerLayer)
    }


def attach(network: Any, part: Part, dtype: torch.dtype | None = None) -> None:
    """Add LoRA layers with these weights, of ``dtype``, by default the network's.

    The network has the `add_adapter` of diffusers' and transformers' models; it stays frozen.
    """
    own = {_own_name(network, layer): weights for layer, weights in part.items()}
    config = LoraConfig(**peft_config(part) | {"target_modules": "|".join(map(_exactly, own))})
    with torch.random.fork_rng():
        network.add_adapter(config, adapter_name=NAME)
    use_fast_layers(network)
    layers = lora_layers(network)
    assert layers.keys() == own.keys()
    dtype = dtype or network.dtype  # which diffusers finds by a walk through all modules
    for layer, weights in own.items():
        for half, weight in (("lora_A", weights.down), ("lora_B", weights.up)):
            parameter = getattr(layers[layer], half)[NAME].weight
            parameter.data = weight.to(parameter.device, dtype).contiguous()
    network.requires_grad_(False)


def detach(network: Any) -> None:
    """Remove the LoRA layers of a network, if it has any."""
    if lora_layers(network):
        recurse_remove_peft_layers(network)
        del network.peft_config
        network._hf_peft_config_loaded = False


def switch(layers: Iterable[BaseTunerLayer], on: bool) -> None:
    """Switch LoRA layers on or off.

    diffusers looks for them in the whole network, and peft sets whether each weight has a gradient:
    10 ms for the bundled UNet, which is switched twice in every step of a reference pass.
    """
    for layer in layers:
        layer._disable_adapters = not on


def weights_of(network: Any) -> Part:
    """Return the weights of a network's LoRA layers as they are now."""
    part: Part = {}
    for layer, module in lora_layers(network).items():
        halves: Any = (getattr(module, half) for half in ("lora_A", "lora_B"))
        down, up = (half[NAME].weight.detach().cpu() for half in halves)
        alpha: Any = module.lora_alpha
        part[_file_name(network, layer)] = Layer(down, up, alpha[NAME])
    return part


def check_fit(network: Any, name: str, part: Part, source: str) -> None:
    """Raise InputError unless all layers of a part are layers of the network.

    ``name`` is the network's, and ``source`` names the adapter.
    """
    modules = dict(network.named_modules())
    for layer, lora in part.items():
        module = modules.get(_own_name(network, layer))
        if not isinstance(module, nn.Linear | nn.Conv2d):
            reason = f"it has weights for {name}.{layer}, which the model has not"
        elif not _fits(lora, module.weight):
            reason = f"its weights for {name}.{layer} have other shapes"
        else:
            continue
        raise InputError(f"The adapter {source} does not fit this model: {reason}. {ADVICE}")


def _own_name(network: Any, layer: str) -> str:
    """Return what the network calls a layer of a file."""
    return layer if hasattr(network, "text_model") else layer.removeprefix(TEXT_MODEL)


def _file_name(network: Any, layer: str) -> str:
    """Return what files call a layer of the network: the inverse of `_own_name`."""
    flat = layer.startswith("encoder.layers.") and not hasattr(network, "text_model")
    return TEXT_MODEL + layer if flat else layer


def _exactly(name: str) -> str:
    return name.replace(".", r"\.")


def _fits(lora: Layer, weight: Tensor) -> bool:
    """Return whether a LoRA's matrices are of a layer with this weight."""
    down, up = lora.down.shape, lora.up.shape
    return down[1:] == weight.shape[1:] and up == (
        len(weight),
        lora.rank,
        *(1 for _ in weight.shape[2:]),
    )

"""The LoRA adapter of a model; what training changes is the denoiser's part of it, nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import recurse_remove_peft_layers, set_adapter_layers
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from dpok_cli.config import TrainingConfig
from dpok_cli.engine.lora.export import write_diffusers
from dpok_cli.engine.lora.files import ADAPTER_FILE, read_adapter
from dpok_cli.engine.lora.weights import (
    TEXT_MODEL,
    Layer,
    Lora,
    Part,
    peft_config,
    rank_and_alpha,
    targets,
)
from dpok_cli.engine.runs.folder import RunFolder
from dpok_cli.errors import InputError

NAME = "default"


class Adapter:
    """The LoRA weights in a model, none at first (Hu et al. 2021, arXiv 2106.09685)."""

    def __init__(self, denoiser: str, networks: Mapping[str, Any], targets: Sequence[str]):
        """``networks`` may get LoRA layers, by diffusers' names; ``denoiser`` is the trained one's.

        All of them have the `add_adapter` of diffusers' and transformers' models. ``targets`` are
        the denoiser's layers that get a LoRA unless others are named.
        """
        self.denoiser, self.networks, self.targets = denoiser, dict(networks), tuple(targets)
        #: Whether the adapter is switched on.
        self.enabled = True

    @property
    def network(self) -> Any:
        """The denoiser."""
        return self.networks[self.denoiser]

    def __bool__(self) -> bool:
        """Whether the model has an adapter."""
        return any(_layers(network) for network in self.networks.values())

    @property
    def changes_text(self) -> bool:
        """Whether it changes the embeddings of prompts."""
        return any(_layers(each) for name, each in self.networks.items() if name != self.denoiser)

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return the weights that are trained, by their names in the denoiser."""
        named = self.network.named_parameters()
        return [(name, parameter) for name, parameter in named if ".lora_" in name]

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for _, parameter in self.named_parameters()]

    def start(self, config: TrainingConfig, run: RunFolder | None = None) -> None:
        """Put in place what a training starts from: fresh LoRA layers, or those of `init_adapter`.

        An adapter that the model has is removed. A ``run`` that has checkpoints has its own copy of
        `init_adapter`. Raises InputError if no layer fits `lora_targets`, or if the adapter does
        not fit.
        """
        self.remove()
        file = Path(config.init_adapter) if config.init_adapter else None
        if run and run.has_checkpoints():
            file = run.initial_adapter if run.initial_adapter.exists() else None
        lora = read_adapter(file, "--init-adapter") if file else {}
        if part := lora.get(self.denoiser):
            check_settings(part, config, str(file))
        else:
            self.add(config.lora_rank, config.lora_alpha, config.lora_targets, config.seed)
        self.install(lora, str(file), torch.float32)

    def add(self, rank: int, alpha: float, targets: Sequence[str], seed: int) -> None:
        """Add LoRA layers, in float32, that change nothing yet; ``alpha`` 0 means ``rank``.

        No ``targets`` are the family's. Raises InputError if no layer of the denoiser has the name
        of one of them.
        """
        targets = targets or self.targets
        layers = [name for name, _ in self.network.named_modules()]
        for target in targets:  # peft takes the names that exist and ignores the rest
            if not any(f".{layer}".endswith(f".{target}") for layer in layers):
                raise InputError(f"--lora-targets {target!r}: the denoiser has no such layer.")
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha or rank,
            target_modules=list(targets),
            init_lora_weights="gaussian",
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.network.add_adapter(config, adapter_name=NAME)
        for parameter in self.parameters():
            parameter.data = parameter.data.float()  # optimizers need them in float32

    def remove(self) -> None:
        """Remove the adapter, if there is one: the model is the base again."""
        for network in self.networks.values():
            if _layers(network):
                recurse_remove_peft_layers(network)
                del network.peft_config
                network._hf_peft_config_loaded = False

    def install(self, lora: Lora, source: str, dtype: torch.dtype | None = None) -> None:
        """Add LoRA layers with these weights; ``dtype`` is the denoiser's, by default its own.

        Raises InputError, which names the ``source``, if they are not all of layers of this model.
        """
        for name, part in lora.items():
            self._check_fit(name, part, source)
        for name, part in lora.items():
            network = self.networks[name]
            own = {_own_name(network, layer): weights for layer, weights in part.items()}
            config = LoraConfig(
                **peft_config(part) | {"target_modules": "|".join(map(_exactly, own))}
            )
            with torch.random.fork_rng():
                network.add_adapter(config, adapter_name=NAME)
            wanted = dtype if dtype and name == self.denoiser else network.dtype
            layers = _layers(network)
            assert layers.keys() == own.keys()
            for layer, weights in own.items():
                for half, weight in (("lora_A", weights.down), ("lora_B", weights.up)):
                    parameter = getattr(layers[layer], half)[NAME].weight
                    parameter.data = weight.to(parameter.device, wanted).contiguous()
            network.requires_grad_(False)
        for parameter in self.parameters():
            parameter.requires_grad_(True)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Switch the adapter off: within the block the model is the reference model."""
        before = self.enabled
        self._switch(False)
        try:
            yield
        finally:
            self._switch(before)

    def weights(self) -> Lora:
        """Return the adapter's weights as they are now."""
        lora: Lora = {}
        for name, network in self.networks.items():
            for layer, module in _layers(network).items():
                weights = (getattr(module, half)[NAME].weight for half in ("lora_A", "lora_B"))
                down, up = (weight.detach().cpu() for weight in weights)
                known = lora.setdefault(name, {})
                known[_file_name(network, layer)] = Layer(down, up, module.lora_alpha[NAME])
        return lora

    def save(self, folder: Path) -> None:
        """Write the adapter as diffusers' ``load_lora_weights`` takes it."""
        folder.mkdir(parents=True, exist_ok=True)
        write_diffusers(self.weights(), folder / ADAPTER_FILE)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.named_parameters())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load weights; raises InputError for those of other layers or another rank."""
        own = dict(self.named_parameters())
        if own.keys() != state.keys() or any(own[k].shape != state[k].shape for k in own):
            raise InputError(
                "The checkpoint's adapter differs from config.toml's: give model and"
                " lora_rank there the values that the run was started with."
            )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])

    def _switch(self, on: bool) -> None:
        for name, network in self.networks.items():
            set_adapter_layers(network, enabled=on)  # which unfreezes what it switches on
            if name != self.denoiser:
                network.requires_grad_(False)
        self.enabled = on

    def _check_fit(self, name: str, part: Part, source: str) -> None:
        """Raise InputError unless all layers of a part are layers of its network."""
        advice = "Give --model the model that it was trained on."
        if name not in self.networks:
            raise InputError(
                f"The adapter {source} does not fit this model, which has no {name}. {advice}"
            )
        network = self.networks[name]
        modules = dict(network.named_modules())
        for layer, weights in part.items():
            module = modules.get(_own_name(network, layer))
            if not isinstance(module, nn.Linear | nn.Conv2d):
                reason = f"it has weights for {name}.{layer}, which the model has not"
            elif not _fits(weights, module.weight):
                reason = f"its weights for {name}.{layer} have other shapes"
            else:
                continue
            raise InputError(f"The adapter {source} does not fit this model: {reason}. {advice}")


def check_settings(part: Part, config: TrainingConfig, source: str) -> None:
    """Raise InputError, which names the flag to give, unless the config describes a file's part.

    Without `lora_targets` any layers will do.
    """
    rank, alpha = rank_and_alpha(part)
    if rank != config.lora_rank:
        raise InputError(
            f"The adapter {source} is of rank {rank}, and lora_rank is {config.lora_rank}: give"
            f" --lora-rank {rank}."
        )
    if alpha != (config.lora_alpha or config.lora_rank):
        raise InputError(f"The adapter {source} has another scale: give --lora-alpha {alpha:g}.")

    def matches(layer: str, target: str) -> bool:
        return f".{layer}".endswith(f".{target}")

    wanted = config.lora_targets
    if wanted and not (
        all(any(matches(layer, target) for target in wanted) for layer in part)
        and all(any(matches(layer, target) for layer in part) for target in wanted)
    ):
        found = targets(part)
        flags = " ".join(f"--lora-targets {target}" for target in found)
        raise InputError(
            f"The adapter {source} is on the layers {', '.join(found)}, not on"
            f" {', '.join(sorted(wanted))}: give {flags}."
        )


def _layers(network: Any) -> dict[str, BaseTunerLayer]:
    """Return the LoRA layers of a network by their names."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, BaseTunerLayer)
    }


def _own_name(network: Any, layer: str) -> str:
    """Return what the network calls a layer of a file."""
    return layer if hasattr(network, "text_model") else layer.removeprefix(TEXT_MODEL)


def _file_name(network: Any, layer: str) -> str:
    """Return what files call a layer of the network: the inverse of `_own_name`."""
    flat = layer.startswith("encoder.layers.") and not hasattr(network, "text_model")
    return TEXT_MODEL + layer if flat else layer


def _exactly(name: str) -> str:
    return name.replace(".", r"\.")


def _fits(weights: Layer, weight: Tensor) -> bool:
    """Return whether a LoRA's matrices are of a layer with this weight."""
    down, up = weights.down.shape, weights.up.shape
    return down[1:] == weight.shape[1:] and up == (
        len(weight),
        weights.rank,
        *(1 for _ in weight.shape[2:]),
    )

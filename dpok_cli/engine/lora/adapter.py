"""The LoRA adapter of a model; what training changes is the denoiser's part of it, nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn

from dpok_cli.config import TrainingConfig
from dpok_cli.engine.lora.export import write_diffusers
from dpok_cli.engine.lora.files import ADAPTER_FILE, read_adapter
from dpok_cli.engine.lora.layers import (
    ADVICE,
    NAME,
    attach,
    check_fit,
    detach,
    lora_layers,
    switch,
    use_fast_layers,
    weights_of,
)
from dpok_cli.engine.lora.weights import Lora, Part, rank_and_alpha, targets
from dpok_cli.engine.runs.folder import RunFolder
from dpok_cli.errors import InputError


class Adapter:
    """The LoRA weights in a model, none at first (Hu et al. 2021, arXiv 2106.09685)."""

    def __init__(
        self, denoiser: str, network: Any, targets: Sequence[str], encoders: Sequence[str] = ()
    ):
        """``network`` is the denoiser, and ``denoiser`` its name in the pipeline.

        It has the `add_adapter` of diffusers' models. ``targets`` are the layers that get a LoRA
        unless others are named; ``encoders`` are the pipeline's names of its text encoders.
        """
        self.denoiser, self.network, self.targets = denoiser, network, tuple(targets)
        self.encoders = tuple(encoders)
        #: Whether the adapter is switched on.
        self.enabled = True
        #: Kept, since a search through a large network takes milliseconds.
        self._layers = lora_layers(network)
        #: The parts of text encoders, which are never trained; put there while they encode.
        self.text: Lora = {}
        #: The file or folder that they are from, for messages.
        self.source = ""

    def __bool__(self) -> bool:
        """Whether the model has an adapter."""
        return bool(self._layers or self.text)

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
        use_fast_layers(self.network)
        self._layers = lora_layers(self.network)
        for parameter in self.parameters():
            parameter.data = parameter.data.float()  # optimizers need them in float32

    def remove(self) -> None:
        """Remove the adapter, if there is one: the model is the base again."""
        detach(self.network)
        self._layers = {}
        self.text, self.source = {}, ""

    def install(self, lora: Lora, source: str, dtype: torch.dtype | None = None) -> None:
        """Add LoRA layers with these weights; ``dtype`` is the denoiser's, by default its own.

        Raises InputError, which names the ``source``, if they are not all of layers of this model.
        Those of text encoders are looked at when a prompt is encoded.
        """
        for name in lora.keys() - {self.denoiser, *self.encoders}:
            raise InputError(
                f"The adapter {source} does not fit this model, which has no {name}. {ADVICE}"
            )
        if part := lora.get(self.denoiser):
            check_fit(self.network, self.denoiser, part, source)
            attach(self.network, part, dtype)
            self._layers = lora_layers(self.network)
        if text := {name: part for name, part in lora.items() if name != self.denoiser}:
            self.text, self.source = self.text | text, source
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
        trained = weights_of(self.network)
        return ({self.denoiser: trained} if trained else {}) | self.text

    def save(self, folder: Path) -> None:
        """Write the adapter as diffusers' ``load_lora_weights`` takes it."""
        folder.mkdir(parents=True, exist_ok=True)
        write_diffusers(self.weights(), folder / ADAPTER_FILE)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.named_parameters())

    def copy(self) -> dict[str, Tensor]:
        """Return the weights as they are now, for `load_state_dict`."""
        return {name: weights.detach().clone() for name, weights in self.state_dict().items()}

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
        switch(self._layers.values(), on)
        self.enabled = on


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

"""The LoRA adapter of a network: the only weights that training changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from dpok_cli.config import TrainingConfig
from dpok_cli.engine.lora.files import ADAPTER_FILE, read_adapter, with_sorted_header
from dpok_cli.engine.runs.files import replacing
from dpok_cli.errors import InputError

NAME = "default"


class Adapter:
    """The LoRA weights in a network, none at first (Hu et al. 2021, arXiv 2106.09685)."""

    def __init__(self, network: Any):
        """``network`` is a diffusers model with peft's mixin, a UNet for instance."""
        self.network = network

    def __bool__(self) -> bool:
        """Whether the network has an adapter."""
        return bool(self.named_parameters())

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return the adapter's weights by their names in the network."""
        named = self.network.named_parameters()
        return [(name, parameter) for name, parameter in named if ".lora_" in name]

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for _, parameter in self.named_parameters()]

    def start(self, config: TrainingConfig, with_init_adapter: bool = True) -> None:
        """Add what a training starts from: fresh LoRA layers, or the weights of `init_adapter`.

        Raises InputError if no layer fits `lora_targets`, or if the weights do not fit.
        """
        self.add(config.lora_rank, config.lora_alpha, config.lora_targets, config.seed)
        if config.init_adapter and with_init_adapter:
            own = {
                f"unet.{name.replace(f'.{NAME}.', '.')}": parameter
                for name, parameter in self.named_parameters()
            }
            weights = read_adapter(Path(config.init_adapter), config, own)
            for name, parameter in own.items():
                parameter.data.copy_(weights[name])

    def add(self, rank: int, alpha: float, targets: Sequence[str], seed: int) -> None:
        """Add LoRA layers, in float32, that change nothing yet; ``alpha`` 0 means ``rank``.

        Raises InputError if no layer of the network has the name of one of ``targets``.
        """
        layers = [name for name, _ in self.network.named_modules()]
        for target in targets:  # peft takes the names that exist and ignores the rest
            if not any(f".{layer}".endswith(f".{target}") for layer in layers):
                raise InputError(f"--lora-targets {target!r}: the UNet has no such layer.")
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

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Switch the adapter off: within the block the network is the reference model."""
        self.network.disable_adapters()
        try:
            yield
        finally:
            self.network.enable_adapters()

    def save(self, folder: Path) -> None:
        """Write the adapter as diffusers' ``load_lora_weights`` takes it."""
        weights = convert_state_dict_to_diffusers(
            get_peft_model_state_dict(self.network, adapter_name=NAME)
        )
        config = self.network.peft_config[NAME].to_dict()
        metadata = {
            key: sorted(value) if isinstance(value, set) else value
            for key, value in config.items()
            if key in ("r", "lora_alpha", "target_modules")
        }
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / ADAPTER_FILE) as temporary:
            StableDiffusionPipeline.save_lora_weights(
                folder,
                unet_lora_layers=weights,
                weight_name=temporary.name,
                unet_lora_adapter_metadata=metadata,
            )
            temporary.write_bytes(with_sorted_header(temporary.read_bytes()))

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

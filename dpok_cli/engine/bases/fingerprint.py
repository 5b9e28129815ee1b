"""The fingerprint of a base model: where it lies may change, what it computes may not."""

import hashlib

from dpok_cli.engine.bases.encoders import add_weights
from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.errors import InputError


def fingerprint(model: DiffusionModel) -> str:
    """Return the SHA-256 of all that the reference model's images depend on."""
    noise = [each for each in model.base.scheduler.config.items() if not each[0].startswith("_")]
    digest = hashlib.sha256(repr(sorted(noise)).encode())
    for network in (model.base.network, model.pipeline.vae):
        add_weights(digest, network)
    digest.update(model.encoders.fingerprint().encode())
    return digest.hexdigest()


def adapter_fingerprint(model: DiffusionModel) -> str:
    """Return the SHA-256 of the weights of a model's adapter, "" if it has none."""
    digest, lora = hashlib.sha256(), model.adapter.weights()
    for network, part in sorted(lora.items()):
        for name, layer in sorted(part.items()):
            digest.update(f"{network}.{name} {layer.alpha:g}".encode())
            for weight in (layer.down, layer.up):
                digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest() if lora else ""


class SameModel:
    """The part of a checkpoint that says which base model the run is of."""

    def __init__(self, model: DiffusionModel, name: str):
        """``name`` is the model as the user gave it."""
        self.fingerprint, self.name = fingerprint(model), name

    def state_dict(self) -> str:
        return self.fingerprint

    def load_state_dict(self, state: str) -> None:
        """Raise InputError if the checkpoint is of a model with other weights."""
        if state != self.fingerprint:
            raise InputError(
                f"The run was trained on another model than {self.name}, or its weights or"
                " scheduler have changed since. Give --model the one that it was trained on."
            )

"""An adapter that matters, and a way to tell models apart."""

import pytest
import torch


@pytest.fixture
def predict():
    """One UNet output for fixed latents, to tell models apart."""

    def predict(model):
        latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        embeds = model.encode(["a green rabbit", "two cats"])
        with torch.no_grad():
            return model.denoiser(latents, torch.tensor([900, 20]), embeds, 1.0)

    return predict


@pytest.fixture
def make_adapter(make_model, shake, tmp_path):
    """Saves an adapter that matters; returns its model and its folder."""

    def make(rank=4, alpha=0.0, targets=("to_q", "to_k", "to_v", "to_out.0"), model=None):
        model = model or make_model()
        model.adapter.add(rank, alpha, targets, seed=0)
        shake(model)
        model.adapter.save(tmp_path / "adapter")
        return model, tmp_path / "adapter"

    return make

"""A merged pipeline draws without an adapter what the model draws with it."""

import pytest
import torch
from diffusers import StableDiffusionPipeline

from dpok_cli.engine.bases.merge import write_merged
from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.engine.lora.weights import Layer
from support.pipelines import SD15_BLOCKS

TARGETS = ["to_q", "to_v", "proj_in", "ff.net.2", "conv1"]


def images(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        "a green rabbit",
        num_inference_steps=3,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images


@pytest.mark.parametrize("structure", [{}, SD15_BLOCKS], ids=["very small", "SD v1.5"])
@pytest.mark.parametrize("text", [False, True])
def test_it_draws_the_same_images(build, shake, tmp_path, structure, text):
    model = DiffusionModel(build(**structure))
    model.adapter.add(3, 5.0, TARGETS, seed=0)
    shake(model)
    if text:
        layer = Layer(torch.full((1, 16), 0.3), torch.full((16, 1), 0.3), 2.0)
        name = "text_model.encoder.layers.0.self_attn.q_proj"
        model.adapter.install({"text_encoder": {name: layer}}, "it")
    before, ours = images(build(**structure)), images(model.pipeline)
    write_merged(model, tmp_path / "merged")
    merged = StableDiffusionPipeline.from_pretrained(tmp_path / "merged", safety_checker=None)
    for part, other in ((merged.unet, model.pipeline.unet), (merged.vae, model.pipeline.vae)):
        assert part.state_dict().keys() == other.state_dict().keys()
    assert not any("lora" in name for name, _ in merged.unet.named_parameters())
    assert (images(merged) - ours).abs().max() <= 1 / 255
    assert (ours - before).abs().max() > 0.02
    assert not model.adapter


def test_a_merge_leaves_no_half_made_folder(build, tmp_path, monkeypatch):
    model = DiffusionModel(build())
    model.adapter.add(3, 5.0, TARGETS, seed=0)

    def full(self, folder, **_):
        folder.mkdir()
        (folder / "model_index.json").write_text("{}")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(StableDiffusionPipeline, "save_pretrained", full)
    with pytest.raises(OSError, match="No space"):
        write_merged(model, tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []

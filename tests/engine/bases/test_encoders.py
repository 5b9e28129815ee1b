"""Prompts are encoded once, and the text encoders are in memory just for that."""

import pytest
import torch

from dpok_cli.config import SampleConfig, TrainSFTConfig
from dpok_cli.engine.bases import encoders as module
from dpok_cli.engine.bases.fingerprint import fingerprint
from dpok_cli.engine.bases.load import load
from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.engine.bases.parts import PipelineFiles
from dpok_cli.errors import InputError
from support.families import FAMILIES, make


@pytest.fixture
def read(monkeypatch):
    """What is read from a model's files, in order."""
    seen = []
    for part in ("pipeline", "encoders", "denoiser"):
        method = getattr(PipelineFiles, part)

        def spy(self, part=part, method=method):
            seen.append(part)
            return method(self)

        monkeypatch.setattr(PipelineFiles, part, spy)
    return seen


@pytest.fixture(params=FAMILIES)
def config(request, family_folder):
    return SampleConfig(
        model=str(family_folder(request.param)), prompts=("cat", "dog"), height=16, width=16
    )


def test_the_encoders_are_gone_before_the_denoiser_comes(config, read):
    model = load(config)
    assert read == ["pipeline", "encoders", "denoiser"]
    assert model.base.encoders() == {}
    model.encode(["dog", "cat", "dog"])
    assert read == ["pipeline", "encoders", "denoiser"]
    model.encode(["cat"], "")
    model.encode(["bird"])
    assert read == ["pipeline", "encoders", "denoiser", "encoders"]
    assert model.base.encoders() == {}


def test_embeddings_do_not_depend_on_when_they_were_made(config):
    model = load(config)
    texts = model.encode(["dog", "bird", "dog"]).prompts
    whole = DiffusionModel(make_like(config)).encode(["dog", "bird"]).prompts
    assert len(texts) == 3
    for row, other in ((0, 0), (1, 1), (2, 0)):
        ours, expected = (each.trimmed().embeds for each in (texts[[row]], whole[[other]]))
        torch.testing.assert_close(ours, expected)
    assert not torch.equal(texts.embeds[0], texts.embeds[1])


def make_like(config):
    (family,) = (name for name in FAMILIES if name in config.model)
    return make(family)


def test_many_prompts_are_encoded_in_batches(monkeypatch):
    model = DiffusionModel(make("sd15"))
    sizes = []
    encode = model.base.encode
    monkeypatch.setattr(module, "BATCH", 3)
    monkeypatch.setattr(
        model.base, "encode", lambda texts, negative: sizes.append(len(texts)) or encode(texts, "")
    )
    prompts = [f"cat {number}" for number in range(7)]
    texts = model.encode([*prompts, "cat 1"]).prompts
    assert sizes == [3, 3, 1]
    assert len(texts) == 8
    assert torch.equal(texts.embeds[7], texts.embeds[1])
    assert model.encode([], "no cat").prompts.embeds.shape == (0, *texts.embeds.shape[1:])


def test_the_fingerprint_has_the_encoders(config):
    pipeline = make_like(config)
    before = fingerprint(DiffusionModel(pipeline))
    assert fingerprint(load(config)) == before == fingerprint(DiffusionModel(make_like(config)))
    pipeline.text_encoder.get_input_embeddings().weight.data[0] += 1
    assert fingerprint(DiffusionModel(pipeline)) != before


def test_a_training_reads_the_encoders_once(family_folder, read):
    model = load(TrainSFTConfig(model=str(family_folder("sd15")), prompts=("cat",)))
    fingerprint(model)
    assert read == ["pipeline", "encoders", "denoiser"]


def test_a_part_of_an_encoder_that_is_not_there_is_refused(text_part):
    model = DiffusionModel(make("sd35"))
    model.pipeline.text_encoder_3 = None
    model.adapter.install({"text_encoder_3": text_part}, "mine.safetensors")
    with pytest.raises(InputError, match=r"mine.safetensors does not fit .* no text_encoder_3\."):
        model.encode(["cat"])


def test_a_part_of_another_encoder_is_refused(text_part):
    model = DiffusionModel(make("sd15"))
    model.adapter.install({"text_encoder": text_part}, "mine.safetensors")
    with pytest.raises(InputError, match=r"mine.safetensors does not fit .*to_nowhere"):
        model.encode(["cat"])
    assert not any(".lora_" in name for name, _ in model.pipeline.text_encoder.named_parameters())


@pytest.fixture
def text_part():
    from dpok_cli.engine.lora.weights import Layer

    return {"encoder.layers.0.to_nowhere": Layer(torch.zeros(2, 16), torch.zeros(16, 2), 2.0)}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_embedding_is_in_memory_once(family, family_folder):
    """Those of a batch lie together, without padding, and no conditioning copies them."""
    model = DiffusionModel(make(family))
    prompts = ["a cat", "a green rabbit beside two cats on the moon", "a cat"]
    first, again = (model.encode(prompts) for _ in range(2))
    texts = model.encoders._plain[0]
    assert list(texts) == prompts[:2]
    blocks = {one.embeds.untyped_storage() for one in texts.values()}
    assert len({block.data_ptr() for block in blocks}) == 1  # of the batch that was encoded
    assert blocks.pop().nbytes() == sum(one.embeds.nbytes for one in texts.values())
    assert all(one.embeds.device.type == "cpu" for one in texts.values())
    assert [*first.texts._prompts, *again.texts._prompts] == [texts[text] for text in prompts] * 2

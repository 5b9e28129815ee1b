"""`dpok push`, to a stand-in for the hub."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from support.hub import serve


@pytest.fixture
def hub(monkeypatch):
    with serve() as (address, hub):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        hub.address = address
        yield hub


@pytest.fixture
def trained(train):
    """A run of the very small pipeline with two sample grids."""
    result = train("train-rl", "--name=run", "--sample-every=1", "--sample-count=2")
    assert result.code == 0, result.err


def test_adapter_card_and_pictures_are_uploaded(dpok, hub, trained, pipeline_folder):
    result = dpok("push", "run", "me/lion", "--private")
    assert result.code == 0, result.err
    assert result.out == f"{hub.address}/me/lion\n"
    assert hub.private == {"me/lion": True}
    assert hub.messages == ["Adapter of the run run"]
    assert hub.tokens == {"Bearer hf_secret"}
    sent = hub.files["me/lion"]
    adapter = "pytorch_lora_weights.safetensors"
    assert set(sent) == {"README.md", adapter, "before.png", "after.png"}
    run = Path("runs/run")
    assert sent[adapter] == (run / "adapter" / adapter).read_bytes()
    assert sent["before.png"] == (run / "samples/round-00000.png").read_bytes()
    assert sent["after.png"] == (run / "samples/round-00002.png").read_bytes()
    card = sent["README.md"].decode()
    assert 'pipe.load_lora_weights("me/lion", weight_name=' in card
    assert "![before](before.png) | ![after](after.png)" in card
    _, head, text = card.split("---\n", 2)
    assert '- text: "a lion"\n  output:\n    url: after.png\n' in head
    assert "base_model" not in head  # a folder of this machine
    assert str(pipeline_folder) not in card
    assert f'model = "{pipeline_folder.name}"' in text


def test_the_base_may_be_named_by_its_id(dpok, hub, trained, pipeline_folder):
    result = dpok("push", "run", "me/lion", "--base-model", "org/base")
    assert result.code == 0, result.err
    card = hub.files["me/lion"]["README.md"].decode()
    assert card.startswith("---\nbase_model: org/base\nlibrary_name: diffusers\n")
    assert 'StableDiffusionPipeline.from_pretrained("org/base")' in card
    assert "Fine-tuned from `org/base` by" in card
    assert 'model = "org/base"' in card
    assert str(pipeline_folder) not in card


def test_a_repository_that_exists_gets_another_commit(dpok, hub, trained):
    hub.private["me/lion"] = False
    hub.files["me/lion"] = {"notes.md": b"mine"}
    assert dpok("push", "run", "me/lion").code == 0
    assert hub.files["me/lion"]["notes.md"] == b"mine"
    refused = dpok("push", "run", "me/lion", "--private")
    assert refused.code == 2
    assert "me/lion exists and is public: leave out --private" in refused.err


def test_what_cannot_be_pushed_is_refused(dpok, hub, trained, monkeypatch):
    for repo in ("lion", "me/my lion", "me/lion/cat"):
        result = dpok("push", "run", repo)
        assert result.code == 2
        assert "is no name on the hub" in result.err
    assert dpok("push", "nothing", "me/lion").code == 2
    hub.forbidden = True
    result = dpok("push", "run", "me/lion")
    assert result.code == 2
    assert "The hub refuses to write to me/lion (403): your token needs write access" in result.err
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "nowhere")
    result = dpok("push", "run", "me/lion")
    assert result.code == 2
    assert "There is no token for the hub: run `hf auth login`, or set HF_TOKEN." in result.err
    assert hub.files == {}


def test_a_hub_that_is_not_there_is_one_line(dpok, hub, trained, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    result = dpok("push", "run", "me/lion")
    assert result.code == 1
    assert result.err.splitlines()[-1].startswith("Error: Cannot upload to http://127.0.0.1:9: ")
    assert result.out == ""

"""Rewards and the VAE that rest on the CPU are on the device just while they are used."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.combined import WeightedReward
from dpok_cli.rewards.offload import networks
from dpok_cli.rewards.worker import RewardWorker
from support.families import make


class Noted(nn.Linear):
    """A network that notes where it is moved, and where it was when it computed."""

    def __init__(self):
        super().__init__(1, 1)
        self.seen = []

    def to(self, device):
        self.seen.append(str(device))
        return self

    def forward(self, images):
        self.seen.append("scores")
        return images.mean(dim=(1, 2, 3))


class Held(RewardModel):
    """Its networks are an attribute, in a list, and in an object of its own."""

    name = "held"

    def load(self):
        self.one = Noted()
        self.more = [Noted()]
        self.other = SimpleNamespace(net={"inner": Noted()})

    def score_batch(self, images, prompts):
        return self.one(images)


IMAGES = torch.full((3, 3, 4, 4), 0.5)


def test_where_networks_are_found():
    reward = Held()
    reward.prepare()
    found = list(networks(reward))
    assert found == [reward.one, *reward.more, reward.other.net["inner"]]
    assert list(networks("text")) == []


@pytest.mark.parametrize("scored_by", ["sum", "worker"])
def test_a_reward_rests_after_loading_and_scoring(scored_by):
    reward = Held(device="meta")
    weighted = WeightedReward([(reward, 1.0)], rest=True)
    weighted.prepare()
    assert reward.one.seen == ["cpu"]
    reward.device = "cpu"
    if scored_by == "sum":
        scores = weighted.score(IMAGES, ["a"] * 3).raw
    else:
        worker = RewardWorker(weighted, "cpu")
        worker.submit(IMAGES, ["a"] * 3)
        scores = worker.results()
        worker.close()
    assert scores[reward.name].tolist() == [0.5] * 3
    for network in networks(reward):
        assert [each for each in network.seen if each != "scores"] == ["cpu"] * 3
    assert reward.one.seen == ["cpu", "cpu", "scores", "cpu"]


def test_without_it_nothing_is_moved_away():
    reward = Held(device="cpu")
    weighted = WeightedReward([(reward, 1.0)])
    for _ in range(2):
        weighted.score(IMAGES, ["a"] * 3)
    assert reward.one.seen == ["scores"] * 2  # nor to the device: where it is, its author knows


@pytest.mark.parametrize("offload", [False, True])
def test_the_vae_is_on_the_device_while_it_is_used(offload, monkeypatch):
    model = DiffusionModel(make("sd15"), offload=offload)
    vae, seen = model.pipeline.vae, []
    monkeypatch.setattr(vae, "to", lambda device: seen.append(str(device)))
    for method in ("decode", "encode"):
        use = getattr(vae, method)
        monkeypatch.setattr(vae, method, lambda given, use=use: seen.append("used") or use(given))
    images = model.decode(torch.zeros(1, *model.latent_shape))
    model.encode_images(images)
    once = ["cpu", "used", "cpu"] if offload else ["used"]
    assert seen == 2 * once

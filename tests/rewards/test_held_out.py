import pytest

from dpok_cli import tiny
from dpok_cli.errors import InputError
from dpok_cli.rewards.held_out import rewards_for, same_reward, unweighted

TINY_IMAGE_REWARD = "image-reward:model=tiny"


def test_on_the_tiny_world_the_bundled_scorers_are_witnesses():
    specs, remarks = rewards_for("tiny", ["a red cat"], [TINY_IMAGE_REWARD])
    assert specs[:2] == [TINY_IMAGE_REWARD, "judge"]
    bundled = [name for name in ("clip", "aesthetic") if tiny.folder(name).is_dir()]
    assert specs[2:] == [f"{name}:model=tiny" for name in bundled]
    assert remarks == []


def test_trained_rewards_come_first_without_their_weight():
    specs, _ = rewards_for("tiny", ["a red cat"], ["jpeg-compressibility=0.1", "judge=2", "judge"])
    assert specs[:3] == ["jpeg-compressibility", "judge", TINY_IMAGE_REWARD]


def test_the_judge_is_left_out_for_other_prompts():
    specs, remarks = rewards_for("tiny", ["a red cat", "justice for all"], [])
    assert "judge" not in specs
    assert TINY_IMAGE_REWARD in specs
    (remark,) = remarks
    assert "The judge is left out: 'justice for all'" in remark


def test_tiny_weights_are_not_used_for_another_model(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    specs, _ = rewards_for("some/model", ["a red cat"], [TINY_IMAGE_REWARD])
    assert specs[0] == TINY_IMAGE_REWARD
    assert "judge" not in specs
    assert not any("jpeg" in spec or "http" in spec for spec in specs)


def test_without_any_weights_it_is_an_error(monkeypatch):
    monkeypatch.setattr("dpok_cli.rewards.held_out._is_available", lambda *_: False)
    with pytest.raises(InputError, match="give --reward"):
        rewards_for("some/model", ["a red cat"], [])


def test_rewards_are_the_same_if_their_options_are_whatever_the_weight():
    assert same_reward("judge", ["image-reward", "judge=0.5:model=tiny"])
    assert not same_reward("image-reward", [TINY_IMAGE_REWARD])
    assert same_reward("image-reward=2:model=tiny", [TINY_IMAGE_REWARD])
    assert unweighted("image-reward=2:model=tiny") == TINY_IMAGE_REWARD

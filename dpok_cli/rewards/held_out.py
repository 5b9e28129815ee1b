"""The rewards of an evaluation that names none: those trained on, and held-out ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dpok_cli.config import TINY
from dpok_cli.errors import InputError, RewardError
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.isolated import EnvironmentReward
from dpok_cli.rewards.manager import local_files, registry
from dpok_cli.rewards.spec import RewardSpec, make_options, parse_spec
from dpok_cli.tiny.words import parse

#: The rewards with bundled weights for the tiny world.
TINY_REWARDS = ("image-reward:model=tiny", "judge", "clip:model=tiny", "aesthetic:model=tiny")


def rewards_for(
    model: str, prompts: Sequence[str], trained: Iterable[str]
) -> tuple[list[str], list[str]]:
    """Return specs of the rewards to evaluate with, and remarks on those that were left out.

    First come those that were ``trained`` on (specs), without their factors in the sum; then every
    other reward whose files are on this machine. A reward that reads no files, such as the size of
    a JPEG, says nothing about quality and must be asked for; so must one with an environment of its
    own. The judge only takes prompts of the tiny world. Raises InputError if there is none.
    """
    specs = list(dict.fromkeys(unweighted(text) for text in trained))
    remarks = []
    for text in TINY_REWARDS if model == TINY else sorted(registry().rewards):
        if not _is_available(text, model) or same_reward(text, specs):
            continue
        strange = [prompt for prompt in prompts if text == "judge" and parse(prompt) is None]
        if strange:
            remarks.append(f"The judge is left out: {strange[0]!r} is not a tiny-world prompt.")
            continue
        specs.append(text)
    if not specs:
        raise InputError("No reward has its weights on this machine: give --reward SPEC.")
    return specs, remarks


def unweighted(text: str) -> str:
    """Return a spec without its weight in the sum."""
    spec = parse_spec(text)
    return str(RewardSpec(spec.name, 1.0, spec.options))


def same_reward(text: str, others: Iterable[str]) -> bool:
    """Whether one of ``others`` is the reward ``text``, with the same options; all are specs."""
    spec = parse_spec(text)
    options = make_options(registry().get(spec.name), spec.options)
    for other in map(parse_spec, others):
        if other.name == spec.name:
            theirs = make_options(registry().get(other.name), other.options)
            if theirs == options:
                return True
    return False


def _is_available(text: str, model: str) -> bool:
    """Whether the files of a reward are on this machine; bundled ones only count for "tiny"."""
    spec = parse_spec(text)
    if not (entry := registry().rewards.get(spec.name)):
        return False
    if entry.cls.files is RewardModel.files or issubclass(entry.cls, EnvironmentReward):
        return False

    def make() -> RewardModel:
        reward = entry.cls(make_options(entry.cls, spec.options))
        if (getattr(reward.options, "model", None) == TINY) != (model == TINY):
            raise RewardError("is for images of another model")
        return reward

    return local_files(make) is not None

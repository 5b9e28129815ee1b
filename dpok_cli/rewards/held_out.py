"""Which rewards to evaluate with when none is named: those trained on, and others as witnesses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dpok_cli.config import TINY
from dpok_cli.errors import InputError
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.manager import registry
from dpok_cli.rewards.spec import RewardSpec, make_options, parse_spec
from dpok_cli.tiny.words import parse

#: The scorers of the tiny world, each with bundled weights.
TINY_WITNESSES = ("image-reward:model=tiny", "judge", "clip:model=tiny", "aesthetic:model=tiny")


def rewards_for(
    model: str, prompts: Sequence[str], trained: Iterable[str]
) -> tuple[list[str], list[str]]:
    """Return specs of the rewards to evaluate with, and remarks on those that were left out.

    First those that were ``trained`` on (specs), without their weights; then each other whose files
    are on this machine. A reward that reads no files (the size of a JPEG, say) is no witness of
    quality and must be asked for. The judge takes prompts of the tiny world alone.
    """
    specs = list(dict.fromkeys(bare(text) for text in trained))
    remarks = []
    for text in TINY_WITNESSES if model == TINY else sorted(registry().rewards):
        if not _is_here(text, model) or same_reward(text, specs):
            continue
        strange = [prompt for prompt in prompts if text == "judge" and parse(prompt) is None]
        if strange:
            remarks.append(f"The judge is left out: {strange[0]!r} is not of the tiny world.")
            continue
        specs.append(text)
    if not specs:
        raise InputError("No reward has its weights here: say --reward SPEC.")
    return specs, remarks


def bare(text: str) -> str:
    """Return a spec without its weight."""
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


def _is_here(text: str, model: str) -> bool:
    spec = parse_spec(text)
    try:
        cls = registry().get(spec.name)
        reward = cls(make_options(cls, spec.options))
        if cls.files is RewardModel.files:
            return False
        bundled = getattr(reward.options, "model", None) == TINY
        return bundled == (model == TINY) and all(
            file.exists() for file in reward.files(local_only=True)
        )
    except Exception:  # of whatever kind: it is a plugin's
        return False

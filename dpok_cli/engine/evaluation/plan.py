"""The plan of an evaluation: models, prompts, seeds and rewards, settled without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from dpok_cli.config import TINY, EvaluateConfig, resolve
from dpok_cli.engine.bases.source import check_source
from dpok_cli.engine.evaluation.contenders import (
    BASE,
    Contender,
    find_contenders,
    shared_settings,
)
from dpok_cli.engine.sampling.seeds import evaluation_seeds
from dpok_cli.errors import InputError
from dpok_cli.prompts.unseen import Unseen, plain, unseen_prompts
from dpok_cli.rewards.held_out import rewards_for, unweighted
from dpok_cli.rewards.manager import check_specs

#: The most prompts that a remark names.
SHOWN = 5

# Left out of settings.json: they change no score.
_PLACES = {"runs_dir", "device", "offload"}
# Left out if they are empty, so that evaluations of older versions keep their settings.
_NEWER = {"model_config", "vae"}


@dataclass(frozen=True)
class Prompt:
    """A prompt and its place in the tables."""

    text: str
    group: str  # "seen" in training, "unseen", or "given" if the training is unknown
    category: str = ""
    variant_of: str = ""  # the trained prompt that it was derived from
    challenge: str = ""  # its second category, as in PartiPrompts


class Place(NamedTuple):
    """One image: the row of its prompt, and its seed."""

    row: int
    seed: int


@dataclass(frozen=True)
class Evaluation:
    """Models to compare on prompts, and rewards to score with; the base comes first."""

    config: EvaluateConfig
    contenders: tuple[Contender, ...]
    prompts: tuple[Prompt, ...]
    rewards: tuple[str, ...]  # specs
    remarks: tuple[str, ...] = ()  # what was left out, and why
    benchmark: str = ""  # the name of the one that the prompts are of

    @property
    def seeds(self) -> range:
        return evaluation_seeds(self.config.seed, self.config.samples)

    @property
    def total(self) -> int:
        """Images, over all models."""
        return len(self.contenders) * len(self.prompts) * self.config.samples

    def batches(self) -> list[list[Place]]:
        """Return the images of one model in batches that are always the same.

        A batch is drawn completely or not at all, so rounding does not depend on interruptions.
        """
        places = [Place(row, seed) for row in range(len(self.prompts)) for seed in self.seeds]
        size = self.config.sample_batch_size
        return [places[start : start + size] for start in range(0, len(places), size)]

    def settings(self) -> dict[str, Any]:
        """Return everything that the scores depend on, in JSON's types."""
        config = {
            key: value
            for key, value in asdict(self.config).items()
            if key not in _PLACES and (value or key not in _NEWER)
        }
        del config["prompts"], config["rewards"]
        return {
            **config,
            "models": {each.name: each.digest() for each in self.contenders},
            "prompts": {
                each.text: [each.group, each.category, *filter(None, [each.challenge])]
                for each in self.prompts
            },
            "rewards": list(self.rewards),
            **({"benchmark": self.benchmark} if self.benchmark else {}),
        }


def plan_evaluation(
    runs: Sequence[str] = (),
    adapters: Sequence[str] = (),
    *,
    unseen: bool = False,
    extra_prompts: Sequence[str] = (),
    **settings: Any,
) -> Evaluation:
    """Plan what `dpok evaluate` does: the named runs and adapters against the base.

    ``settings`` are fields of `EvaluateConfig`; the rest comes from the runs, as do the prompts.
    See `find_contenders` and `settle` for the other arguments. Raises InputError.
    """
    runs_dir = settings.get("runs_dir", EvaluateConfig.runs_dir)
    tuned = find_contenders(runs, adapters, runs_dir)
    config = resolve(EvaluateConfig, **(shared_settings(tuned, settings) | settings))
    return settle(config, tuned, unseen=unseen, extra_prompts=extra_prompts)


def settle(
    config: EvaluateConfig,
    tuned: Sequence[Contender],
    *,
    unseen: bool = False,
    extra_prompts: Sequence[str] = (),
    categories: Mapping[str, Sequence[str]] | None = None,
    benchmark: str = "",
) -> Evaluation:
    """Settle prompts and rewards of an evaluation of the ``tuned`` models against the base.

    ``unseen`` adds partners of the config's prompts, which no model was trained on;
    ``extra_prompts`` are added after them; ``categories`` are by prompt, one or more of each. The
    prompts of a ``benchmark`` are its own, each to the letter. Raises InputError for everything
    that can be refused without torch.
    """
    if not config.prompts:
        raise InputError(
            "The prompts that the adapter was trained on are unknown: give --prompt or --prompts."
        )
    derived = unseen_prompts(config.prompts) if unseen else {}
    alone = [prompt for prompt, partners in derived.items() if not partners.variants]
    if unseen and len(alone) == len(derived):
        raise InputError(
            f"There are no variants of {alone[0]!r}: write some to a file and give it to"
            " --unseen-prompts-file."
        )
    remarks = [f"There are no variants of {prompt!r}." for prompt in alone]
    variants = [text for partners in derived.values() for text in partners.variants]
    key = str if benchmark else plain
    remarks += _merged([*config.prompts, *variants, *extra_prompts], key, bool(categories))
    prompts = arrange_prompts(config.prompts, tuned, derived, extra_prompts, categories, key)
    if config.rewards:
        rewards = [unweighted(text) for text in config.rewards]
    else:
        trained = [text for each in tuned for text in each.trained_rewards]
        rewards, left_out = rewards_for(config.model, [each.text for each in prompts], trained)
        remarks += left_out
    check_specs(rewards, tiny=config.model == TINY)
    check_source(config)
    contenders = (Contender(BASE), *tuned)
    return Evaluation(config, contenders, prompts, tuple(rewards), tuple(remarks), benchmark)


def arrange_prompts(
    given: Sequence[str],
    contenders: Iterable[Contender],
    derived: Mapping[str, Unseen],
    unseen: Iterable[str] = (),
    categories: Mapping[str, Sequence[str]] | None = None,
    key: Callable[[str], str] = plain,
) -> tuple[Prompt, ...]:
    """Put the prompts together, each once: those ``given``, ``derived`` from them, ``unseen``.

    A given prompt is "seen" if a contender was trained on it, else "unseen"; it is "given" if the
    training of all contenders is unknown. ``categories`` are by prompt; prompts with the same
    ``key`` are one.
    """
    trained = {plain(prompt) for each in contenders for prompt in each.trained_prompts}
    categories = categories or {}
    prompts: dict[str, Prompt] = {}

    def add(text: str, group: str, category: str = "", variant_of: str = "") -> None:
        first, second, *_ = *categories.get(text, ()), "", ""
        prompts.setdefault(key(text), Prompt(text, group, first or category, variant_of, second))

    for text in given:
        group = ("seen" if plain(text) in trained else "unseen") if trained else "given"
        add(text, group, derived[text].category if text in derived else "")
    for text, partners in derived.items():
        for variant in partners.variants:
            add(variant, "unseen", partners.category, text)
    for text in unseen:
        add(text, "seen" if plain(text) in trained else "unseen")
    return tuple(prompts.values())


def _merged(texts: Iterable[str], key: Callable[[str], str], categories: bool) -> list[str]:
    """Return a remark on prompts that `arrange_prompts` puts together; none if there are none."""
    alike: dict[str, list[str]] = {}
    for text in texts:
        alike.setdefault(key(text), []).append(text)
    parts = []
    for first, *others in alike.values():
        parts += [f"{other!r} as {first!r}" for other in dict.fromkeys(others) if other != first]
        if first in others:
            parts.append(f"{first!r}, given {1 + others.count(first)} times")
    if not parts:
        return []
    more = [f"{len(parts) - SHOWN} more"] if len(parts) > SHOWN else []
    alike_in = " that differ only in case, spaces or a final full stop" if key is plain else ""
    once = "once, in their first category" if categories else "once"
    return [f"Prompts{alike_in} are evaluated {once}: {'; '.join([*parts[:SHOWN], *more])}."]

"""What the study is made of.

An arm is a way to train, a prompt set what one adapter is trained on, and a row of the study one
arm on one set, with all seeds. An experiment compares rows and says what is claimed of them.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

Flags = Mapping[str, Any]


@dataclass(frozen=True)
class Scale:
    """How large the study is."""

    seeds: tuple[int, ...] = (0, 1, 2)
    #: Rounds of 24 images for one prompt, and for several; SFT gets as many images.
    rounds: int = 30
    rounds_of_many: int = 40
    #: Rounds of 10 images with the paper's own settings.
    rounds_of_paper: int = 50
    sft_steps: int = 200
    #: Images of a prompt in an evaluation, and where a set has many prompts.
    samples: int = 50
    samples_of_many: int = 4
    #: Rounds between sample grids.
    grids: int = 4
    #: Flags for all online RL.
    rl: Flags = field(default_factory=dict)


FULL = Scale()
#: Three rounds of the policy gradient, which rises soonest, though not for long.
QUICK = Scale((0,), rounds=3, samples=8, grids=0, rl={"objective": "dpok", "beta": 0.01})


@dataclass(frozen=True)
class PromptSet:
    """Prompts that one adapter is trained on, and those it has not seen, by category."""

    name: str
    seen: Mapping[str, tuple[str, ...]]
    unseen: Mapping[str, tuple[str, ...]]

    @property
    def size(self) -> int:
        return sum(map(len, self.seen.values()))

    @property
    def title(self) -> str:
        return f"{self.size} prompts" if self.size > 1 else next(iter(self.seen.values()))[0]


@dataclass(frozen=True)
class Arm:
    """A way to train: a command and its flags, named like its settings."""

    name: str
    command: str
    flags: Flags = field(default_factory=dict)
    #: The arm whose adapter it starts from, or whose images it takes.
    starts_from: "Arm | None" = None
    images_of: "Arm | None" = None

    def but(self, name: str, **changes: Any) -> "Arm":
        return replace(self, name=name, flags={**self.flags, **changes})


@dataclass(frozen=True)
class Claim:
    """One arm is above another in a measure, on seen or unseen prompts.

    An arm is "base" for the untrained model. The difference is a mean over the experiment's prompt
    sets, for each seed; with a ``category``, of its prompts alone.
    """

    text: str
    source: str
    above: str
    below: str
    measure: str
    group: str = "seen"
    category: str = ""


@dataclass(frozen=True)
class Experiment:
    """Arms compared on prompt sets."""

    name: str
    title: str
    sets: tuple[PromptSet, ...]
    arms: tuple[Arm, ...]
    claims: tuple[Claim, ...]
    #: What the page says of it, and of what came out, once all its rows are done.
    text: str
    found: str = ""

    @property
    def rows(self) -> "list[Row]":
        return [Row(arm, prompts) for prompts, arm in product(self.sets, self.arms)]


@dataclass(frozen=True)
class Training:
    """One arm on one prompt set with one seed; its name is that of its run folder."""

    arm: Arm
    prompts: PromptSet
    seed: int

    @property
    def name(self) -> str:
        return f"{Row(self.arm, self.prompts).name}-{self.seed}"

    def needs(self) -> Iterator["Training"]:
        """Yield the trainings that have to be done before it."""
        for arm in filter(None, (self.arm.starts_from, self.arm.images_of)):
            yield replace(self, arm=arm)


@dataclass(frozen=True)
class Row:
    """One arm on one prompt set, with all seeds."""

    arm: Arm
    prompts: PromptSet

    @property
    def name(self) -> str:
        words = re.findall(r"[a-z0-9]+", self.arm.name.lower().replace("'", ""))
        return "-".join([*words, self.prompts.name])

    def trainings(self, seeds: tuple[int, ...]) -> list[Training]:
        return [Training(self.arm, self.prompts, seed) for seed in seeds]

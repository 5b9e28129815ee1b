"""The study of Fan et al. 2023 (arXiv 2305.16381) on the tiny world: what is trained and claimed.

An arm is a way to train, a prompt set what one adapter is trained on, and a training one arm on one
set with one seed. An experiment compares arms and says what the paper found. `run.py` does it all.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations, product
from typing import Any

from dpok_cli.tiny.words import PAPER_PROMPTS, UNSEEN_PROMPTS

Flags = Mapping[str, Any]


@dataclass(frozen=True)
class Scale:
    """How large the study is."""

    seeds: tuple[int, ...] = (0, 1, 2)
    #: Rounds of 24 images for one prompt, and for several; SFT gets as many images.
    rounds: int = 30
    rounds_of_many: int = 60
    #: Rounds of 10 images with the paper's own settings.
    rounds_of_paper: int = 75
    sft_steps: int = 200
    #: Images of a prompt in an evaluation, and where a set has many prompts.
    samples: int = 50
    samples_of_many: int = 4


FULL = Scale()
QUICK = Scale((0,), 1, 1, 1, 2, 2, 1)


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


SINGLE = {
    category: PromptSet(category, {category: (prompt,)}, {category: (UNSEEN_PROMPTS[category],)})
    for category, prompt in PAPER_PROMPTS.items()
}
FOUR = PromptSet(
    "four",
    {category: (prompt,) for category, prompt in PAPER_PROMPTS.items()},
    {category: (prompt,) for category, prompt in UNSEEN_PROMPTS.items()},
)
_ANIMALS = ("rabbit", "cat", "dog", "wolf")
_PLURALS = ("rabbits", "cats", "dogs", "wolves")
FIFTY = PromptSet(
    "fifty",
    {
        "colour": tuple(
            f"A {colour} {animal}."
            for colour, animal in product(("green", "blue", "red", "yellow"), _ANIMALS[:3])
        ),
        "count": tuple(
            f"{count} {animals} in the park."
            for count, animals in product(("Two", "Three", "Four"), _PLURALS)
        ),
        "composition": tuple(f"A {one} and a {other}." for one, other in combinations(_ANIMALS, 2)),
        "location": tuple(
            f"A {animal} {place}."
            for place, animal in product(
                ("on the moon", "on the beach", "in the snow", "in a room", "in the park"), _ANIMALS
            )
        ),
    },
    {
        "colour": ("A green lion.", "A blue bird.", "A red cup.", "A purple rabbit."),
        "count": ("Three birds in the park.", "Four lions in the park.", "Two cups in the park."),
        "composition": ("A cat and a cup.", "A lion and a dog.", "A bird and a rabbit."),
        "location": ("A lion on the moon.", "A bird on the beach.", "A lion in the snow."),
    },
)


@dataclass(frozen=True)
class Arm:
    """A way to train: a command and its flags, named like its settings."""

    name: str
    command: str
    flags: Flags = field(default_factory=dict)
    #: The arm whose adapter it starts from, or whose images it takes.
    starts_from: str = ""
    images_of: str = ""

    def but(self, name: str, **changes: Any) -> "Arm":
        return replace(self, name=name, flags={**self.flags, **changes})


RL = Arm("RL", "train-rl", {"patience": 0})
RL_WITHOUT_KL = RL.but("RL, no KL", beta=0.0, kl_target=0.0)
SFT = Arm("SFT", "train-sft")
SFT_KL = {
    (form, gamma): replace(
        SFT.but(f"SFT, {form.upper()} {gamma:g}", kl_form=form, gamma=gamma), images_of="SFT"
    )
    for form, gamma in product(("kl-d", "kl-o"), (0.1, 1.0, 2.0, 5.0))
}
RL_WITH_VALUE = RL.but("RL, value function", advantage="value")
PAPER = Arm(
    "paper's settings",
    "train-rl",
    {
        "preset": "sd15",
        "model": "tiny",
        "reward": "image-reward:model=tiny",
        # The sampler is the model's.
        "num_inference_steps": 20,
        "guidance_scale": 3.0,
    },
)
POLICY_GRADIENT = RL.but("policy gradient", objective="dpok")
NO_BASELINE = RL.but("policy gradient, plain reward", objective="dpok", advantage="reward")
LEARNED = RL.but("policy gradient, value function", objective="dpok", advantage="value")
FORWARD = RL.but("DiffusionNFT", objective="nft")
SFT_THEN_RL = replace(RL.but("SFT, then RL"), starts_from="SFT")


@dataclass(frozen=True)
class Claim:
    """One arm is above another in a measure, on seen or unseen prompts.

    The difference is a mean over the experiment's prompt sets, for each seed.
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
    """Arms compared on prompt sets; "base" among a claim's arms is the untrained model."""

    name: str
    title: str
    sets: tuple[PromptSet, ...]
    arms: tuple[Arm, ...]
    claims: tuple[Claim, ...]


def _better(text: str, source: str, above: str, below: str, *measures: str) -> tuple[Claim, ...]:
    return tuple(
        Claim(f"{text} ({measure}, {group} prompts)", source, above, below, measure, group)
        for group in ("seen", "unseen")
        for measure in measures
    )


_ALL = ("image-reward", "aesthetic", "judge")
EXPERIMENTS = (
    Experiment(
        "methods",
        "RL against supervised fine-tuning",
        tuple(SINGLE.values()),
        (SFT, RL),
        (
            *_better("RL is above SFT", "Sec. 5.2, Fig. 2", "RL", "SFT", *_ALL),
            *_better("RL is above the base", "Sec. 5.2, Fig. 2", "RL", "base", *_ALL),
        ),
    ),
    Experiment(
        "kl",
        "KL regularisation",
        (SINGLE["colour"],),
        (RL, RL_WITHOUT_KL, SFT, *SFT_KL.values()),
        (
            *(
                Claim(f"KL makes RL better ({measure})", "Sec. 5.3", "RL", "RL, no KL", measure)
                for measure in ("image-reward", "aesthetic", "diversity")
            ),
            *(
                Claim(
                    f"SFT with {form.upper()} and gamma {gamma:g} has the higher reward",
                    "Sec. 5.3",
                    SFT_KL[form, gamma].name,
                    "SFT",
                    "image-reward",
                )
                for form, gamma in SFT_KL
            ),
        ),
    ),
    Experiment(
        "bias",
        "A prompt that captions mislead",
        (SINGLE["colour"],),
        (RL,),
        (
            Claim(
                "RL corrects what captions taught: a green rabbit is green",
                "Sec. 5.4",
                "RL",
                "base",
                "judge",
            ),
        ),
    ),
    Experiment(
        "many",
        "One adapter for many prompts",
        (FOUR, FIFTY),
        (RL, RL_WITH_VALUE),
        (
            *_better("RL is above the base", "Sec. 5.5", "RL", "base", *_ALL),
            *_better(
                "The value function helps", "App. A.5", "RL, value function", "RL", "image-reward"
            ),
        ),
    ),
    Experiment(
        "settings",
        "The paper's settings and the default",
        (SINGLE["colour"], SINGLE["location"]),
        (PAPER, RL),
        (
            Claim(
                "The default is above the paper's settings, with a fraction of the evaluations",
                "beyond the paper",
                "RL",
                PAPER.name,
                "judge",
            ),
        ),
    ),
    Experiment(
        "beyond",
        "Objectives, advantages, and SFT first",
        (SINGLE["colour"], SINGLE["location"]),
        (RL, POLICY_GRADIENT, NO_BASELINE, LEARNED, FORWARD, SFT_THEN_RL),
        (
            *(
                Claim(f"Both losses beat {arm.name}", "beyond the paper", "RL", arm.name, measure)
                for arm in (POLICY_GRADIENT, FORWARD, NO_BASELINE, LEARNED)
                for measure in ("image-reward", "judge")
            ),
            Claim("SFT first beats RL alone", "beyond the paper", "SFT, then RL", "RL", "judge"),
        ),
    ),
)


@dataclass(frozen=True)
class Training:
    """One arm on one prompt set with one seed; its name is that of its run folder."""

    arm: Arm
    prompts: PromptSet
    seed: int

    @property
    def name(self) -> str:
        words = "".join(letter if letter.isalnum() else " " for letter in self.arm.name.lower())
        return "-".join([*words.split(), self.prompts.name, str(self.seed)])

    def needs(self) -> Iterator["Training"]:
        """Yield the trainings that have to be done before it."""
        for name in filter(None, (self.arm.starts_from, self.arm.images_of)):
            yield replace(self, arm=ARMS[name])


def trainings(experiment: Experiment, scale: Scale) -> list[Training]:
    """Return the trainings that an experiment compares."""
    return [
        Training(arm, prompts, seed)
        for prompts, arm, seed in product(experiment.sets, experiment.arms, scale.seeds)
    ]


ARMS = {arm.name: arm for experiment in EXPERIMENTS for arm in experiment.arms}

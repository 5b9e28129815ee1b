"""The experiments of Fan et al. 2023 (arXiv 2305.16381) on the tiny world, and some of our own."""

from dataclasses import replace
from itertools import combinations, product

from study import Arm, Claim, Experiment, PromptSet, Row

from dpok_cli.tiny.words import PAPER_PROMPTS, UNSEEN_PROMPTS

# --------------------------------------------------------------------------------- the prompt sets

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

# ---------------------------------------------------------------------------------------- the arms

RL = Arm("RL", "train-rl", {"patience": 0})
RL_LITTLE_KL = RL.but("RL, a tenth of the KL", beta=0.03, kl_target=0.0)
RL_WITHOUT_KL = RL.but("RL, no KL", beta=0.0, kl_target=0.0)
RL_WITH_VALUE = RL.but("RL, value function", advantage="value")
SFT = Arm("SFT", "train-sft")
SFT_KL = {
    (form, gamma): replace(
        SFT.but(f"SFT, {form.upper()} {gamma:g}", kl_form=form, gamma=gamma), images_of=SFT
    )
    for form, gamma in product(("kl-d", "kl-o"), (0.1, 1.0, 2.0, 5.0))
}
SFT_THEN_RL = replace(RL.but("SFT, then RL"), starts_from=SFT)
POLICY_GRADIENT = RL.but("policy gradient", objective="dpok", beta=0.01, kl_target=0.0)
KL_IN_LOSS = POLICY_GRADIENT.but("policy gradient, KL in the loss", kl="gaussian")
KL_IN_REWARD = KL_IN_LOSS.but("policy gradient, KL in the reward", kl_in="reward")
PLAIN_REWARD = POLICY_GRADIENT.but("policy gradient, no baseline", advantage="reward")
LEARNED_BASELINE = POLICY_GRADIENT.but("policy gradient, value function", advantage="value")
FORWARD = RL.but("DiffusionNFT", objective="nft")
PAPER = Arm(
    "the paper's settings",
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


# --------------------------------------------------------------------------------- the experiments


def _on_both(text: str, source: str, above: Arm, below: str, *measures: str) -> tuple[Claim, ...]:
    """Claim something of seen and of unseen prompts, in each of some measures."""
    return tuple(
        Claim(f"{text} ({measure}, {group} prompts)", source, above.name, below, measure, group)
        for group in ("seen", "unseen")
        for measure in measures
    )


def _in(measures: tuple[str, ...], text: str, above: Arm, below: str, source: str) -> list[Claim]:
    return [
        Claim(f"{text} ({measure})", source, above.name, below, measure) for measure in measures
    ]


_SCORES = ("image-reward", "aesthetic", "judge")
_OWN = "beyond the paper"
EXPERIMENTS = (
    Experiment(
        "methods",
        "RL against supervised fine-tuning",
        tuple(SINGLE.values()),
        (SFT, RL),
        (
            *_on_both("RL is above SFT", "Sec. 5.2, Fig. 2", RL, "SFT", *_SCORES),
            *_on_both("RL is above the base", "Sec. 5.2, Fig. 2", RL, "base", *_SCORES),
            *_on_both("SFT is above the base", "Sec. 5.2, Fig. 2", SFT, "base", "image-reward"),
        ),
        "One adapter for each prompt. Both are trained on ImageReward and see as many images, which"
        " RL draws with the policy as it is, and SFT with the base. The judge says whether an image"
        " shows what the prompt asks for, and neither is trained on it.",
        "RL ends above SFT in ImageReward, as in the paper, and in the judge's rate, on seen and on"
        " unseen prompts. SFT learns from the base's images alone, while RL soon draws more right"
        " ones. The gap is widest for the rabbit and the dog on the moon and narrower for the cat"
        " and the dog. Of the wolves the base draws nearly half right, and there both methods end"
        " at the same rate on the seen prompt. The aesthetic score is a little higher with RL on"
        " seen prompts and open on unseen ones: the tiny world has one style."
        " Diversity falls more with RL, except on the wolves: most of the base's is between"
        " right and wrong images ([performance.md](performance.md)), and RL leaves fewer of the"
        " wrong ones.",
    ),
    Experiment(
        "kl",
        "KL regularisation",
        (SINGLE["colour"],),
        (RL, RL_WITHOUT_KL, KL_IN_LOSS, KL_IN_REWARD, SFT, *SFT_KL.values()),
        (
            *_in(
                ("image-reward", "aesthetic", "diversity", "diversity at equal reward"),
                "RL is better with the KL",
                RL,
                RL_WITHOUT_KL.name,
                "Sec. 5.3",
            ),
            *_in(
                ("image-reward", "aesthetic", "diversity"),
                "The KL is better in the loss than in the reward",
                KL_IN_LOSS,
                KL_IN_REWARD.name,
                "Sec. 4.3",
            ),
            *(
                claim
                for (form, gamma), arm in SFT_KL.items()
                for claim in _in(
                    ("image-reward", "aesthetic"),
                    f"SFT is better with {form.upper()} and gamma {gamma:g}",
                    arm,
                    "SFT",
                    "Sec. 5.3",
                )
            ),
        ),
        "The KL's weight is beta in RL, and gamma in SFT, which has the paper's two forms: KL-D"
        " shifts the reward, KL-O weighs a distance to the base's predictions. The KL in the reward"
        " is the trajectory's log-ratio (`--kl-in reward`). Diversity at equal reward is the part"
        " of its diversity that the sample grid keeps where its mean ImageReward is 0.",
        "With the KL the default's RL ends at a higher ImageReward; aesthetic score and diversity"
        " are open, also where they are compared at equal reward. The policy gradient alone, with"
        " a small beta, is the fastest at first and ends with hardly a right image in two of three"
        " seeds, wherever its KL is: so loss and reward cannot be told apart. In SFT more of either"
        " KL costs reward, and a better aesthetic score does not show: the base's own is no higher"
        " than that of SFT without a KL, so nothing is lost that a KL could keep. KL-O holds the"
        " model near the base from gamma 0.1 on. KL-D of 2 and more makes the weights of all images"
        " nearly equal, which is training on the base's own images; its ImageReward is the base's,"
        " and its aesthetic score lower.",
    ),
    Experiment(
        "bias",
        "A prompt that captions mislead",
        (SINGLE["colour"],),
        (RL,),
        tuple(
            _in(
                ("judge",),
                "RL corrects what captions taught: the rabbit is green",
                RL,
                "base",
                "Sec. 5.4",
            )
        ),
        "The paper's base model draws whiskey for 'Four roses', as the web does. In the tiny"
        " model's training set, nearly all images that are captioned as a green rabbit show one in"
        " a natural colour, and so do most of the images that it draws.",
        "After training nearly all rabbits are green. The cat of the unseen prompt follows, though"
        " less, and no cat was drawn in training.",
    ),
    Experiment(
        "many",
        "One adapter for many prompts",
        (FOUR, FIFTY),
        (RL, RL_WITH_VALUE),
        (
            *_on_both("One adapter is above the base", "Sec. 5.5", RL, "base", *_SCORES),
            *(
                replace(
                    _on_both(f"In {category} as well", "Sec. 5.5", RL, "base", "image-reward")[0],
                    category=category,
                )
                for category in FOUR.seen
            ),
            *_on_both(
                "The value function helps", "App. A.5", RL_WITH_VALUE, "RL", "image-reward", "judge"
            ),
        ),
        "The four prompts together, and fifty of the same categories. Unseen prompts are of other"
        " animals, colours and places.",
        "One adapter for the four rises in ImageReward and in the judge's rate, on seen and on"
        " unseen prompts. It ends below four adapters with 30 rounds each (judge 0.68 against 0.95"
        " on average), on a third of their images in all. The wolves are nearly all right, and the"
        " dog on the moon is open. The fifty have 19 images each, and gain a tenth in ImageReward."
        " Over both sets the value function makes no difference that three seeds show. On the four"
        " it is behind with two of them. On the fifty it is ahead with each: a round draws 24"
        " prompts with it and 8 without, whose baseline is of the images of a prompt, so what helps"
        " may be the prompts as well as the baseline.",
    ),
    Experiment(
        "settings",
        "The paper's settings and the default",
        (SINGLE["colour"],),
        (PAPER, RL),
        (
            Claim(
                "The paper's settings need more evaluations to a mean ImageReward of 0",
                _OWN,
                PAPER.name,
                "RL",
                "evaluations to the reward",
            ),
            *_in(_SCORES[::2], "The default ends above them", RL, PAPER.name, _OWN),
        ),
        "The paper's settings are those of `--preset sd15` with the tiny model's sampler; they are"
        " made for a model 200 times as large. Evaluations are counted, in thousands, until the"
        " mean ImageReward of three rounds is 0, or to the end of a run where it never is.",
        "With the paper's settings the reward does not rise within 68 000 evaluations, where the"
        " run ends, so the difference is a lower bound; the KL is below 0.00001 until then. Their"
        " learning rate is 1e-5, and the default's 5e-3. Nothing was tried to bring them to the"
        " reward here.",
    ),
    Experiment(
        "objectives",
        "Objectives, advantages, and SFT first",
        (SINGLE["location"],),
        (RL, POLICY_GRADIENT, PLAIN_REWARD, LEARNED_BASELINE, FORWARD, SFT, SFT_THEN_RL),
        (
            *(
                claim
                for arm in (POLICY_GRADIENT, FORWARD)
                for claim in _in(_SCORES[::2], f"Both losses beat {arm.name}", RL, arm.name, _OWN)
            ),
            *(
                claim
                for arm in (PLAIN_REWARD, LEARNED_BASELINE)
                for claim in _in(
                    _SCORES[::2],
                    f"The prompt's baseline beats {arm.name}",
                    POLICY_GRADIENT,
                    arm.name,
                    _OWN,
                )
            ),
            *_in(_SCORES[::2], "SFT first beats RL alone", SFT_THEN_RL, "RL", _OWN),
        ),
        "All on the same budget of images. SFT then RL has SFT's images on top.",
        "The policy gradient alone, with a small beta, is as good on this prompt as both losses, in"
        " three quarters of their evaluations; on the rabbit it ends with hardly a right image in"
        " two of three seeds ([KL regularisation](#kl))."
        " Without a baseline one seed of three falls to no right image at all and stays there,"
        " while the others end as well as with one: hence the wide interval. Prompt's baseline and"
        " value function cannot be told apart. DiffusionNFT rises with two of three seeds, falls"
        " back, and ends no better than the base.",
    ),
    Experiment(
        "hacking",
        "Reward hacking as the KL goes",
        (SINGLE["composition"],),
        (RL, RL_LITTLE_KL, RL_WITHOUT_KL),
        (
            *_in(_SCORES, "RL is better with the KL", RL, RL_WITHOUT_KL.name, "Sec. 5.3"),
            *_in(_SCORES[1:], "A tenth of the KL is too little", RL, RL_LITTLE_KL.name, _OWN),
            Claim(
                "The evaluation warns of it without the KL",
                _OWN,
                RL_WITHOUT_KL.name,
                "RL",
                "warnings",
            ),
        ),
        "For this prompt ImageReward also likes two cats or two dogs, which the judge does not. The"
        " evaluation warns where a score that was not trained on falls while ImageReward rises.",
    ),
)


def quick() -> tuple[Experiment, ...]:
    """Return RL against the base on one prompt."""
    first = EXPERIMENTS[0]
    claims = tuple(each for each in first.claims if {each.above, each.below} == {RL.name, "base"})
    return (replace(first, sets=first.sets[:1], arms=(RL,), claims=claims, found=""),)


def has_unseen(row: Row) -> bool:
    """Whether a claim compares a row on unseen prompts."""
    return any(
        claim.group == "unseen" and row.arm.name in (claim.above, claim.below)
        for experiment in EXPERIMENTS
        if row.prompts in experiment.sets
        for claim in experiment.claims
    )

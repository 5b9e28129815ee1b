import pytest

from dpok_cli.prompts.unseen import VARIANTS, plain, unseen_prompts
from dpok_cli.tiny.words import PAPER_PROMPTS, UNSEEN_PROMPTS, Thing, parse


@pytest.mark.parametrize("category", PAPER_PROMPTS)
def test_the_papers_prompts_have_the_papers_partners(category):
    prompt = PAPER_PROMPTS[category]
    for text in (prompt, prompt.lower().rstrip("."), f" {prompt} "):
        assert unseen_prompts([text]) == {text: (category, (UNSEEN_PROMPTS[category],))}


@pytest.mark.parametrize(
    ("prompt", "category", "variants"),
    [
        ("A red wolf.", "colour", ("A red rabbit.", "A red cat.", "A red dog.")),
        ("a rabbit that is blue", "colour", ("a cat that is blue", "a dog that is blue")),
        ("three birds", "count", ("three rabbits", "two birds", "two rabbits")),
        (
            "Two red cats on the beach.",
            "count",
            ("Two red rabbits on the beach.", "Three red cats on the beach."),
        ),
        (
            "A dog and two cats.",
            "composition",
            ("A dog and two cups.", "A rabbit and two cats.", "A rabbit and two cups."),
        ),
        (
            "a lion in a room",
            "location",
            ("a rabbit in a room", "a lion in the park", "a rabbit in the park"),
        ),
        ("a cat", "subject", ("a rabbit", "a dog", "a wolf")),
        # words that the tiny world does not know
        ("A purple colored elephant.", "colour", ("A purple colored rabbit.",)),
        ("a large brown dog", "colour", ("a large brown rabbit",)),
        ("five zebras in the desert", "count", ("five rabbits in the desert",)),
        (
            "An elephant on the moon",
            "location",
            ("A rabbit on the moon", "An elephant in the park", "A rabbit in the park"),
        ),
        ("a photo of an orange kite", "colour", ("a photo of an orange rabbit",)),
        ("justice for all", "", ()),
    ],
)
def test_others_are_derived_by_what_they_ask_for(prompt, category, variants):
    found = unseen_prompts([prompt])[prompt]
    assert found.category == category
    assert found.variants[: len(variants)] == variants
    assert len(found.variants) == (VARIANTS if variants else 0)


def test_variants_of_the_tiny_world_stay_in_it_and_ask_for_the_same_skill():
    asked = {
        "a pink lion": lambda scene: scene.things[0].colour == "pink" and scene.place is None,
        "Five cats.": lambda scene: scene.things[0].count > 1 and len(scene.things) == 1,
        "a cup in the snow": lambda scene: scene.place is not None and len(scene.things) == 1,
        "a red bird and a blue lion": lambda scene: (
            {thing.colour for thing in scene.things} == {"red", "blue"}
        ),
    }
    for prompt, holds in asked.items():
        variants = unseen_prompts([prompt])[prompt].variants
        assert len(variants) == VARIANTS
        for variant in variants:
            scene = parse(variant)
            assert scene is not None
            assert holds(scene)
            assert scene != parse(prompt)
    assert parse(unseen_prompts(["Five cats."])["Five cats."].variants[0]).things == (
        Thing("rabbit", 5),
    )


def test_no_variant_was_trained_on_or_comes_twice():
    prompts = ["a red wolf", "a red rabbit.", "A red cat", "a red dog", "A green colored rabbit."]
    found = unseen_prompts([*prompts, "A green colored cat."])
    variants = [plain(variant) for unseen in found.values() for variant in unseen.variants]
    assert len(set(variants)) == len(variants)
    assert not set(variants) & set(map(plain, prompts))
    assert found["A green colored rabbit."].variants == ()  # its partner was trained on
    assert found["a red wolf"].variants == ("a red bird", "a red lion", "a red cup")

import pytest
import torch
from transformers import ResNetConfig

from dpok_cli.errors import RewardError
from dpok_cli.tiny.words import COLOURS, MAX_COUNT, OBJECTS, PLACES, Scene, Thing
from dpok_plugins import judge
from dpok_plugins.judge import Judge
from dpok_plugins.judge_net import JudgeNet, Views, scenes


def views_of(*pictures: Scene) -> Views:
    """The logits of a judge that predicts these scenes."""
    counts = torch.zeros(len(pictures), len(OBJECTS), MAX_COUNT + 1)
    counts[..., 0] = 1.0
    colours = torch.zeros(len(pictures), len(OBJECTS), len(COLOURS))
    place = torch.zeros(len(pictures), len(PLACES))
    for index, scene in enumerate(pictures):
        place[index, PLACES.index(scene.place)] = 3.0
        for thing in scene.things:
            counts[index, OBJECTS.index(thing.name), thing.count] = 2.0
            colours[index, OBJECTS.index(thing.name), COLOURS.index(thing.colour)] = 0.5
    return Views(counts, colours, place)


def seeing(*pictures: Scene) -> Judge:
    """A judge whose network predicts these scenes for any image."""

    class Planted(Judge):
        def load(self):
            self.net = lambda images: views_of(*pictures)

    return Planted()


GREEN_RABBIT = Scene((Thing("rabbit", 1, "green"),), "park")
WHITE_RABBIT = Scene((Thing("rabbit", 1, "white"),), "park")
FOUR_WOLVES = Scene((Thing("wolf", 4, "gray"),), "park")
THREE_WOLVES = Scene((Thing("wolf", 3, "gray"),), "park")
CAT_AND_DOG = Scene((Thing("cat", 1, "orange"), Thing("dog", 1, "brown")), "plain")
MOON_DOG = Scene((Thing("dog", 1, "brown"),), "moon")
NOTHING = Scene((), "moon")


@pytest.mark.parametrize(
    ("prompt", "picture", "right"),
    [
        ("A green colored rabbit.", GREEN_RABBIT, 1.0),
        ("a green rabbit on the moon", GREEN_RABBIT, 0.0),
        ("A green colored rabbit.", WHITE_RABBIT, 0.0),
        ("a rabbit", WHITE_RABBIT, 1.0),
        ("Four wolves in the park.", FOUR_WOLVES, 1.0),
        ("Four wolves in the park.", THREE_WOLVES, 0.0),
        ("a wolf in the park", FOUR_WOLVES, 0.0),
        ("A cat and a dog.", CAT_AND_DOG, 1.0),
        ("A dog and a cat.", CAT_AND_DOG, 1.0),
        ("a brown cat and an orange dog", CAT_AND_DOG, 0.0),
        ("a dog", CAT_AND_DOG, 0.0),
        ("A dog on the moon.", MOON_DOG, 1.0),
        ("A dog in the park.", MOON_DOG, 0.0),
        ("A cat on the moon.", MOON_DOG, 0.0),
        ("A dog on the moon.", NOTHING, 0.0),
    ],
)
def test_the_judge_says_whether_the_picture_shows_the_prompt(prompt, picture, right):
    assert seeing(picture).score(torch.zeros(1, 3, 8, 8), [prompt]).tolist() == [right]


def test_images_are_judged_for_their_prompts():
    judge = seeing(GREEN_RABBIT, MOON_DOG, FOUR_WOLVES)
    prompts = ["a dog on the moon", "a dog on the moon", "four gray wolves"]
    assert judge.score(torch.zeros(3, 3, 8, 8), prompts).tolist() == [0.0, 1.0, 1.0]


def test_scenes_are_the_most_likely_and_contain_counted_objects():
    pictures = [GREEN_RABBIT, CAT_AND_DOG, NOTHING, Scene((Thing("cup", 5, "brown"),), "room")]
    assert scenes(views_of(*pictures)) == pictures


def test_a_prompt_outside_the_tiny_world_is_an_error():
    with pytest.raises(RewardError) as caught:
        seeing(GREEN_RABBIT).score(torch.zeros(1, 3, 8, 8), ["an astronaut on a horse"])
    assert str(caught.value).startswith(
        "judge: 'an astronaut on a horse' is not a prompt of the tiny"
    )


@pytest.fixture
def net() -> JudgeNet:
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    return JudgeNet(config).eval()


@torch.no_grad()
def test_the_network_looks_at_64_pixels_between_minus_one_and_one(net):
    images = torch.rand(2, 3, 64, 64)
    views = net(images)
    assert views.counts.shape == (2, 7, 6)
    assert views.colours.shape == (2, 7, 10)
    assert views.place.shape == (2, 6)
    features = net.backbone(images * 2 - 1).last_hidden_state.mean((2, 3))
    torch.testing.assert_close(views.place, net.place(features))
    # Row by row: the last object's logits are the last six of the layer's outputs.
    torch.testing.assert_close(views.counts[:, -1], net.counts(features)[:, -6:])
    larger = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert net(larger).place.shape == (2, 6)


@torch.no_grad()
def test_the_reward_reads_what_the_network_saves(net, tmp_path):
    net.half().save(tmp_path)
    reward = Judge(Judge.Options(model=str(tmp_path)))
    images = torch.rand(2, 3, 64, 64)
    scores = reward.score(images, ["a cat", "a dog"])
    assert scores.dtype == torch.float32
    assert set(scores.tolist()) <= {0.0, 1.0}
    assert reward.net.place.weight.dtype == torch.float32
    torch.testing.assert_close(reward.net(images).place, net.float()(images).place)


def test_a_folder_without_weights_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RewardError, match=r"^judge: could not be loaded: .* has no model\.safet"):
        Judge(Judge.Options(model=str(tmp_path))).score(torch.zeros(1, 3, 8, 8), ["a cat"])


def test_the_plugin_module_re_exports_the_network():
    assert judge.JudgeNet is JudgeNet
    with pytest.raises(AttributeError, match="no_such_name"):
        judge.no_such_name  # noqa: B018

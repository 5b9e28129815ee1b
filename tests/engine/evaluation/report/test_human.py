"""The blind page."""

import json

import pytest

from dpok_cli.engine.evaluation.plan import Prompt
from dpok_cli.engine.evaluation.report.human import write_human_page
from dpok_cli.errors import InputError

PROMPTS = (Prompt("a red cat", "seen"), Prompt("a red dog", "unseen", "colour", "a red cat"))


def scores(model, row, seed):
    return {"image-reward": 0.0, "judge": 0.0}


@pytest.fixture
def page(plant):
    """An evaluation folder with a page of 2 prompts x 3 sets, and its key."""
    evaluation, folder = plant(scores, prompts=PROMPTS, samples=13, tuned=("zebra",))
    assert write_human_page(evaluation, folder) == folder.human
    return folder, json.loads(folder.key.read_text())


def screens(folder):
    text = folder.human.read_text()
    start = text.index('type="application/json">') + len('type="application/json">')
    return json.loads(text[start : text.index("</script>", start)])


def test_every_screen_is_two_sets_of_four_of_one_prompt(page):
    folder, key = page
    data = screens(folder)
    assert data["study"] == key["study"]
    assert {screen["id"] for screen in data["screens"]} == set(key["sets"])
    assert len(data["screens"]) == 6
    for screen in data["screens"]:
        item = key["sets"][screen["id"]]
        assert screen["prompt"] == item["prompt"]
        assert {item["left"], item["right"]} == {"base", "zebra"}
        assert [len(side) for side in screen["sides"]] == [4, 4]
        assert len(item["seeds"]) == 4
    # 13 seeds make three sets; none is shown twice
    seeds = sorted(seed for item in key["sets"].values() for seed in item["seeds"])
    assert seeds == sorted(2 * [2 * 10**9 + n for n in range(12)])


def test_the_sides_show_the_images_of_the_key(plant):
    def colour(model, row, seed):
        return (200, 0, 0) if model == "base" else (0, 200, 0)

    evaluation, folder = plant(scores, samples=4, colour=colour)
    write_human_page(evaluation, folder)
    (screen,) = screens(folder)["screens"]
    (item,) = json.loads(folder.key.read_text())["sets"].values()
    for side, images in zip(("left", "right"), screen["sides"], strict=True):
        expected = (200, 0, 0) if item[side] == "base" else (0, 200, 0)
        assert {pixel_of(uri) for uri in images} == {expected}


def pixel_of(uri):
    import base64
    import io

    from PIL import Image

    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    with Image.open(io.BytesIO(data)) as picture:
        assert not picture.info
        return picture.convert("RGB").getpixel((0, 0))


def test_the_page_is_blind(page):
    text = page[0].human.read_text()
    for secret in ("zebra", '"base"', "2000000", ".png", "image-reward", "unseen"):
        assert secret not in text
    for link in ("http:", "https:", "src=", "<link"):
        assert link not in text


def test_order_and_sides_are_mixed_but_always_the_same(plant):
    evaluation, folder = plant(scores, prompts=PROMPTS, samples=20)
    write_human_page(evaluation, folder)
    first = (folder.human.read_text(), folder.key.read_text())
    write_human_page(evaluation, folder)
    assert (folder.human.read_text(), folder.key.read_text()) == first
    items = list(json.loads(first[1])["sets"].values())
    assert {item["left"] for item in items} == {"base", "tuned"}
    assert [item["prompt"] for item in items] != sorted(item["prompt"] for item in items)


def test_too_few_samples_for_a_set(plant):
    evaluation, folder = plant(scores, samples=3)
    with pytest.raises(InputError, match="--samples 4"):
        write_human_page(evaluation, folder)
    assert not folder.human.exists()

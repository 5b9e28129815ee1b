"""The page and the plots of an evaluation."""

import re
from dataclasses import replace

import pytest
from PIL import Image

from dpok_cli.engine.evaluation.plan import Prompt
from dpok_cli.engine.evaluation.report.html import number, write_report
from dpok_cli.engine.evaluation.report.pairs import MAX_PAIRS, _room
from dpok_cli.engine.evaluation.report.pictures import picture
from dpok_cli.engine.evaluation.results import summarise
from dpok_cli.rewards.manager import build

PROMPTS = (
    Prompt("a <b>red</b> cat", "seen", "colour"),
    Prompt("a red dog", "unseen", "colour", "a red cat"),
)


def score(model, row, seed):
    """Seed 0 falls by 1, and each further seed changes by three more."""
    return {
        "image-reward": float(3 * seed - 1) * (model == "tuned"),
        "judge": 1.0 - (model == "tuned"),
    }


def page_of(planted):
    evaluation, folder = planted
    evaluation = replace(evaluation, remarks=("The judge is new.",))
    results = summarise(evaluation, build(evaluation.rewards), folder)
    page = write_report(results, evaluation, folder)
    assert page == folder.report
    return results, sorted(folder.plots.iterdir()), page.read_text()


def text_of(page):
    return " ".join(re.sub(r"<[^>]*>", " ", page[page.index("<body>") :]).split())


def pairs_of(page):
    """The text of the pairs, which come first."""
    return text_of(page).split("Each pair has one seed")[1].split(" images for each of ")[0]


def test_the_page_shows_scores_warnings_pairs_and_settings(plant):
    results, plots, page = page_of(plant(score, prompts=PROMPTS, samples=8))
    text = text_of(page)
    assert "Evaluation of tuned" in text
    assert results["warnings"]
    for warning in results["warnings"]:
        assert warning["text"] in text
    assert "The judge is new." in text
    assert "image-reward base 0.000 0.000 to 0.000 tuned * 9.500" in text
    assert "pixel_distance base 0.00" in text
    assert "mean root-mean-square pixel difference" in text
    assert page.count('src="data:image/png') == len(plots) + 2 * 2 * 8
    assert "a &lt;b&gt;red&lt;/b&gt; cat" in page
    assert "<b>red</b>" not in page
    assert "num_inference_steps = 20" in text
    assert f"dpok {results['versions']['dpok']}" in text
    assert "seeds: 2000000000 to 2000000007" in text
    # from the greatest rise to the greatest fall
    changes = re.findall(r"\(([+-]?[0-9.]+)\)", pairs_of(page))
    assert changes == [f"{3 * seed - 1:+}.000" for seed in range(8)][::-1] * 2


def test_nothing_comes_from_elsewhere(plant):
    _, _, page = page_of(plant(score))
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert "url(" not in page
    assert "<script" not in page


def test_of_many_pairs_those_that_changed_most_are_shown(plant):
    samples = MAX_PAIRS + 11
    _, _, page = page_of(plant(score, samples=samples))
    text = pairs_of(page)
    changes = [float(each) for each in re.findall(r"\(([+-]?[0-9.]+)\)", text)]
    half = MAX_PAIRS // 2
    every = [float(3 * seed - 1) for seed in range(samples)][::-1]
    assert changes == every[:half] + every[-half:]
    assert f"the largest changes of {samples} seeds, rises first" in text


def test_pictures_come_first_then_numbers_then_plots(plant):
    _, _, page = page_of(plant(score, prompts=PROMPTS))
    parts = re.findall(r'<h2 id="(\w+)">', page)
    assert parts == ["pairs", "scores", "plots", "settings"]
    assert re.findall(r'<a href="#(\w+)">', page) == parts


def test_the_contents_lead_to_each_prompt(plant):
    many = tuple(
        Prompt(f"{number} cats", "seen" if number % 2 else "unseen", "odd" if number % 3 else "")
        for number in range(1, 14)
    )
    _, _, page = page_of(plant(score, prompts=many, samples=8, tuned=("tuned", "other")))
    contents = page[page.index("<details class") : page.index("</details>")]
    links = re.findall(r'<a href="#(prompt-\d+)" title="(.*?)">', contents)
    assert sorted(links, key=lambda link: int(link[0][7:])) == [
        (f"prompt-{number}", f"{number} cats") for number in range(1, 14)
    ]
    assert re.findall(r'<section id="(.*?)"', page) == [f"prompt-{row}" for row in range(1, 14)]
    assert re.findall("<b>(.*?)</b>", contents) == [
        *("Seen prompts, odd", "Unseen prompts, odd", "Seen prompts", "Unseen prompts")
    ]
    # A gain of the tuned model on the score that it was trained on, and no change of the other's.
    first = contents[: contents.index("</li>")]
    assert re.findall(r'class="n (\w*)">(.*?)<', first) == [("up", "+9.500"), ("", "0.000")]
    assert "open" not in contents.partition(">")[0]  # it is long
    assert page.count("<figure>") == 2 * 13 * 4
    assert "tuned, image-reward: the largest changes of 8 seeds, rises first" in text_of(page)


@pytest.mark.parametrize(
    ("count", "pairs", "side"),
    [(0, 120, 256), (1, 120, 256), (30, 4, 256), (31, 4, 128), (300, 3, 128), (1000, 1, 128)],
)
def test_the_more_prompts_the_fewer_and_smaller_pictures(count, pairs, side):
    assert _room(count) == (pairs, side)


def test_a_page_of_many_prompts_is_bounded(plant, monkeypatch):
    monkeypatch.setattr("dpok_cli.engine.evaluation.report.pairs.MAX_PAIRS", 12)
    monkeypatch.setattr("dpok_cli.engine.evaluation.report.pairs.MAX_THUMBNAILS", 12)
    monkeypatch.setattr("dpok_cli.engine.evaluation.report.pairs.MAX_BLOCKS", 12)
    many = tuple(Prompt(f"{number} cats", "seen") for number in range(1, 16))
    _, _, page = page_of(plant(score, prompts=many, samples=3))
    assert page.count("<section ") == page.count("<figure>") == 12
    text = text_of(page)
    assert "Contents: 12 prompts, the first of 15; the numbers of all are in results.csv" in text
    assert "the middle change of 3 seeds" in text
    assert re.findall(r"\(([+-]?[0-9.]+)\)", pairs_of(page)) == ["+2.000"] * 12


def test_one_plot_for_each_number(plant):
    _, plots, _ = page_of(plant(score, prompts=PROMPTS))
    assert [file.name for file in plots] == ["differences.png", "means.png", "win_rates.png"]
    sizes = []
    for file in plots:
        with Image.open(file) as image:
            assert image.format == "PNG"
            sizes.append(image.size)
            colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20) or ()}
        assert (31, 119, 180) in colours  # the tuned model
    differences, means, win_rates = sizes
    assert means[0] == differences[0]
    assert means[1] > differences[1] == win_rates[1]  # with the base there are more lines


@pytest.mark.parametrize(
    ("value", "sign", "text"),
    [
        (0.5, False, "0.500"),
        (0.5, True, "+0.500"),
        (-0.25, True, "-0.250"),
        (0.0, True, "0.000"),
        (0.00123, False, "0.0012"),
        (None, False, ""),
    ],
)
def test_numbers(value, sign, text):
    assert number(value, sign) == text


@pytest.mark.parametrize(
    ("side", "room", "kind", "shown"),
    [
        (16, 256, "png", 192),
        (64, 256, "png", 192),
        (64, 128, "png", 64),
        (512, 256, "jpeg", 256),
        (512, 128, "jpeg", 128),
    ],
)
def test_pictures_are_enlarged_or_scaled_down(side, room, kind, shown, tmp_path):
    import base64
    import io

    noise = Image.effect_noise((side, side), 80).convert("RGB")
    noise.save(tmp_path / "x.png")
    head, _, data = picture(tmp_path / "x.png", room).partition(",")
    assert head == f"data:image/{kind};base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (shown, shown)
        assert len(data) < 200_000

"""The layouts that the benchmarks' own scorers read, checked as their documentation has them."""

import json
import os
import re

import pytest
from PIL import Image

from dpok_cli.engine.evaluation.official import LONGEST, file_name, write_official
from dpok_cli.engine.evaluation.plan import Place, Prompt
from dpok_cli.prompts.benchmarks import BenchmarkFile
from support.benchmarks import GENEVAL, write


@pytest.fixture
def drawn(plant, tmp_path):
    """Draw a benchmark's excerpt, and write its own layout; returns all that there is then."""

    def drawn(name, category=None, samples=2):
        benchmark = BenchmarkFile.find(f"{name}={write(tmp_path / name, name)}")
        texts = dict.fromkeys(benchmark.prompts(category))
        evaluation, folder = plant(
            lambda *at: {"judge": 1.0},
            samples=samples,
            prompts=[Prompt(text, "given") for text in texts],
            rewards=("judge",),
            colour=lambda model, row, seed: (row, seed, model == "base"),
        )
        lines = write_official(benchmark, evaluation, folder)
        return evaluation, folder, lines

    return drawn


def colours(folder):
    """The colour of each image of a folder, which says whose it is."""
    return {file.name: Image.open(file).getpixel((0, 0)) for file in sorted(folder.glob("*.png"))}


def check_geneval(root, metadata):
    """Read a folder as the README of GenEval has it, and evaluate_images.py reads it."""
    found = {}
    for folder in sorted(root.iterdir()):
        assert re.fullmatch(r"\d{5}", folder.name)
        line = (folder / "metadata.jsonl").read_text()
        assert json.loads(line) == json.loads(metadata[int(folder.name)])
        assert {"tag", "include", "prompt"} <= json.loads(line).keys()
        assert {each.name for each in folder.iterdir()} == {"metadata.jsonl", "samples"}
        names = sorted(image.name for image in (folder / "samples").iterdir())
        assert names == [f"{number:04}.png" for number in range(len(names))]
        found[folder.name] = names
    return found


def test_geneval(drawn):
    evaluation, folder, lines = drawn("geneval", samples=4)
    for model in ("base", "tuned"):
        root = folder.path / "geneval" / model
        found = check_geneval(root, GENEVAL)
        assert list(found) == ["00000", "00001", "00002"]
        assert {len(names) for names in found.values()} == {4}
        for row in range(3):
            assert colours(root / f"{row:05}" / "samples") == {
                f"{seed:04}.png": (row, seed, model == "base") for seed in range(4)
            }
    assert lines == [f"GenEval's own layout: {folder.path / 'geneval'} (hard links)."]
    own = folder.image("tuned", Place(1, evaluation.seeds[0]))
    assert (folder.path / "geneval/tuned/00001/samples/0000.png").samefile(own)


def test_geneval_of_one_tag_keeps_the_numbers_of_the_lines(drawn):
    _, folder, _ = drawn("geneval", "colors")
    assert list(check_geneval(folder.path / "geneval" / "tuned", GENEVAL)) == ["00002"]


def test_lines_of_geneval_without_a_prompt_are_left_out(drawn, monkeypatch):
    lines = [GENEVAL[0].replace('"prompt"', '"Prompt"'), '{"tag": "x"}', '{"Prompt": null}']
    monkeypatch.setattr("support.benchmarks.GENEVAL", [*lines, lines[0].replace("cup", "dog")])
    _, folder, _ = drawn("geneval")
    root = folder.path / "geneval" / "tuned"
    assert sorted(each.name for each in root.iterdir()) == ["00000", "00003"]


def test_t2i_compbench(drawn):
    """The prompt is what is before the first underscore, the number what is after the last."""
    _, folder, lines = drawn("t2i-compbench")
    root = folder.path / "t2i-compbench" / "base"
    assert colours(root / "color" / "samples") == {
        "a red cup and a blue dog_000000.png": (0, 0, 1),
        "a red cup and a blue dog_000001.png": (0, 1, 1),
        "A blue dog._000002.png": (1, 0, 1),
        "A blue dog._000003.png": (1, 1, 1),
        "A photo of a cat dog._000004.png": (2, 0, 1),
        "A photo of a cat dog._000005.png": (2, 1, 1),
    }
    spatial = sorted(
        (root / "spatial" / "samples").iterdir(), key=lambda file: int(file.stem.split("_")[-1])
    )
    assert [file.name.split("_")[0] for file in spatial] == [
        *["a dog on the left of a cup"] * 2,
        *["a cup near a wolf"] * 2,
    ]
    assert {each.name for each in root.iterdir()} == {"color", "spatial"}
    assert lines == [
        f"T2I-CompBench's own layout: {folder.path / 't2i-compbench'} (hard links).",
        "1 prompts cannot be file names as they are, and were cut or changed there: 'A photo of a"
        " cat/dog.'.",
    ]


def test_others_have_no_layout(drawn):
    _, folder, lines = drawn("drawbench")
    assert lines == []
    assert not (folder.path / "drawbench").exists()


def test_without_hard_links_images_are_copied_and_once(drawn, monkeypatch):
    def refuse(*_):
        raise OSError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    evaluation, folder, lines = drawn("geneval")
    assert lines == [f"GenEval's own layout: {folder.path / 'geneval'} (copies)."]
    own = folder.image("tuned", Place(0, evaluation.seeds[1]))
    copy = folder.path / "geneval/tuned/00000/samples/0001.png"
    assert copy.read_bytes() == own.read_bytes()
    assert not copy.samefile(own)


def test_a_long_prompt_is_cut_between_its_characters():
    name = file_name("é" * 300, "_000001.png")
    assert len(name.encode()) == LONGEST - 1  # a character of two bytes more would not fit
    assert name == "é" * 119 + "_000001.png"

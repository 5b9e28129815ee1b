"""A benchmark's own layout of images and metadata, for its own scorers.

GenEval (README of github.com/djghosh13/geneval): a folder for each line of its metadata, with that
line and samples/0000.png and so on. T2I-CompBench (Readme and GORS_finetune/inference_eval.py of
github.com/Karine-Huang/T2I-CompBench): samples/PROMPT_NUMBER.png for each category, where NUMBER
counts over all images.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from dpok_cli.engine.evaluation.folder import EvaluationFolder
from dpok_cli.engine.evaluation.plan import Evaluation, Place
from dpok_cli.engine.runs.files import replacing, write_text
from dpok_cli.prompts.benchmarks import BenchmarkFile

#: What no file name may hold.
FORBIDDEN = '/\0<>:"|?*\\' if os.name == "nt" else "/\0"
#: The most bytes of a file name: file systems hold 255, and a temporary name is longer by 5.
LONGEST = 250

#: The images of a prompt, from the first seed on.
Images = Callable[[str], list[Path]]


def write_official(
    benchmark: BenchmarkFile, evaluation: Evaluation, folder: EvaluationFolder
) -> list[str]:
    """Write the benchmark's layout, if it has one, of each model's images; they must all be drawn.

    It lies in NAME/MODEL of the folder. Images are hard links, or copies where the file system has
    none. Returns lines that say what was written, and which file names are not their prompts.
    """
    write = {"geneval": _geneval, "t2i-compbench": _compbench}.get(benchmark.name)
    if not write:
        return []
    rows = {prompt.text: row for row, prompt in enumerate(evaluation.prompts)}
    changed: list[str] = []
    copied = 0
    for contender in evaluation.contenders:
        model, root = contender.name, folder.path / benchmark.name / contender.name

        def images(prompt: str, model: str = model) -> list[Path]:
            places = (Place(rows[prompt], seed) for seed in evaluation.seeds)
            return [folder.image(model, place) for place in places] if prompt in rows else []

        changed = []
        for source, target in write(benchmark, root, images, changed):
            copied += _link(source, target)
    how = "copies" if copied else "hard links"
    lines = [f"{benchmark.benchmark.title}'s own layout: {folder.path / benchmark.name} ({how})."]
    if changed:
        lines.append(
            f"{len(changed)} prompts cannot be file names as they are, and were cut or changed"
            f" there: {changed[0]!r}{' and others' * (len(changed) > 1)}."
        )
    return lines


def _geneval(
    benchmark: BenchmarkFile, root: Path, images: Images, changed: list[str]
) -> Iterator[tuple[Path, Path]]:
    column = benchmark.found().column
    for index, line in enumerate(benchmark.lines(0)):
        prompt = json.loads(line).get(column) or ""  # a line without one is left out
        if drawn := images(prompt.strip()):
            folder = root / f"{index:05}"
            (folder / "samples").mkdir(parents=True, exist_ok=True)
            write_text(folder / "metadata.jsonl", line.strip() + "\n")
            for number, image in enumerate(drawn):
                yield image, folder / "samples" / f"{number:04}.png"


def _compbench(
    benchmark: BenchmarkFile, root: Path, images: Images, changed: list[str]
) -> Iterator[tuple[Path, Path]]:
    for number, path in enumerate(benchmark.paths):
        samples = root / path.stem.removesuffix("_val") / "samples"
        for index, line in enumerate(benchmark.lines(number)):
            prompt = line.split("\t")[0].strip()
            drawn = images(prompt)
            if drawn:
                samples.mkdir(parents=True, exist_ok=True)
            for place, image in enumerate(drawn):
                # The scorers take what is before the first underscore for the prompt.
                name = file_name(prompt.replace("_", " "), f"_{index * len(drawn) + place:06}.png")
                if place == 0 and not name.startswith(f"{prompt}_"):
                    changed.append(prompt)
                yield image, samples / name


def file_name(prompt: str, end: str) -> str:
    """Return ``prompt`` and ``end`` as a file name: cut, and without what none may hold."""
    plain = "".join(" " if character in FORBIDDEN else character for character in prompt)
    room = LONGEST - len(end.encode())
    return plain.encode()[:room].decode(errors="ignore") + end


def _link(source: Path, target: Path) -> bool:
    """Link ``target`` to a file, or copy it where links are not possible; returns whether it did.

    What is there already is left: images do not change.
    """
    if target.exists():
        return not target.samefile(source)
    try:
        os.link(source, target)
    except OSError:
        with replacing(target) as temporary:
            shutil.copyfile(source, temporary)
        return True
    return False

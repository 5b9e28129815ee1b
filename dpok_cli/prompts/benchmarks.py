"""Benchmarks by name: what their files are, where they are published, and where they lie here."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from dpok_cli.errors import DpokError, InputError, suggest
from dpok_cli.inputs import at_home, cache_folder, read_text
from dpok_cli.prompts.files import PromptFile
from dpok_cli.prompts.formats import FORMS, LINES, PROMPT_COLUMNS, Entry, Found, by_content

#: Seconds to wait for a server that publishes a benchmark.
TIMEOUT = 30.0


@dataclass(frozen=True)
class Benchmark:
    """A published set of prompts; docs/prompts.md cites the sources."""

    title: str
    files: tuple[str, ...]
    prompts: int  # how many the published set has
    #: Where a file is published; {file} is its name. "" if none is.
    address: str = ""
    #: Images of a prompt: the benchmark's own number, or 4 where it names none.
    samples: int = 4
    #: The columns of categories that its file has.
    columns: tuple[str, ...] = ()
    #: A copy of its only file on the Hugging Face hub.
    hub: str = ""


_GITHUB = "https://raw.githubusercontent.com/"

BENCHMARKS: Mapping[str, Benchmark] = {
    "drawbench": Benchmark(
        "DrawBench",
        ("DrawBench.csv",),
        200,
        "https://docs.google.com/spreadsheets/d/1y7nAbmR4FREi6npB1u-Bo3GFdwdOPYJc617rBOxIRHY/"
        "gviz/tq?tqx=out:csv",
        columns=("category",),
    ),
    "partiprompts": Benchmark(
        "PartiPrompts",
        ("PartiPrompts.tsv",),
        1632,
        _GITHUB + "google-research/parti/main/{file}",
        columns=("category", "challenge"),
        hub="nateraw/parti-prompts",
    ),
    "geneval": Benchmark(
        "GenEval",
        ("evaluation_metadata.jsonl",),
        553,
        _GITHUB + "djghosh13/geneval/main/prompts/{file}",
        columns=("tag",),
    ),
    "t2i-compbench": Benchmark(
        "T2I-CompBench",
        tuple(
            f"{category}_val.txt"
            for category in ("color", "shape", "texture", "spatial", "non_spatial", "complex")
        ),
        1800,
        _GITHUB + "Karine-Huang/T2I-CompBench/main/examples/dataset/{file}",
        samples=10,
    ),
    "paper-drawbench": Benchmark(
        "the DPOK paper's DrawBench",
        ("data_meta.json",),
        183,
        _GITHUB + "google-research/google-research/master/dpok/dataset/drawbench/{file}",
        columns=("category",),
    ),
    "paper-coco": Benchmark("the DPOK paper's MS-COCO", ("paper-coco.txt",), 104),
}


def own_folder() -> Path:
    """Return the folder of benchmarks on this machine, with a folder for each."""
    return cache_folder() / "benchmarks"


@dataclass
class BenchmarkFile(PromptFile):
    """A benchmark's prompts, in its own files: one alone, or those of a folder."""

    name: str
    paths: tuple[Path, ...]
    column: str = ""
    benchmark: Benchmark = field(init=False)

    def __post_init__(self) -> None:
        self.benchmark = BENCHMARKS[self.name]
        self.path = self.paths[0].parent if len(self.paths) > 1 else self.paths[0]

    @classmethod
    def find(cls, text: str, download: bool = False) -> BenchmarkFile:
        """Find ``NAME`` or ``NAME=PATH`` on this machine; PATH is its file, or a folder with it.

        Without PATH it is that of `own_folder`, or a copy in the hub's cache; with ``download`` it
        is fetched to the former. Raises InputError for an unknown name, a file that is not there or
        is no such benchmark, and DpokError for one that cannot be fetched.
        """
        name, _, path = text.partition("=")
        if name not in BENCHMARKS:
            raise InputError(f"There is no benchmark {name!r}.{suggest(name, BENCHMARKS)}")
        benchmark = BENCHMARKS[name]
        folder = at_home(Path(path)) if path else own_folder() / name
        is_file = path and folder.exists() and not folder.is_dir()  # it may be a pipe
        paths = [folder] if is_file else _in(folder, benchmark.files)
        if not paths and not path and benchmark.hub:
            paths = _in_hub_cache(benchmark)
        if not paths and download and not path and benchmark.address:
            paths = [_fetch(benchmark, file, folder / file) for file in benchmark.files]
        if not paths:
            raise InputError(_absent(name, benchmark, folder, given=bool(path)))
        found = cls(name, tuple(paths))
        found.found()
        return found

    def with_column(self, column: str) -> BenchmarkFile:
        return self

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The text of each file."""
        return tuple(read_text(path, f"{self.benchmark.title}'s ") for path in self.paths)

    def lines(self, number: int) -> list[str]:
        """Return the lines that are not empty of one of its files."""
        return [line for line in self.texts[number].split("\n") if line.strip()]

    @cached_property
    def _found(self) -> Found:
        parts = [
            self._named(_read, self.name, path.name, text)
            for path, text in zip(self.paths, self.texts, strict=True)
        ]
        entries = tuple(entry for part in parts for entry in part.entries)
        remarks = [remark for part in parts for remark in part.remarks]
        if len(entries) != self.benchmark.prompts:
            remarks.append(
                f"{len(entries)} prompts; {self.benchmark.title} has {self.benchmark.prompts}."
            )
        return Found(parts[0].form, entries, parts[0].column, parts[0].categories, tuple(remarks))


def _read(name: str, file: str, text: str) -> Found:
    """Read one file of a benchmark as its authors do; raises InputError if it is no such file."""
    benchmark = BENCHMARKS[name]
    # Each line of GenEval is given to its scorer.
    suffix = ".jsonl" if name == "geneval" else Path(file).suffix.lower()
    found = FORMS.get(suffix, by_content)(text, "")
    if name == "t2i-compbench":  # what follows a tab is for the scorers
        if found.form != LINES:
            raise InputError(f"it is not {benchmark.title}, which has one prompt per line.")
        category = Path(file).stem.removesuffix("_val")
        prompts = (line.split("\t")[0].strip() for line in text.split("\n"))
        entries = tuple(Entry(prompt, (category,)) for prompt in prompts if prompt)
        return Found(found.form, entries, categories=("category",))
    known = {column.lower() for column in found.categories}
    if {*benchmark.columns} - known or (
        found.column and found.column.lower() not in PROMPT_COLUMNS
    ):
        wanted = " and ".join(("prompt", *benchmark.columns))
        raise InputError(f"it is not {benchmark.title}, which has {wanted} of each prompt.")
    return found


def _in(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return those of the files that are in a folder, whatever the case of their names."""
    if not folder.is_dir():
        return []
    there = {file.name.lower(): file for file in folder.iterdir() if file.is_file()}
    return [there[name.lower()] for name in names if name.lower() in there]


def _in_hub_cache(benchmark: Benchmark) -> list[Path]:
    from huggingface_hub import try_to_load_from_cache

    (name,) = benchmark.files
    path = try_to_load_from_cache(benchmark.hub, name, repo_type="dataset")
    return [Path(path)] if isinstance(path, str) else []


def _fetch(benchmark: Benchmark, name: str, target: Path) -> Path:
    """Fetch one file, which is kept only if it is what it should be."""
    from urllib.request import urlopen

    address = benchmark.address.format(file=name)
    (key,) = (key for key, each in BENCHMARKS.items() if each is benchmark)
    try:
        with urlopen(address, timeout=TIMEOUT) as answer:
            data = answer.read()
        text = data.decode()
        _read(key, name, text)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{name}.{os.getpid()}.tmp")
        part.write_bytes(data)
        os.replace(part, target)
    except (OSError, ValueError, InputError) as error:
        why = str(getattr(error, "reason", error)).rstrip(".")
        raise DpokError(
            f"Cannot fetch {address}: {why}. Download it elsewhere, and put it into"
            f" {target.parent} as {name}."
        ) from error
    return target


def _absent(name: str, benchmark: Benchmark, folder: Path, given: bool) -> str:
    files = " and ".join(filter(None, (", ".join(benchmark.files[:-1]), benchmark.files[-1])))
    if not benchmark.address:
        return (
            f"There is no {files} in {folder}, and no public file of these prompts is known: put"
            f" them there, or give a file with --benchmark {name}=FILE."
        )
    place = benchmark.address.removesuffix("{file}")
    if given:
        return (
            f"There is no {files} in {folder}: download it from {place}, or let --benchmark {name}"
            " --download fetch it."
        )
    return (
        f"There is no {files} in {folder}: add --download to fetch it from {place}, or download it"
        f" and give --benchmark {name}=PATH."
    )

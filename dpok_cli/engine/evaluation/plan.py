"""What an evaluation compares: models, prompts and seeds. Settled and checked without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dpok_cli.config import EvaluateConfig, sampling_settings
from dpok_cli.engine.bases.source import ADAPTER_FILE, check_adapter
from dpok_cli.engine.runs.folder import RunFolder
from dpok_cli.errors import InputError
from dpok_cli.prompts.unseen import Unseen, plain

BASE = "base"
#: Seeds are this far from those that training, its before and after, and a person count up.
FRESH_SEEDS = 2 * 10**9

# What a run's config says of the machine and the order, but not of the images' distribution.
_FREE = {"prompts", "sample_batch_size"}
# What settings.json leaves out: where things lie is no part of what is measured.
_PLACES = {"runs_dir", "device"}


@dataclass(frozen=True)
class Contender:
    """A model to compare; without an ``adapter`` it is the base."""

    name: str
    adapter: Path | None = None
    #: The config.toml of the run that the adapter is of; empty where there is none.
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def trained_prompts(self) -> tuple[str, ...]:
        return tuple(self.config.get("prompts", ()))

    @property
    def trained_rewards(self) -> tuple[str, ...]:
        return tuple(self.config.get("rewards", ()))

    def digest(self) -> str | None:
        """Return the SHA-256 of the adapter's weights, None for the base."""
        if self.adapter is None:
            return None
        file = self.adapter / ADAPTER_FILE if self.adapter.is_dir() else self.adapter
        return hashlib.sha256(file.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Prompt:
    """A prompt and where it belongs in the tables."""

    text: str
    group: str  # "seen" in training, "unseen", or "given" where nothing is known of the training
    category: str = ""
    variant_of: str = ""  # the trained prompt that it was derived from


class Place(NamedTuple):
    """One image: the row of its prompt, and its seed."""

    row: int
    seed: int


@dataclass(frozen=True)
class Evaluation:
    """Which models are compared on which prompts, and how they are scored; the base comes first."""

    config: EvaluateConfig
    contenders: tuple[Contender, ...]
    prompts: tuple[Prompt, ...]
    rewards: tuple[str, ...]  # specs

    @property
    def seeds(self) -> range:
        first = FRESH_SEEDS + self.config.seed
        return range(first, first + self.config.samples)

    @property
    def total(self) -> int:
        return len(self.contenders) * len(self.prompts) * self.config.samples

    def batches(self) -> list[list[Place]]:
        """Return the images of one model in the batches in which they are always drawn.

        A batch is drawn whole or not at all, so that rounding does not depend on interruptions.
        """
        places = [Place(row, seed) for row in range(len(self.prompts)) for seed in self.seeds]
        size = self.config.sample_batch_size
        return [places[start : start + size] for start in range(0, len(places), size)]

    def settings(self) -> dict[str, Any]:
        """Return, as JSON has it, all that the scores depend on."""
        config = {key: value for key, value in asdict(self.config).items() if key not in _PLACES}
        del config["prompts"], config["rewards"]
        return {
            **config,
            "models": {each.name: each.digest() for each in self.contenders},
            "prompts": {each.text: [each.group, each.category] for each in self.prompts},
            "rewards": list(self.rewards),
        }


def find_contenders(runs: Sequence[str], adapters: Sequence[str], runs_dir: str) -> list[Contender]:
    """Find the models to compare with the base; with none named, the newest run's.

    ``runs`` are names, folders or "latest", ``adapters`` LoRA folders or files, each with an
    optional "NAME=" before it. Raises InputError for one that is not there, or a name given twice.
    """
    found = []
    if not runs and not adapters:
        runs = [_newest(runs_dir)]
    for text in runs:
        name, path = _split(text)
        folder = RunFolder.open(path, runs_dir)
        found.append(
            Contender(name or folder.path.resolve().name, folder.adapter, folder.read_config())
        )
    for text in adapters:
        name, path = _split(text)
        adapter = Path(path)
        run = adapter.resolve().parent
        config = {}
        if adapter.name == "adapter" and (run / "config.toml").is_file():
            name, config = name or run.name, RunFolder(run).read_config()
        found.append(Contender(name or adapter.resolve().stem, adapter, config))
    names = [each.name for each in found]
    for each in found:
        if each.name == BASE or names.count(each.name) > 1 or Path(each.name).name != each.name:
            raise InputError(
                f"The model name {each.name!r} is taken or no plain name: write NAME=PATH with"
                f" another NAME ({BASE!r} is the model without an adapter)."
            )
        assert each.adapter is not None
        check_adapter(each.adapter)
    return found


def shared_settings(contenders: Iterable[Contender], given: Iterable[str]) -> dict[str, Any]:
    """Return the sampling settings of the contenders' runs, and all their prompts.

    Raises InputError where two runs differ in one that is not among the ``given`` flags.
    """
    runs = [each for each in contenders if each.config]
    if not runs:
        return {}
    first, *others = runs
    shared = sampling_settings(first.config)
    for other in others:
        theirs = sampling_settings(other.config)
        for key in sorted((shared.keys() | theirs.keys()) - _FREE - set(given)):
            if shared.get(key) != theirs.get(key):
                raise InputError(
                    f"{first.name} and {other.name} were drawn differently: {key} ="
                    f" {shared.get(key)!r} and {theirs.get(key)!r}. Compare runs of one kind, or"
                    f" give --{key.replace('_', '-')}."
                )
    prompts = [prompt for run in runs for prompt in run.trained_prompts]
    return shared | {"prompts": tuple(dict.fromkeys(prompts))}


def arrange_prompts(
    given: Sequence[str],
    contenders: Iterable[Contender],
    derived: Mapping[str, Unseen],
    unseen: Iterable[str] = (),
    categories: Mapping[str, str] | None = None,
) -> tuple[Prompt, ...]:
    """Put the prompts together, each once: those ``given``, ``derived`` from them, ``unseen``.

    A given prompt is "seen" if a contender was trained on it, and "unseen" if not; where nothing is
    known of the training it is "given". ``categories`` are by prompt.
    """
    trained = {plain(prompt) for each in contenders for prompt in each.trained_prompts}
    categories = categories or {}
    prompts: dict[str, Prompt] = {}

    def add(text: str, group: str, category: str = "", variant_of: str = "") -> None:
        category = categories.get(text, category)
        prompts.setdefault(plain(text), Prompt(text, group, category, variant_of))

    for text in given:
        group = ("seen" if plain(text) in trained else "unseen") if trained else "given"
        add(text, group, derived[text].category if text in derived else "")
    for text, of_it in derived.items():
        for variant in of_it.variants:
            add(variant, "unseen", of_it.category, text)
    for text in unseen:
        add(text, "seen" if plain(text) in trained else "unseen")
    return tuple(prompts.values())


def _split(text: str) -> tuple[str, str]:
    """Split NAME=PATH; a path that holds "=" and is there needs no name."""
    name, equals, path = text.partition("=")
    if not equals or Path(text).exists():
        return "", text
    return name.strip(), path


def _newest(runs_dir: str) -> str:
    """Return the newest run that has an adapter; raises InputError if there is none."""
    files = [
        file
        for file in Path(runs_dir).glob("*/config.toml")
        if (file.parent / "adapter" / ADAPTER_FILE).is_file()
    ]
    if not files:
        raise InputError(
            f"There is no run with an adapter in {runs_dir}. Train one with dpok train-rl, or name"
            " what to evaluate with --run or --adapter."
        )
    return str(max(files, key=lambda file: file.stat().st_mtime).parent)

"""The commands of a soak: what each is called with, may write, and must leave.

What is called is chosen by chance alone, never by what earlier commands did, so that a seed repeats
it. What must hold follows from the folder as it is just before the command.
"""

from __future__ import annotations

import os
import shlex
import signal
import tomllib
from collections.abc import Iterator
from pathlib import Path
from random import Random

from soak.files import strict
from soak.odd import BAD, NAMES, PLACES, PROMPTS
from soak.outcome import complete, is_filled, is_no_text, is_set_of, may_have_ended, results
from soak.world import Command, Streams, World, command_of, config_of, is_trained, records

#: Settings with which a training takes about a second.
SMALL = (
    "--num-inference-steps=2 --sample-count=2 --lora-rank=2 --evaluation-samples=2 --device=cpu"
    " --tracker="
).split()
RL = "--samples-per-round=4 --updates-per-round=2 --batch-size=4 --sample-every=2".split()
SFT = (
    "--batch-size=2 --sample-batch-size=2 --log-every=1 --checkpoint-every=1 --sample-every=2"
).split()
JPEG = ("jpeg-compressibility", "jpeg-incompressibility")
#: Where stdout and stderr go (`Streams`).
STREAMS = [
    *(("closed", ""), ("", "closed"), ("closed", "closed"), ("full", ""), ("", "full")),
    *(("broken", ""), ("", "broken"), ("broken", "broken")),
]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)


class Action:
    """A command line; `expect` and `check` are called just before and after it ran."""

    def __init__(self, *arguments: str):
        self.arguments = arguments
        #: Folders that it may change, as a user writes them.
        self.writes: list[str] = []
        #: Exit codes that are right, if no signal comes.
        self.codes = {0}
        self.signals: list[tuple[float, signal.Signals]] = []
        self.streams, self.environment = Streams(), {}
        #: Seconds until the next command, if that runs at once.
        self.pause = 0.0
        #: Whether it runs beside another, which may have changed what it found.
        self.alone = True
        self.hangs = False
        #: Whether its folder must be new or empty.
        self.once = False

    def __str__(self) -> str:
        words = [*(f"{key}={value}" for key, value in self.environment.items()), "dpok"]
        words += [shlex.quote(text) for text in self.arguments]
        sent = "".join(f"  # {which.name} after {delay:.2f} s" for delay, which in self.signals)
        return f"{' '.join(words)} {self.streams}{sent}".rstrip()

    def prepare(self, model: Path) -> None:
        """Name the model, where a command does not find it out."""

    def expect(self, world: World) -> None:
        """Set ``codes`` to those that are right in a folder as it is."""

    def is_complete(self, world: World) -> bool:
        """Whether a training has all of its rounds, so that a signal has nothing to save."""
        return True

    def check(self, world: World, done: Command) -> Iterator[str]:
        """Yield what is missing or wrong after exit code 0."""
        return iter(())


class Training(Action):
    """A new run; ``where`` is its folder."""

    def __init__(self, chance: Random):
        self.command = chance.choices(("train-rl", "train-sft"), (3, 2))[0]
        self.runs, self.name = chance.choice(PLACES), chance.choice(NAMES)
        if chance.random() < 0.7:
            self.runs, self.name = "runs", f"run-{chance.randrange(100)}"
        self.prompts = chance.sample(PROMPTS, chance.choice((1, 1, 2)))
        self.length = chance.randint(1, 4)
        self.patience = chance.choice((0, 1, 2)) if self.command == "train-rl" else 0
        own = RL if self.command == "train-rl" else [*SFT, "--images=4", "--gamma=5"]
        unit = "rounds" if self.command == "train-rl" else "steps"
        flags = [*own, *SMALL, f"--{unit}={self.length}", f"--reward={chance.choice(JPEG)}"]
        flags += [f"--prompt={text}" for text in self.prompts]
        if self.command == "train-rl":
            flags.append(f"--patience={self.patience}")
        if self.command == "train-rl" and chance.random() < 0.3:
            flags += ["--advantage=value", "--value-updates=1", "--buffer-size=16"]
        if chance.random() < 0.1:
            flags.append("--tracker=tensorboard")
        if chance.random() < 0.1:
            flags.append("--checkpoint-every=0")
        super().__init__(self.command, *flags, f"--runs-dir={self.runs}", f"--name={self.name}")
        self.where = f"{self.runs}/{self.name}"
        self.writes = [self.where]
        self.data = ""
        if self.command == "train-sft" and chance.random() < 0.4:
            self.data = chance.choice(("images", "my images/[1]", "a=b"))
            self.arguments += (f"--dataset={self.data}",)
            self.writes.append(self.data)
        self.once = True

    def prepare(self, model: Path) -> None:
        self.arguments += (f"--model={model}",)

    def expect(self, world: World) -> None:
        path = world.path(self.where)
        odd = not self.name.startswith("run-") or any(map(is_no_text, self.prompts))
        self.codes = {0, 2} if odd or self.data else {0}
        if is_filled(path):
            self.codes = {2}

    def is_complete(self, world: World) -> bool:
        run = world.path(self.where)
        return may_have_ended(run) or len(records(run / "metrics.jsonl")) >= self.length

    def check(self, world: World, done: Command) -> Iterator[str]:
        run = world.path(self.where)
        length = self.length if self.alone and not may_have_ended(run) else 0
        yield from complete(run, self.command, length)
        settings = config_of(run) or {}
        if settings.get("prompts") != self.prompts:
            yield f"config.toml has other prompts: {settings.get('prompts')!r}"
        yield from results(done, "Adapter: ")


class Resume(Action):
    """A run that is resumed, whatever became of it, perhaps for more rounds."""

    def __init__(self, chance: Random, run: Training):
        self.run = run
        wrong = {"train-rl": "train-sft", "train-sft": "train-rl"}[run.command]
        self.command = wrong if chance.random() < 0.05 else run.command
        self.more = chance.choice((0, 0, 0, 1, 5, -1))
        super().__init__(self.command, *named(chance, run, "--resume"))
        if self.more:
            unit = "rounds" if run.command == "train-rl" else "steps"
            self.arguments += (f"--{unit}={max(1, run.length + self.more)}",)
        self.writes = list(run.writes)

    def expect(self, world: World) -> None:
        path = world.path(self.run.where)
        settings, unit = config_of(path), "rounds" if self.command == "train-rl" else "steps"
        self.length = 0
        other_flag = self.more and self.command != self.run.command
        if settings is None or command_of(path) != self.command or other_flag:
            self.codes = {2}
            return
        done = max((int(each.name) for each in path.glob("checkpoints/[0-9]*")), default=0)
        untold = settings.get("checkpoint_every") == 0 and (path / "metrics.jsonl").exists()
        asked = max(1, self.run.length + self.more) if self.more else settings[unit]
        self.length = asked
        self.codes = {0} if asked >= done and not untold else {2}
        if self.run.patience and asked > settings[unit]:
            self.codes |= {2}  # patience may have ended it
        if (shared := settings.get("dataset")) and not is_set_of(settings, Path(shared)):
            self.codes |= {2}  # another run has filled the folder since, or it was removed

    def is_complete(self, world: World) -> bool:
        run = world.path(self.run.where)
        return may_have_ended(run) or len(records(run / "metrics.jsonl")) >= self.length

    def check(self, world: World, done: Command) -> Iterator[str]:
        path = world.path(self.run.where)
        length = self.length if self.alone and not may_have_ended(path) else 0
        yield from complete(path, self.command, length)
        yield from results(done, "Adapter: ")


class Sample(Action):
    """Images of the base model, a run, or an adapter."""

    def __init__(self, chance: Random, run: Training | None):
        self.run, self.adapter = run, run is not None and chance.random() < 0.3
        self.output = f"{chance.choice(PLACES)}/drawn-{chance.randrange(20)}"
        self.seeds = chance.choice(("0", "0-2", "3,9", "9223372036854775806"))
        flags = [f"--seeds={self.seeds}", f"--output={self.output}", "--device=cpu"]
        self.prompts = None
        if run is None or self.adapter:
            self.prompts = [chance.choice(PROMPTS)]
            flags += [f"--prompt={self.prompts[0]}", "--num-inference-steps=2"]
        if run and self.adapter:
            flags.append(f"--adapter={run.where}/adapter")
        elif run:
            flags += named(chance, run, "--run")
        if run and chance.random() < 0.4:
            flags.append("--before")
        super().__init__("sample", *flags)
        self.writes = [self.output]

    def prepare(self, model: Path) -> None:
        if self.prompts:
            self.arguments += (f"--model={model}",)

    def expect(self, world: World) -> None:
        output = world.path(self.output)
        taken = is_filled(output)
        there = self.run is None or is_trained(world.path(self.run.where))
        no_text = any(map(is_no_text, self.prompts or ()))
        # A folder of the same settings is continued.
        self.codes = {2} if not there or no_text else {0, 2} if taken else {0}

    def check(self, world: World, done: Command) -> Iterator[str]:
        output = world.path(self.output)
        manifest = strict((output / "manifest.json").read_text(encoding="utf-8"))
        for image in manifest["images"]:
            if not (output / image["file"]).is_file():
                yield f"{image['file']} is in the manifest alone"
        if self.prompts and {image["prompt"] for image in manifest["images"]} != {*self.prompts}:
            yield "the manifest has other prompts"
        yield from results(done, "", ".png")


class Evaluate(Action):
    """Runs and adapters against the base."""

    def __init__(self, chance: Random, runs: list[Training]):
        self.runs, self.json = runs, chance.random() < 0.3
        self.output = f"{chance.choice(PLACES)}/compared-{chance.randrange(4)}"
        flags = [f"--output={self.output}", "--device=cpu", "--resamples=100"]
        flags += [f"--samples={chance.choice((2, 4))}", f"--reward={chance.choice(JPEG)}"]
        for run in runs:
            if chance.random() < 0.3:
                flags += [f"--adapter=it-{len(flags)}={run.where}/adapter"]
            else:
                flags += named(chance, run, "--run", several=True)
        flags += ["--human"] if chance.random() < 0.3 else []
        flags += ["--json"] if self.json else []
        if chance.random() < 0.3:
            flags.append("--sample-batch-size=1")
        super().__init__("evaluate", *flags)
        self.writes = [self.output]

    def prepare(self, model: Path) -> None:
        if any(text.startswith("--adapter=") for text in self.arguments):
            self.arguments += (f"--model={model}", "--prompt=cat", "--num-inference-steps=2")

    def expect(self, world: World) -> None:
        ready = all(is_trained(world.path(run.where)) for run in self.runs)
        known = {run.where for run in self.runs}
        names = [Path(run.where).name for run in self.runs]
        free = not is_filled(world.path(self.output))
        certain = (
            free and len(names) == len({*names, "base"}) - 1 and "--human" not in self.arguments
        )
        self.codes = ({0} if certain and len(known) == 1 else {0, 2}) if ready else {2}

    def check(self, world: World, done: Command) -> Iterator[str]:
        output = world.path(self.output)
        for name in ("results.json", "results.csv", "report.html", "scores.jsonl"):
            if not (output / name).is_file():
                yield f"there is no {name}"
        found = [
            (one["model"], one["row"], one["seed"]) for one in records(output / "scores.jsonl")
        ]
        if len(found) != len({*found}):
            yield "scores.jsonl has an image twice"
        if self.json and not self.streams.out:
            if strict(done.out) != strict((output / "results.json").read_text(encoding="utf-8")):
                yield "--json prints other results than results.json has"
        elif not self.json:
            yield from results(done, "Report: ")


class Export(Action):
    """A run's adapter in the form of another tool."""

    def __init__(self, chance: Random, run: Training):
        self.run, self.form = run, chance.choice(("diffusers", "kohya", "peft"))
        self.output = f"{chance.choice(PLACES)}/exported-{chance.randrange(20)}"
        self.output += "" if self.form == "peft" else ".safetensors"
        flags = [f"--format={self.form}", f"--output={self.output}"]
        if chance.random() < 0.3:
            flags.append(f"--dtype={chance.choice(('fp32', 'fp16', 'bf16'))}")
        super().__init__("export", *flags, "--", run.where)
        self.writes, self.once = [self.output], True

    def expect(self, world: World) -> None:
        output = world.path(self.output)
        there = is_trained(world.path(self.run.where))
        self.codes = {0} if there and not os.path.isfile(output) and not is_filled(output) else {2}

    def check(self, world: World, done: Command) -> Iterator[str]:
        output = world.path(self.output)
        if not (is_filled(output) if self.form == "peft" else output.is_file()):
            yield "nothing is exported"
        yield from results(done, "")


class Show(Action):
    """Commands that only print."""

    def __init__(self, chance: Random):
        self.prompt = chance.choice([text for text in PROMPTS if not is_no_text(text)])
        settings = ("train-rl", f"--prompt={self.prompt}", "--print-config")
        arguments = chance.choice(
            [
                ("rewards",),
                ("rewards", "--json"),
                ("rewards", "show", "jpeg-compressibility"),
                ("rewards", "show", "clip", "--json"),
                ("rewards", "check", "jpeg-compressibility", "--json"),
                ("--version",),
                ("train-sft", "--help"),
                settings,
                settings,
            ]
        )
        super().__init__(*arguments)

    def check(self, world: World, done: Command) -> Iterator[str]:
        if self.streams.out:
            return
        if not done.out.strip():
            yield "nothing is printed"
        if "--json" in self.arguments:
            strict(done.out)
        printed = tomllib.loads(done.out) if "--print-config" in self.arguments else {}
        if printed.get("prompts", [self.prompt]) != [self.prompt]:
            yield "--print-config has other prompts"


class Bad(Action):
    """Input that cannot be used."""

    def __init__(self, chance: Random):
        command = chance.choice(("train-rl", "train-sft", "sample", "evaluate"))
        prompt = [] if command == "evaluate" else ["--prompt=cat"]
        super().__init__(command, *prompt, *chance.choice(BAD))
        self.codes = {2}


def random_step(chance: Random, runs: list[Training], model: Path) -> list[Action]:
    """Return a command, or two that run at once; ``runs`` are those begun so far, the last first
    to be chosen."""
    state = chance.getstate()
    step = [_one(chance, runs)]
    if chance.random() < 0.25:
        if chance.random() < 0.5:  # the same once more
            again = Random()
            again.setstate(state)
            step.append(_one(again, list(runs)))
        else:
            step.append(_one(chance, runs))
        step[0].pause = chance.choice((0, 0, 0.2, 1))
    for each in step:
        each.prepare(model)
        _disturb(chance, each)
    return step


def _one(chance: Random, runs: list[Training]) -> Action:
    run = chance.choice(runs[-8:]) if runs else None
    kinds = ("train", "resume", "sample", "evaluate", "export", "show", "bad")
    (kind,) = chance.choices(kinds, (8, 8, 4, 5, 2, 2, 2))
    if kind == "resume" and run:
        return Resume(chance, run)
    if kind == "sample":
        return Sample(chance, run if chance.random() < 0.7 else None)
    if kind == "evaluate" and run:
        return Evaluate(chance, [run, *chance.sample(runs[-8:], chance.choice((0, 0, 0, 1)))])
    if kind == "export" and run:
        return Export(chance, run)
    if kind in ("show", "bad"):
        return Show(chance) if kind == "show" else Bad(chance)
    runs.append(made := Training(chance))
    return made


def _disturb(chance: Random, action: Action) -> None:
    """Give a command signals, other streams or another environment, or none of that."""
    fate = chance.random()
    if fate < 0.28:
        delay = chance.uniform(0.1, 2.5)
        action.signals = [(delay, chance.choice(SIGNALS))]
        if chance.random() < 0.3:
            action.signals.append((delay + chance.uniform(0, 0.5), chance.choice(SIGNALS)))
    elif fate < 0.4:
        action.streams = Streams(*chance.choice(STREAMS), chance.uniform(0, 2))
    action.environment = chance.choice(
        [{}, {}, {}, {}, {"TERM": "dumb"}, {"FORCE_COLOR": "1"}, {"LC_ALL": "C"}, {"COLUMNS": "20"}]
    )


def named(chance: Random, run: Training, flag: str, several: bool = False) -> list[str]:
    """Name a run by its path, or by its name in its folder."""
    by_name = chance.random() < 0.5 and not several
    if by_name and run.name != "latest":  # which is the newest of all
        return [f"{flag}={run.name}", f"--runs-dir={run.runs}"]
    return [f"{flag}={run.where}"]

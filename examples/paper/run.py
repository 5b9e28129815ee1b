"""Repeat the study of the DPOK paper on the tiny world: ``python examples/paper/run.py``.

Trains, evaluates, and writes a page of the paper's claims beside what came out here. It runs the
commands that a user would type, as many at once as there are cores; the page lists them. What is
done is not repeated, and what was interrupted is resumed.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from page import Compared, write_page
from study import EXPERIMENTS, FULL, QUICK, Experiment, PromptSet, Scale, Training, trainings

from dpok_cli.strict_json import dumps

REWARDS = ("image-reward", "aesthetic", "judge")
T, R = TypeVar("T"), TypeVar("R")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = [each.name for each in EXPERIMENTS]
    parser.add_argument("--only", action="append", choices=names, help="By default all.")
    parser.add_argument("--quick", action="store_true", help="One seed, hardly any training.")
    parser.add_argument("--output", type=Path, default=Path("build/paper"))
    parser.add_argument("--page", type=Path, help="By default docs/paper.md if all is done.")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    given = parser.parse_args()
    chosen = [each for each in EXPERIMENTS if each.name in (given.only or names)]
    whole = not given.quick and not given.only
    page = given.page or (Path("docs") if whole else given.output) / "paper.md"
    study = Study(given.output, QUICK if given.quick else FULL, given.processes)
    study.train(chosen)
    write_page(page, [(each, study.compare(each)) for each in chosen])
    print(page)


class Study:
    """Trainings and evaluations in one folder, made by `dpok`."""

    def __init__(self, folder: Path, scale: Scale, processes: int):
        self.folder, self.scale, self.processes = folder, scale, processes
        folder.mkdir(parents=True, exist_ok=True)

    def train(self, experiments: Iterable[Experiment]) -> None:
        """Train all that is compared, each training once and after those that it needs."""
        wanted = {each.name: each for one in experiments for each in trainings(one, self.scale)}
        first = {each.name: each for one in wanted.values() for each in one.needs()}
        self._at_once(self._train, list(first.values()))
        self._at_once(self._train, [wanted[name] for name in wanted if name not in first])

    def compare(self, experiment: Experiment) -> list[Compared]:
        """Evaluate an experiment's trainings, by prompt set."""
        return self._at_once(partial(self._compare, experiment), experiment.sets)

    def command(self, training: Training) -> list[str]:
        """Return the arguments of `dpok` that train it."""
        arm, scale = training.arm, self.scale
        rounds = scale.rounds_of_many if training.prompts.size > 1 else scale.rounds
        if arm.command == "train-sft":  # on as many images as RL draws
            images = next(iter(training.needs()), training)  # its own, or those of another
            own = {"images": 24 * rounds, "steps": scale.sft_steps}
            own["dataset"] = self.folder / "images" / images.name
        else:
            own = {"rounds": scale.rounds_of_paper if "preset" in arm.flags else rounds}
            for source in training.needs():
                own["init_adapter"] = self._run(source) / "adapter"
        return arguments(
            arm.command,
            prompts=self._prompt_files(training.prompts)[0],
            seed=training.seed,
            **own,
            **arm.flags,
            sample_every=0,
            evaluation_samples=2,
            tracker="",
            runs_dir=self.folder,
            name=training.name,
        )

    def evaluation(self, experiment: Experiment, prompts: PromptSet) -> list[str]:
        """Return the arguments of `dpok` that compare an experiment's trainings on a set."""
        seen, unseen = self._prompt_files(prompts)
        own = [each for each in trainings(experiment, self.scale) if each.prompts == prompts]
        return arguments(
            "evaluate",
            run=[f"{each.name}={self._run(each)}" for each in own],
            prompts=seen,
            unseen_prompts_file=unseen,
            reward=REWARDS,
            samples=self.scale.samples_of_many if prompts.size > 10 else self.scale.samples,
            output=self.folder / f"evaluation-{experiment.name}-{prompts.name}",
        )

    def _train(self, training: Training) -> None:
        run = self._run(training)
        if not (run / "summary.json").exists():
            started = (run / "config.toml").exists()
            resume = [training.arm.command, "--resume", str(run)]
            dpok(resume if started else self.command(training), run.with_suffix(".log"))

    def _compare(self, experiment: Experiment, prompts: PromptSet) -> Compared:
        call = self.evaluation(experiment, prompts)
        folder = self.folder / f"evaluation-{experiment.name}-{prompts.name}"
        if not (folder / "report.html").exists():
            dpok(call, folder.with_suffix(".log"))
        own = [each for each in trainings(experiment, self.scale) if each.prompts == prompts]
        return Compared(
            prompts,
            own,
            folder,
            {each.name: self._evaluations(each) for each in own},
            [shlex.join(["dpok", *each]) for each in (*map(self.command, own), call)],
        )

    def _evaluations(self, training: Training) -> int:
        """Return the denoiser evaluations that a training took."""
        lines = (self._run(training) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return json.loads(lines[-1])["denoiser_evaluations"]

    def _run(self, training: Training) -> Path:
        return self.folder / training.name

    def _prompt_files(self, prompts: PromptSet) -> list[Path]:
        """Return the files of a set's seen and unseen prompts, by category."""
        files = []
        for kind, content in (("", prompts.seen), ("-unseen", prompts.unseen)):
            files.append(self.folder / f"{prompts.name}{kind}.json")
            files[-1].write_text(dumps(content, indent=2), encoding="utf-8")
        return files

    def _at_once(self, do: Callable[[T], R], these: Sequence[T]) -> list[R]:
        with ThreadPoolExecutor(self.processes) as pool:
            try:
                return list(pool.map(do, these))
            except BaseException:  # what has not begun must not begin
                pool.shutdown(cancel_futures=True)
                raise


def arguments(command: str, **flags: Any) -> list[str]:
    """Return a command with its flags, of which a sequence is one for each of its values."""
    found = [command]
    for key, value in flags.items():
        for one in value if isinstance(value, list | tuple) else [value]:
            found += [f"--{key.replace('_', '-')}", str(one)]
    return found


def dpok(call: Sequence[str], log: Path) -> None:
    """Run `dpok` with one thread; raises SystemExit with the end of its log if it fails."""
    print("dpok", shlex.join(call), file=sys.stderr, flush=True)
    with log.open("w", encoding="utf-8") as lines:
        ended = subprocess.run(
            [sys.executable, "-m", "dpok_cli", *call],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=lines,
            stderr=subprocess.STDOUT,
        )
    if ended.returncode:
        last = log.read_text(encoding="utf-8").splitlines()[-5:]
        raise SystemExit("\n".join([f"{shlex.join(call)}: exit code {ended.returncode}", *last]))


if __name__ == "__main__":
    main()

"""Repeat the study of the DPOK paper on the tiny world: ``python examples/paper/run.py``.

Trains, evaluates, and writes a page of the paper's claims beside what came out here. It runs the
commands that a user would type, as many at once as there are cores; the page lists them. A row of
the study whose numbers are beside the page is not repeated, and what was interrupted is resumed.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

from experiments import EXPERIMENTS, has_unseen, quick
from figures import show
from page import BASE, write_page
from study import FULL, QUICK, Experiment, PromptSet, Row, Scale, Training

from dpok_cli.strict_json import dumps

REWARDS = ("image-reward", "aesthetic", "judge")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = [each.name for each in EXPERIMENTS]
    parser.add_argument("--only", action="append", choices=names, help="By default all.")
    parser.add_argument("--quick", action="store_true", help="A first look, in a minute.")
    parser.add_argument("--again", action="store_true", help="Repeat what the page has already.")
    parser.add_argument("--output", type=Path, default=Path("build/paper"))
    parser.add_argument("--page", type=Path, help="By default docs/paper.md.")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    given = parser.parse_args()
    experiments = quick() if given.quick else EXPERIMENTS
    page = given.page or (given.output if given.quick else Path("docs")) / "paper.md"
    study = Study(given.output, page.with_suffix(""), QUICK if given.quick else FULL, given.again)
    wanted = [each for each in experiments if each.name in (given.only or names)]
    study.run(every(wanted), given.processes)
    write_page(page, experiments, {row.name: study.record(row) for row in every(experiments)})
    print(page)


def every(experiments: Iterable[Experiment]) -> list[Row]:
    """Return the rows of some experiments, each once."""
    rows = {row.name: row for experiment in experiments for row in experiment.rows}
    return list(rows.values())


class Study:
    """Runs and evaluations in one folder, made by `dpok`; the rows' records in another."""

    def __init__(self, folder: Path, records: Path, scale: Scale, again: bool = False):
        self.folder, self.records, self.scale, self.again = folder, records, scale, again
        self.training = defaultdict[str, Lock](Lock)
        folder.mkdir(parents=True, exist_ok=True)
        records.mkdir(parents=True, exist_ok=True)

    def record(self, row: Row) -> dict[str, Any] | None:
        """Return what is known of a row, by the commands that it has now."""
        file = self.records / f"{row.name}.json"
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        return known if known.get("commands") == self.commands(row) else None

    def run(self, rows: Iterable[Row], processes: int) -> None:
        """Train and evaluate each row that has no record."""
        missing = [row for row in rows if self.again or not self.record(row)]
        with ThreadPoolExecutor(processes) as pool:
            try:
                list(pool.map(self._run, missing))
            except BaseException:  # what has not begun must not begin
                pool.shutdown(cancel_futures=True)
                raise

    def commands(self, row: Row) -> list[str]:
        """Return the commands that make a row: a training for each seed, and an evaluation."""
        calls = [*map(self.train, row.trainings(self.scale.seeds)), self.evaluate(row)]
        return [shlex.join(["dpok", *call]) for call in calls]

    def train(self, training: Training) -> list[str]:
        """Return the arguments of `dpok` that train it."""
        arm, scale = training.arm, self.scale
        rounds = scale.rounds_of_many if training.prompts.size > 1 else scale.rounds
        own: dict[str, Any]
        if arm.command == "train-sft":  # on as many images as RL draws
            images = next(iter(training.needs()), training)  # its own, or those of another
            own = {"images": 24 * rounds, "steps": scale.sft_steps}
            own["dataset"] = self.folder / "images" / images.name
        else:
            own = {"rounds": scale.rounds_of_paper if "preset" in arm.flags else rounds}
            own |= scale.rl
            for source in training.needs():
                own["init_adapter"] = self._folder(source) / "adapter"
        return arguments(
            arm.command,
            prompts=self._prompt_files(training.prompts)[0],
            seed=training.seed,
            **own,
            **arm.flags,
            sample_every=scale.grids if arm.command == "train-rl" else 0,
            evaluation_samples=0,
            tracker="",
            runs_dir=self.folder,
            name=training.name,
        )

    def evaluate(self, row: Row) -> list[str]:
        """Return the arguments of `dpok` that compare a row's trainings with the base."""
        seen, unseen = self._prompt_files(row.prompts)
        many = row.prompts.size > 10
        return arguments(
            "evaluate",
            run=[
                f"seed-{each.seed}={self._folder(each)}" for each in row.trainings(self.scale.seeds)
            ],
            prompts=seen,
            **({"unseen_prompts_file": unseen} if has_unseen(row) else {}),
            reward=REWARDS,
            samples=self.scale.samples_of_many if many else self.scale.samples,
            output=self._evaluation(row),
        )

    def _run(self, row: Row) -> None:
        trainings = row.trainings(self.scale.seeds)
        for training in trainings:
            self._train(training)
        evaluation = self._evaluation(row)
        if not (evaluation / "report.html").exists():
            dpok(self.evaluate(row), evaluation.with_suffix(".log"))
        record = {
            "commands": self.commands(row),
            **read_evaluation(evaluation),
            "runs": {str(each.seed): read_run(self._folder(each)) for each in trainings},
        }
        first = f"seed-{self.scale.seeds[0]}"
        show(evaluation / "images", (BASE, first), self.records / f"{row.name}.png")
        (self.records / f"{row.name}.json").write_text(dumps(record), encoding="utf-8")

    def _train(self, training: Training) -> None:
        for source in training.needs():
            self._train(source)
        run = self._folder(training)
        with self.training[training.name]:  # two rows may need it
            if not (run / "summary.json").exists():
                started = (run / "config.toml").exists()
                resume = [training.arm.command, "--resume", str(run)]
                dpok(resume if started else self.train(training), run.with_suffix(".log"))

    def _folder(self, training: Training) -> Path:
        return self.folder / training.name

    def _evaluation(self, row: Row) -> Path:
        return self.folder / f"evaluation-{row.name}"

    def _prompt_files(self, prompts: PromptSet) -> list[Path]:
        """Return the files of a set's seen and unseen prompts, by category."""
        files = []
        for kind, content in (("", prompts.seen), ("-unseen", prompts.unseen)):
            files.append(self.folder / f"{prompts.name}{kind}.json")
            text = dumps(content, indent=2)
            if not files[-1].exists() or files[-1].read_text(encoding="utf-8") != text:
                files[-1].write_text(text, encoding="utf-8")
        return files


def read_run(run: Path) -> dict[str, Any]:
    """Return a run's rewards and grids on the way, each a list over its rounds or steps."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    kept = ("denoiser_evaluations", "reward/mean", "kl", "grid/reward", "grid/diversity_kept")
    return {
        key: [float(f"{number:.4g}") if number else number for number in numbers]
        for key in kept
        if any(numbers := [each.get(key) for each in records])
    } | {"denoiser_evaluations": [each["denoiser_evaluations"] for each in records]}


def read_evaluation(folder: Path) -> dict[str, Any]:
    """Return the means of a row: scores[group][category][measure][seed], "base" among the seeds.

    All prompts of a group are in the category "".
    """
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    scores: dict[str, Any] = {}
    for row in results["rows"]:
        if row["scope"] in ("group", "category"):
            of_group = scores.setdefault(row["group"], {}).setdefault(row["category"] or "", {})
            seed = row["model"].removeprefix("seed-")
            of_group.setdefault(row["measure"], {})[seed] = float(f"{row['mean']:.5g}")
    for group, categories in scores.items():
        categories[""]["warnings"] = _warnings(results, group)
    return {"scores": scores, "warnings": [each["text"] for each in results["warnings"]]}


def _warnings(results: dict[str, Any], group: str) -> dict[str, int]:
    """Return how many warnings an evaluation gives of each model."""
    return {
        model["name"].removeprefix("seed-"): sum(
            each["model"] == model["name"] and each["group"] == group
            for each in results["warnings"]
        )
        for model in results["models"]
    }


def arguments(command: str, **flags: Any) -> list[str]:
    """Return a command with its flags, of which a sequence is one for each of its values."""
    return [command, *_flags(flags)]


def _flags(flags: dict[str, Any]) -> Iterator[str]:
    for key, value in flags.items():
        for one in value if isinstance(value, list | tuple) else [value]:
            yield f"--{key.replace('_', '-')}"
            yield str(one)


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

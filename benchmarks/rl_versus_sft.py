"""RL against supervised fine-tuning on equal numbers of images: four prompts, three seeds.

    python benchmarks/rl_versus_sft.py [--output FOLDER] [--evaluation-samples 64] [--seeds 0,1,2]

Trains with both commands' presets on the paper's prompts and the tiny world, one run at a time.
`--images` of SFT equals the images that RL samples (rounds x samples-per-round). Each run's
summary.json holds reward and judge on the same fresh seeds. A run with a summary is not repeated,
and an interrupted run is resumed. Prints a Markdown table and writes it, with its numbers, to
table.md and table.json.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

from dpok_cli.engine.rl.settings import TrainRLConfig
from dpok_cli.strict_json import dumps, numbers

PROMPTS = (
    "A green colored rabbit.",
    "A cat and a dog.",
    "Four wolves in the park.",
    "A dog on the moon.",
)
MEASURES = ("image-reward", "judge", "pixel_distance")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("build/rl_versus_sft"))
    parser.add_argument("--evaluation-samples", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=TrainRLConfig.rounds)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--sft", default="", help="Additional flags of train-sft, in one string.")
    parser.add_argument("--rl", default="", help="Additional flags of train-rl, in one string.")
    given = parser.parse_args()
    images = given.rounds * TrainRLConfig.samples_per_round
    methods = {
        "rl": ["train-rl", "--rounds", str(given.rounds), *given.rl.split()],
        "sft": ["train-sft", "--images", str(images), *given.sft.split()],
    }
    results = []
    for prompt in PROMPTS:
        for seed in map(int, given.seeds.split(",")):
            for method, flags in methods.items():
                name = f"{method}-{PROMPTS.index(prompt)}-{seed}"
                summary = train(given.output, name, prompt, seed, flags, given.evaluation_samples)
                results.append({"method": method, "prompt": prompt, "seed": seed} | summary)
    table = markdown(results, images, given.evaluation_samples)
    (given.output / "table.md").write_text(table, encoding="utf-8")
    (given.output / "table.json").write_text(dumps(results, indent=2), encoding="utf-8")
    print(table)


def train(
    output: Path, name: str, prompt: str, seed: int, flags: list[str], evaluation_samples: int
) -> dict[str, dict[str, float]]:
    """Run or resume an unfinished run; return the "before" and "after" of its summary."""
    run = output / name
    if not (run / "summary.json").exists():
        dpok = [sys.executable, "-m", "dpok_cli"]
        if (run / "config.toml").exists():
            command = [*dpok, flags[0], "--resume", str(run)]
        else:
            command = [*dpok, *flags, "--prompt", prompt, "--seed", str(seed)]
            command += ["--runs-dir", str(output), "--name", name, "--sample-every", "0"]
            command += ["--evaluation-samples", str(evaluation_samples)]
        print(name, file=sys.stderr, flush=True)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return {side: numbers(summary[side]) for side in ("before", "after")}


def markdown(results: list[dict], images: int, evaluation_samples: int) -> str:
    """Make the table: mean and standard deviation over seeds, per prompt and over all."""
    lines = [
        f"{images} images each; {evaluation_samples} fresh seeds per run.",
        "",
        "| prompt | measure | before | SFT | RL | RL above SFT |",
        "|---|---|---|---|---|---|",
    ]
    for prompt in (*PROMPTS, "all"):
        rows = [row for row in results if prompt in (row["prompt"], "all")]
        for measure in MEASURES:
            before = [row["before"][measure] for row in rows]
            sft, rl = (
                [row["after"][measure] for row in rows if row["method"] == method]
                for method in ("sft", "rl")
            )
            wins = sum(a > b for a, b in zip(rl, sft, strict=True))
            cells = [f"{mean(before):.3f}", spread(sft), spread(rl), f"{wins} of {len(rl)}"]
            lines.append("| " + " | ".join([prompt, measure, *cells]) + " |")
    return "\n".join(lines) + "\n"


def spread(values: list[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()

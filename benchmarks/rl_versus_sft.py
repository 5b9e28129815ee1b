"""RL against supervised fine-tuning, given as many images: the paper's four prompts, three seeds.

    python benchmarks/rl_versus_sft.py [--output FOLDER] [--evaluation-samples 64] [--seeds 0,1,2]

Trains with both commands' presets on the tiny world, one run at a time; `--images` of SFT is what
RL draws (rounds x samples-per-round). Each run's summary.json tells reward and judge on the same
fresh seeds. A run whose summary is there is not run again, and one that was cut off is gone on
with. Prints a Markdown table and leaves it, with its numbers, as table.md and table.json.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

from dpok_cli.config import TrainRLConfig

PROMPTS = (
    "A green colored rabbit.",
    "A cat and a dog.",
    "Four wolves in the park.",
    "A dog on the moon.",
)
MEASURES = ("image-reward", "judge", "diversity")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("build/rl_versus_sft"))
    parser.add_argument("--evaluation-samples", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=TrainRLConfig.rounds)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--sft", default="", help="More flags of train-sft, as one text.")
    parser.add_argument("--rl", default="", help="More flags of train-rl, as one text.")
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
    (given.output / "table.json").write_text(json.dumps(results, indent=2), encoding="utf-8")
    print(table)


def train(
    output: Path, name: str, prompt: str, seed: int, flags: list[str], evaluation_samples: int
) -> dict[str, dict[str, float]]:
    """Run to its end what has not been, and return its "before" and "after"."""
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
    return {side: summary[side] for side in ("before", "after")}


def markdown(results: list[dict], images: int, evaluation_samples: int) -> str:
    """Make the table: mean and standard deviation over the seeds, by prompt and over all."""
    lines = [
        f"{images} images each; {evaluation_samples} fresh seeds a run.",
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

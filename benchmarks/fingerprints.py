"""Digests of what the commands make from fixed seeds: to show that a refactor changes no number.

    python benchmarks/fingerprints.py --write before.json     # on one commit
    python benchmarks/fingerprints.py --compare before.json   # on another, on the same machine

Images are compared byte for byte, adapters weight for weight; metrics and results as numbers,
without seconds, versions and paths. Everything runs in one thread, so that sums are added up in one
order.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors import safe_open

from dpok_cli.strict_json import dumps

RABBIT = ["--prompt", "a green colored rabbit"]
SMALL = "--samples-per-round 8 --batch-size 20 --evaluation-samples 4 --sample-count 4".split()
IMAGES = "--images 16 --steps 12 --batch-size 8 --evaluation-samples 4 --sample-count 4".split()
COMMANDS = {
    "rl": ["train-rl", *RABBIT, "--rounds", "3", "--evaluation-samples", "8"],
    "rl-value": [
        *("train-rl", *RABBIT, *SMALL, "--rounds", "3"),
        *"--advantage value --buffer-size 120 --value-updates 2".split(),
    ],
    "rl-two": [
        *("train-rl", *RABBIT, "--prompt", "A dog on the moon.", *SMALL, "--rounds", "2"),
        *"--kl gaussian --timestep-choice random --gradient-accumulation 2".split(),
    ],
    "rl-paper": [
        *("train-rl", *RABBIT, *SMALL, "--rounds", "2"),
        *"--advantage reward --clip-form clamp --timestep-fraction 1 --guidance-scale 1".split(),
    ],
    "sft-d": ["train-sft", *RABBIT, *IMAGES, "--kl-form", "kl-d", "--gamma", "1"],
    "sft-o": [
        "train-sft",
        *RABBIT,
        *IMAGES,
        "--kl-form",
        "kl-o",
        "--gamma",
        "0.5",
        "--reward",
        "judge",
    ],
}
DRAWN = "sample --run rl --before --seeds 0-3 --output drawn".split()
EVALUATED = "evaluate --run rl --unseen-prompts --samples 4 --output evaluated".split()
#: New names of the keys of records, by their old names.
RENAMED = {"unet_rows": "denoiser_evaluations"}


def fingerprints(folder: Path) -> dict[str, str]:
    """Run the commands in ``folder``; returns a digest by what was made."""
    found = {}
    for name, command in COMMANDS.items():
        dpok(folder, *command, "--name", name, "--seed", "0", "--device", "cpu")
        run = folder / "runs" / name
        found[f"{name}: adapter"] = weights(next((run / "adapter").glob("*.safetensors")))
        lines = (run / "metrics.jsonl").read_text().splitlines()
        found[f"{name}: metrics"] = digest([without_seconds(json.loads(line)) for line in lines])
        found[f"{name}: before and after"] = digest(summary(run))
        found[f"{name}: grids"] = digest([sha256(f) for f in sorted(run.glob("samples/*.png"))])
    dpok(folder, *DRAWN)
    for file in sorted(folder.glob("drawn/**/*.png")):
        found[f"{file.relative_to(folder)}"] = sha256(file)
    dpok(folder, *EVALUATED)
    results = json.loads((folder / "evaluated" / "results.json").read_text())
    rows = [row for row in results["rows"] if row["measure"] != "pixel_distance"]
    found["evaluated: rows"] = digest(rows)
    return found


def dpok(folder: Path, *arguments: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "dpok_cli", *arguments]
    print("dpok", *arguments, file=sys.stderr, flush=True)
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)


def without_seconds(record: dict[str, float]) -> dict[str, float]:
    return {
        RENAMED.get(key, key): value
        for key, value in sorted(record.items())
        if not key.startswith("seconds/")
    }


def summary(run: Path) -> dict[str, dict[str, float]]:
    """The scores of summary.json; its "diversity" was the pixel distance."""
    read = json.loads((run / "summary.json").read_text())
    found = {}
    for when in ("before", "after"):
        measured = read[when]
        distance = measured.pop("pixel_distance", measured.get("diversity"))
        measured.pop("diversity", None)
        found[when] = measured | {"pixel_distance": distance}
    return found


def weights(file: Path) -> str:
    """A digest of an adapter's weights; older versions have other names for some of them."""
    found = {}
    with safe_open(file, "np") as opened:
        for name in opened.keys():  # noqa: SIM118
            today = name.replace(".lora.down.", ".lora_A.").replace(".lora.up.", ".lora_B.")
            found[today] = hashlib.sha256(opened.get_tensor(name).tobytes()).hexdigest()
    return digest(found)


def digest(value: object) -> str:
    return hashlib.sha256(dumps(value, sort_keys=True).encode()).hexdigest()


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", type=Path, help="where to keep the digests")
    parser.add_argument("--compare", type=Path, help="digests to compare with")
    parser.add_argument("--folder", type=Path, help="keep what was made here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        found = fingerprints(folder)
    if options.write:
        options.write.write_text(dumps(found, indent=2) + "\n")
    before = json.loads(options.compare.read_text()) if options.compare else found
    other = [name for name in before.keys() | found.keys() if before.get(name) != found.get(name)]
    for name in sorted(other):
        print("differs:", name)
    print(f"{len(before) - len(other)} of {len(before)} are equal.")
    sys.exit(bool(other))


if __name__ == "__main__":
    main()

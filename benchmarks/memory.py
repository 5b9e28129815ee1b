"""Peak memory of a round of `train-rl` at Stable Diffusion 1.5's size, by setting.

    python benchmarks/memory.py [--case NAME] [--height 512] [--model FOLDER] [--json FILE]

Each case is a process of its own, which loads a pipeline with random weights (made in FOLDER if it
is not there) and trains one round of two images, two steps each, in one update of four transitions
with guidance. The peak is that of the device: what torch allocated on a GPU; on a CPU how far the
process's largest resident set is above the one before the model is loaded, of the libraries.
Prints a Markdown table, each case over the first.
"""

import argparse
import copy
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil

from dpok_cli.allocator import keep_freed_memory
from dpok_cli.config import resolve
from dpok_cli.engine.rl.settings import TrainRLConfig
from dpok_cli.strict_json import dumps

#: The case with this name keeps a copy of the UNet as the reference model, as other trainers do.
SECOND = "a second UNet as the reference"
CASES: dict[str, dict[str, Any]] = {
    SECOND: {},
    "the adapter switched off": {},
    "the adapter switched off, without checkpointing": {"gradient_checkpointing": False},
    "the adapter switched off, bf16": {"precision": "bf16"},
    "the adapter switched off, passes of 1 transition": {
        "batch_size": 1,
        "gradient_accumulation": 4,
        "sample_batch_size": 1,
    },
}
ROUND = dict(
    objective="dpok",
    noise_window=False,
    kl_fraction=1.0,
    rewards=("jpeg-compressibility",),
    rounds=1,
    samples_per_round=2,
    num_inference_steps=2,
    timestep_fraction=1.0,
    group_size=1,
    updates_per_round=1,
    batch_size=4,
    guidance_scale=7.5,
    gradient_checkpointing=True,
    sample_every=0,
    tracker="",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--case", action="append", choices=CASES, help="By default all.")
    parser.add_argument("--height", type=int, default=512, help="Pixels, and as many across.")
    parser.add_argument("--model", type=Path, default=Path("build/memory/sd15"))
    parser.add_argument("--json", type=Path, help="File for the numbers.")
    parser.add_argument("--alone", action="store_true", help="Measure the one case, as a child.")
    given = parser.parse_args()
    cases = given.case or list(CASES)
    if given.alone:
        print(peak_of(cases[0], given.model, given.height))
        return
    if not given.model.exists():
        sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
        from random_pipeline import make

        make("sd15", tiny=False).save_pretrained(given.model)
    found = {}
    for case in cases:
        command = [sys.executable, __file__, "--alone", "--case", case]
        command += ["--model", str(given.model), "--height", str(given.height)]
        print(case, file=sys.stderr, flush=True)
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[case] = int(done.stdout)
    if given.json:
        given.json.write_text(dumps(found, indent=2) + "\n", encoding="utf-8")
    first = found[cases[0]]
    print("| reference model | peak (GB) | of the first |\n|---|---|---|")
    for case, peak in found.items():
        print(f"| {case} | {peak / 1e9:.2f} | {peak / first:.0%} |")


def peak_of(case: str, model: Path, height: int) -> int:
    """Train the round of a case in this process; returns its peak in bytes."""
    keep_freed_memory()  # as the command does, before torch is imported
    import torch

    from dpok_cli.engine.bases.denoiser import Denoiser
    from dpok_cli.engine.bases.load import load
    from dpok_cli.engine.rl.loop import train_rl
    from dpok_cli.engine.sampling.sampler import Sampler
    from dpok_cli.rewards.manager import build

    place = {"model": str(model), "height": height, "width": height, "prompts": ("a rabbit",)}
    config = resolve(TrainRLConfig, **ROUND | place | CASES[case])
    libraries = psutil.Process().memory_info().rss
    loaded = load(config)
    reward = build(config.rewards, loaded.device)
    if case == SECOND:
        network = copy.deepcopy(loaded.base.network)
        second = Sampler(loaded, config, Denoiser(loaded.base, network, loaded.adapter))
        # The copy's adapter, which changes nothing yet, stays on.
        with patch.object(Sampler, "reference", staticmethod(torch.no_grad()(second.policy))):
            list(train_rl(config, loaded, reward))
    else:
        list(train_rl(config, loaded, reward))
    if loaded.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    scale = 1 if sys.platform == "darwin" else 1024  # what ru_maxrss counts in
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale - libraries


if __name__ == "__main__":
    main()

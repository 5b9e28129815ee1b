"""Reproduce the tiny world's models: ``python examples/tiny_world/make.py``.

Each stage keeps its training state under ``--work`` and resumes after an interruption. The weights
and the model card are written to ``--output`` (by default the package's folder).
"""

import argparse
import importlib
import os
from pathlib import Path

from dpok_cli.allocator import keep_freed_memory

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("vae", "judge", "diffusion", "polish", "image_reward", "clip", "aesthetic", "card")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)}")
    parser.add_argument("--output", type=Path, default=ROOT / "dpok_cli" / "tiny")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "tiny_world")
    parser.add_argument("--threads", type=int, default=1, help="more hardly help with small nets")
    args = parser.parse_args()
    if unknown := set(args.stages) - set(STAGES):
        parser.error(f"no such stage: {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    keep_freed_memory()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import torch

    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    for name in args.stages or STAGES:
        importlib.import_module(name).main(args.work, args.output)


if __name__ == "__main__":
    main()

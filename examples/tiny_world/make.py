"""Make the tiny world's models again: ``python examples/tiny_world/make.py``.

Each stage leaves its training state under ``--work`` and is taken up where it was cut off. The
weights land in ``--output`` (by default where the package keeps them) with their model card.
"""

import argparse
import os
import sys
from pathlib import Path

# Page faults make CPU training several times slower with glibc's defaults; these must be set
# before the process starts.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "20000000000",
    "MALLOC_TOP_PAD_": "268435456",
    "OMP_WAIT_POLICY": "passive",
}
ROOT = Path(__file__).resolve().parents[2]
STAGES = ("vae", "diffusion", "judge", "image_reward", "card")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="*", choices=[*STAGES, []], default=list(STAGES))
    parser.add_argument("--output", type=Path, default=ROOT / "dpok_cli" / "tiny")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "tiny_world")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    args = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in MALLOC.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | MALLOC)
    sys.path.insert(0, str(ROOT))
    import importlib

    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    for name in args.stages:
        importlib.import_module(name).main(args.work, args.output)


if __name__ == "__main__":
    main()

"""The reward ``image-reward-package``: the published package ``image-reward`` itself.

It runs in an environment with the versions that it was made for: today's transformers lacks
functions that it needs. ``image_reward_package_worker`` is what runs there.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dpok_cli import Environment, EnvironmentReward, hookimpl
from dpok_cli.errors import RewardError

#: The name of the published checkpoint, and where the package's own loader keeps it.
PUBLISHED, CACHE = "ImageReward-v1.0", "~/.cache/ImageReward"


class ImageRewardPackage(EnvironmentReward):
    """ImageReward by its published package, in an environment of its own; as `image-reward`."""

    name = "image-reward-package"
    batch_size = 16
    environment = Environment(
        requirements=(
            "image-reward==1.5",
            "clip-anytorch==2.6.0",  # it imports clip, and does not require it
            "torch",
            "torchvision",
            # What it imports, in versions of its time.
            "accelerate==0.16.0",
            "datasets==2.11.0",
            "diffusers==0.16.0",
            "huggingface_hub<0.26",
            "transformers==4.30.2",
            # What these import, before it lost what they use.
            "fsspec<2024",
            "numpy<2",
            "pandas<3",
            "pyarrow<16",
            "setuptools<81",
        ),
        python=("3.11", "3.10", "3.9"),
        shared=("torch", "torchvision"),
    )
    worker = Path(__file__).with_name("image_reward_package_worker.py")

    @dataclass(frozen=True)
    class Options:
        """``model``: as the package takes it, or a folder with ``ImageReward.pt``."""

        model: str = PUBLISHED

    def files(self, local_only: bool = False) -> tuple[Path, ...]:
        model = self.options.model
        folder = Path(os.path.expanduser(CACHE if model == PUBLISHED else model))
        files = folder / "ImageReward.pt", folder / "med_config.json"
        if lacking := [file.name for file in files if not file.is_file()]:
            raise RewardError(f"{folder} has no {' and no '.join(lacking)}")
        return files


@hookimpl
def register_rewards(register):
    register(ImageRewardPackage)

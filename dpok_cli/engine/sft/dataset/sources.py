"""Where the images of supervised fine-tuning come from: the reference model, or a folder."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps

from dpok_cli.config import TrainSFTConfig
from dpok_cli.engine.bases.conditioning import Conditioning
from dpok_cli.engine.bases.fingerprint import fingerprint
from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.engine.sampling.sampler import Sampler
from dpok_cli.engine.sampling.seeds import first_image_set_seed
from dpok_cli.engine.sft.dataset.imagefolder import METADATA, own_entries
from dpok_cli.engine.sft.dataset.store import Picture
from dpok_cli.inputs import read_image


class ImageSource(Protocol):
    """M images, which can be taken in any order and any batches."""

    #: The settings that an image set on disk must match.
    settings: dict[str, Any]
    #: Denoiser evaluations that drawing all the images takes; guidance takes two a sample.
    evaluations: int

    def __len__(self) -> int: ...

    def take(self, rows: Sequence[int]) -> list[Picture]:
        """Return the images of these rows."""
        ...


class Reference:
    """Images drawn from the reference model, one prompt after another, each from its own seed."""

    def __init__(
        self, config: TrainSFTConfig, sampler: Sampler, conditioning: Conditioning, seed: int
    ):
        """``conditioning`` is of the config's prompts; ``seed`` is the image set's."""
        self.config, self.sampler, self.conditioning = config, sampler, conditioning
        self.first_seed = first_image_set_seed(seed)
        rows = sampler.model.base.rows(config.guidance_scale)
        self.evaluations = config.images * config.num_inference_steps * rows
        keys = "num_inference_steps guidance_scale eta negative_prompt precision".split()
        self.settings = {
            "model": config.model,
            "weights": fingerprint(sampler.model),
            "size": list(sampler.model.size),
            "prompts": list(config.prompts),
            **{key: getattr(config, key) for key in keys},
            "seed": seed,
        }

    def __len__(self) -> int:
        return self.config.images

    def take(self, rows: Sequence[int]) -> list[Picture]:
        if not rows:
            return []
        prompts = self.config.prompts
        which = [row % len(prompts) for row in rows]
        seeds = [self.first_seed + row for row in rows]
        with self.sampler.model.reference():
            latents = self.sampler.latents(self.conditioning[which], seeds)
        pixels = (self.sampler.decode(latents) * 255).round().byte().cpu()
        return [
            Picture({"text": prompts[number], "seed": seed}, pixels[row], latents[row].cpu())
            for row, (number, seed) in enumerate(zip(which, seeds, strict=True))
        ]


class OwnFolder:
    """The images of a user's folder, cropped to the model's size and encoded; only read."""

    evaluations = 0

    def __init__(self, folder: Path, model: DiffusionModel):
        self.folder, self.model = folder, model
        self.entries = own_entries(folder)
        self.settings = {
            "folder": str(folder.resolve()),
            METADATA: hashlib.sha256((folder / METADATA).read_bytes()).hexdigest(),
            "weights": fingerprint(model),
            "size": list(model.size),
        }

    def __len__(self) -> int:
        return len(self.entries)

    @torch.no_grad()
    def take(self, rows: Sequence[int]) -> list[Picture]:
        if not rows:
            return []
        entries = [self.entries[row] for row in rows]
        pixels = torch.stack([self._read(self.folder / entry["file_name"]) for entry in entries])
        latents = self.model.encode_images(pixels.to(self.model.device) / 255).cpu()
        return [
            Picture({"text": entry["text"], "source": entry["file_name"]}, *images)
            for entry, *images in zip(entries, pixels, latents, strict=True)
        ]

    def _read(self, file: Path) -> torch.Tensor:
        height, width = self.model.size
        image = ImageOps.fit(read_image(file), (width, height), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

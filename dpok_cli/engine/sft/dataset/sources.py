"""Where the images of supervised fine-tuning come from: the reference, or a person's folder."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps

from dpok_cli.config import TrainSFTConfig
from dpok_cli.engine.bases.model import Conditioning, DiffusionModel
from dpok_cli.engine.rl.rollout import denoise
from dpok_cli.engine.sampling.step import Denoising
from dpok_cli.engine.sft.dataset.imagefolder import FORMATS, METADATA, own_entries
from dpok_cli.engine.sft.dataset.store import Picture
from dpok_cli.errors import InputError, TrainingError


class ImageSource(Protocol):
    """M images, each of which can be had at any time, alone or in any batch."""

    #: What a set on disk must agree with.
    settings: dict[str, Any]
    #: UNet batch rows that all the images cost, guidance counted twice.
    unet_rows: int

    def __len__(self) -> int: ...

    def take(self, rows: Sequence[int]) -> list[Picture]:
        """Return the images of these rows."""
        ...


class Reference:
    """Images drawn from the pre-trained model, prompt after prompt in turn, each from its seed."""

    def __init__(
        self,
        config: TrainSFTConfig,
        model: DiffusionModel,
        conditioning: Conditioning,
        seed: int,
        autocast: Callable[[], AbstractContextManager[None]],
    ):
        """``conditioning`` is of the config's prompts; ``seed`` is the set's."""
        self.config, self.model, self.conditioning = config, model, conditioning
        self.autocast = autocast
        self.denoising = Denoising.of(
            model.scheduler, config.num_inference_steps, config.eta, model.device
        )
        # In the upper half of all seeds, in a row: none comes twice, and none is one of those that
        # samples and evaluations are drawn from.
        start = np.random.SeedSequence([seed, *b"image set"]).generate_state(1, np.uint64)[0]
        self.first_seed = 2**62 + int(start) % 2**61
        guided = 2 if config.guidance_scale > 1 else 1
        self.unet_rows = config.images * config.num_inference_steps * guided
        sampler = "prompts num_inference_steps guidance_scale eta negative_prompt precision".split()
        self.settings = {
            "model": config.model,
            "weights": fingerprint(model),
            "size": list(model.size),
            **{key: getattr(config, key) for key in sampler},
            "prompts": list(config.prompts),
            "seed": seed,
        }

    def __len__(self) -> int:
        return self.config.images

    @torch.no_grad()
    def take(self, rows: Sequence[int]) -> list[Picture]:
        model, prompts = self.model, self.config.prompts
        if not rows:
            return []
        which = [row % len(prompts) for row in rows]
        seeds = [self.first_seed + row for row in rows]
        with self.autocast(), model.reference():
            *_, last = denoise(
                model, self.denoising, self.conditioning[which], seeds, self.config.guidance_scale
            )
        latents = last.latents
        images = model.decode(latents)
        if not images.isfinite().all():
            raise TrainingError(
                f"The images of the seeds {seeds[0]} and on are not finite: draw in --precision"
                " fp32."
            )
        pixels = (images * 255).round().byte().cpu()
        return [
            Picture({"text": prompts[number], "seed": seed}, pixels[row], latents[row].cpu())
            for row, (number, seed) in enumerate(zip(which, seeds, strict=True))
        ]


class OwnFolder:
    """A person's images, cut to the model's size and encoded; their files stay as they are."""

    unet_rows = 0

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
        try:
            with Image.open(file, formats=FORMATS) as opened:
                upright = ImageOps.exif_transpose(opened).convert("RGB")
                image = ImageOps.fit(upright, (width, height), Image.Resampling.BICUBIC)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(f"{file} cannot be read as an image: {error}.") from error
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def fingerprint(model: DiffusionModel) -> str:
    """Return the SHA-256 of all that an image depends on in a model, its adapter left out."""
    noise = [each for each in model.scheduler.config.items() if not each[0].startswith("_")]
    digest = hashlib.sha256(repr(sorted(noise)).encode())
    pipeline = model.pipeline
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        for name, weight in part.named_parameters():
            if ".lora_" not in name:
                flat = weight.detach().cpu().contiguous().flatten()
                digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

"""What a family of models brings: its texts, its denoiser's call, its schedule, its latents.

The loops, objectives, checkpoints and evaluations know none of it. Latents are (C, h, w)
everywhere else; packing and the like stay within one call of a base.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dpok_cli.engine.bases.conditioning import Conditioning, Text
from dpok_cli.engine.bases.families import Family
from dpok_cli.engine.bases.schedule import Schedule
from dpok_cli.errors import InputError


class Base(ABC):
    """A family's model: a pipeline of diffusers, of which only the denoiser is trained."""

    #: The class of its pipelines in diffusers.
    pipeline_class: ClassVar[Any]
    #: What its pipelines are loaded with.
    options: ClassVar[dict[str, Any]] = {}
    #: Whether the guidance scale is an input of the denoiser, as in FLUX.1.
    embeds_guidance: ClassVar[bool] = False
    #: Whether the output of some layers goes nowhere, so that they get no gradient.
    has_unused_layers: ClassVar[bool] = False

    #: The scheduler whose noise schedule is used.
    scheduler: Any

    def __init__(self, pipeline: Any, family: Family):
        self.pipeline, self.family = pipeline, family

    @property
    def network(self) -> Any:
        """The denoiser."""
        return getattr(self.pipeline, self.family.denoiser)

    @cached_property  # diffusers looks at all weights, which is much for every call
    def dtype(self) -> torch.dtype:
        return self.network.dtype

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def scale(self) -> int:
        """Pixels of an image to one of its latents, along a side."""
        return self.pipeline.vae_scale_factor

    def encoders(self) -> dict[str, Any]:
        """Return the text encoders that are in the pipeline, by their names there."""
        names = self.family.encoders
        return {name: each for name in names if (each := getattr(self.pipeline, name, None))}

    @property
    def vae_channels(self) -> int:
        """The channels of the VAE's latents."""
        return self.pipeline.vae.config.latent_channels

    @property
    def text_device(self) -> torch.device:
        """The device of the text encoders."""
        return next(iter(self.encoders().values())).device

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return (C, h, w) of images of this size in pixels, 0 for the model's own.

        Raises InputError for a size that the family cannot draw.
        """
        for flag, pixels in (("--height", height), ("--width", width)):
            if pixels % self.family.multiple:
                raise InputError(
                    f"{flag} {pixels}: must be a multiple of {self.family.multiple} for"
                    f" {self.family.name}."
                )
        own_rows, own_columns = self.own_size
        rows, columns = height // self.scale or own_rows, width // self.scale or own_columns
        if not (rows and columns):
            raise InputError("The model does not say its size: give --height and --width.")
        return self.channels, rows, columns

    @property
    def own_size(self) -> tuple[int, int]:
        """h and w of the latents of the images that the model was trained for; 0 if unknown."""
        own = self.network.config.sample_size or 0
        return (own, own) if isinstance(own, int) else tuple(own)

    @property
    def channels(self) -> int:
        """C, the channels of latents."""
        return self.network.config.in_channels

    @property
    @abstractmethod
    def text_shape(self) -> tuple[int, int, int]:
        """L, at the most, D and P of a `Text`; P is 0 for a family without pooled vectors."""

    # ------------------------------------------------------------------------------------ the model

    def check_negative(self, negative: str) -> None:
        """Raise InputError for a negative prompt, if the family takes none."""
        if negative and self.embeds_guidance:
            raise InputError(
                f"--negative-prompt: {self.family.name} takes none, as its guidance is an input of"
                " the model."
            )

    @abstractmethod
    def encode(self, prompts: Sequence[str], negative: str) -> tuple[Text, Text]:
        """Return the texts of B prompts, one at least, and of the negative one.

        The text encoders are in the pipeline.
        """

    @property
    def reader(self) -> tuple[Any, int]:
        """The tokenizer of the encoder that reads most of a prompt, and how many tokens it reads.

        Those include the ones that it puts before the first word and after the last.
        """
        return self.pipeline.tokenizer, self.pipeline.tokenizer.model_max_length

    def unread(self, prompt: str) -> str:
        """Return the end of a prompt that no encoder sees, as its tokenizer writes it, or ""."""
        tokenizer, limit = self.reader
        *tokens, _ = tokenizer(prompt).input_ids  # the last one says that the text ends
        return tokenizer.decode(tokens[limit - 1 :]).strip()

    @abstractmethod
    def predict(
        self,
        network: nn.Module,
        latents: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        guidance_scale: float,
    ) -> Tensor:
        """Return the (guided) output, float32 (B, C, h, w), for float32 latents at timesteps (B,).

        ``network`` is the denoiser, which may be wrapped for many processes.
        """

    def rows(self, guidance_scale: float) -> int:
        """Return how many rows of a sample go through the denoiser: guidance may take two.

        Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598) runs both in one batch; a
        scale of 1 or less turns it off.
        """
        return 2 if guidance_scale > 1 else 1

    def inputs(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, guidance_scale: float
    ) -> tuple[Tensor, Tensor, Text]:
        """Return latents, timesteps and texts of all rows that go through the denoiser.

        For guidance those of the negative prompt come first. Texts have the denoiser's dtype.
        """
        text = conditioning.prompts
        if self.rows(guidance_scale) == 2:
            text = conditioning.doubled()
            latents, timesteps = latents.repeat(2, 1, 1, 1), timesteps.repeat(2)
        return latents, timesteps, text.to(self.dtype, latents.device)

    def combined(self, output: Tensor, guidance_scale: float) -> Tensor:
        """Return the guided output (B, ...) of that of all rows of `inputs`."""
        return guided(output, guidance_scale) if self.rows(guidance_scale) == 2 else output

    @abstractmethod
    def kept(self, latent_shape: tuple[int, int, int]) -> int:
        """Return how many values the denoiser keeps at once of a row, at the least."""

    @abstractmethod
    def schedule(self, num_inference_steps: int, latent_shape: tuple[int, int, int]) -> Schedule:
        """Return the steps of a sampler; raises InputError for a number that it cannot give."""

    def call_arguments(self, guidance_scale: float, negative: str) -> dict[str, Any]:
        """Return how the pipeline's call takes guidance and the negative prompt."""
        given = {"negative_prompt": negative} if negative else {}
        return {"guidance_scale": guidance_scale} | given

    def ddim_arguments(self) -> dict[str, Any] | None:
        """Return what `DDIMScheduler.from_config` needs besides the config of the pipeline's.

        None if the pipeline's own scheduler draws what the base draws.
        """
        return None

    # -------------------------------------------------------------------- supervised fine-tuning

    @abstractmethod
    def draw_timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw the timesteps (count,) that images are noised at, on the CPU."""

    @abstractmethod
    def corrupt(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return x_t and what the denoiser should predict of it, both (B, C, h, w)."""

    # ---------------------------------------------------------------------------------- the VAE

    def to_vae(self, latents: Tensor) -> Tensor:
        """Return latents on the scale of the VAE: the inverse of `from_vae`."""
        return latents / self.pipeline.vae.config.scaling_factor

    def from_vae(self, latents: Tensor) -> Tensor:
        return latents * self.pipeline.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, 3, H, W) in [-1, 1] of latents on the scale of the VAE."""
        return self.pipeline.vae.decode(latents).sample

    def encode_images(self, images: Tensor) -> Tensor:
        """Return latents on the scale of the VAE, the means, of images in [-1, 1]."""
        return self.pipeline.vae.encode(images).latent_dist.mode()


def guided(output: Tensor, guidance_scale: float) -> Tensor:
    """Return u + w (c - u) of an output (2 B, ...) for the negative prompt, then the prompts."""
    without, with_prompt = output.chunk(2)
    return without + guidance_scale * (with_prompt - without)

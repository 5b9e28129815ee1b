"""The diffusion model: a Stable Diffusion pipeline, its LoRA adapter, and the frozen reference.

Policy and reference share one UNet: the reference is the UNet with the adapter switched off.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from torch import Tensor, nn

from dpok_cli.config import SamplingConfig, TrainingConfig
from dpok_cli.engine.bases.source import ADAPTER_FILE, check_adapter, check_source, locate
from dpok_cli.engine.device import device_of
from dpok_cli.engine.lora.files import in_order, read_adapter
from dpok_cli.errors import InputError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ADAPTER = "default"


@dataclass(frozen=True)
class Conditioning:
    """What the UNet is told: B prompts, and the negative prompt that guidance leads away from."""

    prompts: Tensor  # (B, L, D)
    negative: Tensor  # (1, L, D)

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: Tensor | slice | list[int]) -> "Conditioning":
        return Conditioning(self.prompts[rows], self.negative)


class DiffusionModel:
    """A text-to-image model as the engine sees it: prompts to embeddings to latents to images."""

    def __init__(self, pipeline: StableDiffusionPipeline, height: int = 0, width: int = 0):
        """Wrap a pipeline; ``height`` and ``width`` are in pixels, 0 for the model's own size."""
        self.pipeline = pipeline
        #: What a forward goes through; a training loop puts what accelerate prepared here.
        self.unet: nn.Module = pipeline.unet
        # A scheduler without the key never clipped, while DDIM's default is to clip. Without the
        # note of what was left to defaults, which would undo what the pipeline changed in place.
        scheduler = {"clip_sample": False} | dict(pipeline.scheduler.config)
        scheduler.pop("_use_default_values", None)
        self.scheduler = DDIMScheduler.from_config(scheduler)
        scale, own = pipeline.vae_scale_factor, pipeline.unet.config.sample_size
        own_height, own_width = (own, own) if isinstance(own, int) else own
        self.latent_shape = (
            pipeline.unet.config.in_channels,
            height // scale or own_height,
            width // scale or own_width,
        )
        #: UNet batch rows so far, guidance counted twice.
        self.unet_rows = 0

    @property
    def device(self) -> torch.device:
        return self.pipeline.unet.device

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image, in pixels."""
        _, height, width = self.latent_shape
        return height * self.pipeline.vae_scale_factor, width * self.pipeline.vae_scale_factor

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], negative_prompt: str = "") -> Conditioning:
        """Return the embeddings of the B prompts and of the negative one."""
        texts = [*prompts, negative_prompt]
        embeds, _ = self.pipeline.encode_prompt(texts, self.device, 1, False)
        return Conditioning(embeds[:-1], embeds[-1:])

    def predict(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, guidance_scale: float
    ) -> Tensor:
        """Return the guided output (B, C, H, W) for latents (B, C, H, W) at timesteps (B,).

        Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598) takes both halves through
        the UNet at once; a ``guidance_scale`` of 1 or less is none.
        """
        dtype = self.pipeline.unet.dtype
        guided = guidance_scale > 1
        prompt_embeds = conditioning.prompts
        if guided:
            negative = conditioning.negative.expand(len(prompt_embeds), -1, -1)
            prompt_embeds = torch.cat([negative, prompt_embeds])
            latents, timesteps = latents.repeat(2, 1, 1, 1), timesteps.repeat(2)
        self.unet_rows += len(latents)
        output = self.unet(latents.to(dtype), timesteps, prompt_embeds.to(dtype)).sample.float()
        if guided:
            without, with_prompt = output.chunk(2)
            output = without + guidance_scale * (with_prompt - without)
        return output

    @torch.no_grad()
    def decode(self, latents: Tensor, batch_size: int = 8) -> Tensor:
        """Return images (B, 3, H, W), float32 in [0, 1], from latents (B, C, h, w)."""
        vae = self.pipeline.vae
        latents = (latents / vae.config.scaling_factor).to(vae.dtype)
        with torch.autocast(self.device.type, enabled=False):
            images = [vae.decode(chunk).sample for chunk in latents.split(batch_size)]
        return (torch.cat(images).float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode_images(self, images: Tensor, batch_size: int = 8) -> Tensor:
        """Return latents, float32 (B, C, h, w), of images (B, 3, H, W) in [0, 1]: the means."""
        vae = self.pipeline.vae
        with torch.autocast(self.device.type, enabled=False):
            chunks = (images.to(vae.dtype) * 2 - 1).split(batch_size)
            latents = [vae.encode(chunk).latent_dist.mode() for chunk in chunks]
        return torch.cat(latents).float() * vae.config.scaling_factor

    def adapt(self, config: TrainingConfig, fresh: bool = True) -> None:
        """Add the adapter that a training asks for, with the weights of its ``init_adapter``.

        The reference stays the model without it. If not ``fresh``, the weights will come from a
        checkpoint. Raises InputError if those of ``init_adapter`` do not fit.
        """
        self.add_adapter(config.lora_rank, config.lora_alpha, config.lora_targets, config.seed)
        if config.init_adapter and fresh:
            own = {
                f"unet.{name.replace(f'.{ADAPTER}.', '.')}": parameter
                for name, parameter in self.pipeline.unet.named_parameters()
                if ".lora_" in name
            }
            weights = read_adapter(Path(config.init_adapter), config, own)
            for name, parameter in own.items():
                parameter.data.copy_(weights[name])

    def add_adapter(self, rank: int, alpha: float, targets: Sequence[str], seed: int) -> None:
        """Add a LoRA (Hu et al. 2021) that changes nothing yet; ``alpha`` 0 is ``rank``.

        Raises InputError if no layer of the UNet is called like one of ``targets``.
        """
        layers = [name for name, _ in self.pipeline.unet.named_modules()]
        for target in targets:  # peft takes those that are there and drops the rest
            if not any(f".{layer}".endswith(f".{target}") for layer in layers):
                raise InputError(f"lora_targets {target!r}: the UNet has no such layer.")
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha or rank,
            target_modules=list(targets),
            init_lora_weights="gaussian",
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.pipeline.unet.add_adapter(config, adapter_name=ADAPTER)
        for parameter in self.adapter_parameters():
            parameter.data = parameter.data.float()  # optimizers need them in float32

    def adapter_parameters(self) -> list[nn.Parameter]:
        """The adapter's weights, the only ones that training changes."""
        named = self.pipeline.unet.named_parameters()
        return [parameter for name, parameter in named if ".lora_" in name]

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Be the pre-trained model for as long as the block runs."""
        self.pipeline.unet.disable_adapters()
        try:
            yield
        finally:
            self.pipeline.unet.enable_adapters()

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter as diffusers' ``load_lora_weights`` takes it."""
        unet = self.pipeline.unet
        weights = convert_state_dict_to_diffusers(
            get_peft_model_state_dict(unet, adapter_name=ADAPTER)
        )
        config = unet.peft_config[ADAPTER].to_dict()
        temporary = f".{ADAPTER_FILE}"
        StableDiffusionPipeline.save_lora_weights(
            folder,
            unet_lora_layers=weights,
            weight_name=temporary,
            unet_lora_adapter_metadata={
                key: sorted(value) if isinstance(value, set) else value
                for key, value in config.items()
                if key in ("r", "lora_alpha", "target_modules")
            },
        )
        (folder / temporary).write_bytes(in_order((folder / temporary).read_bytes()))
        (folder / temporary).replace(folder / ADAPTER_FILE)


def load(config: SamplingConfig, adapter: Path | None = None) -> DiffusionModel:
    """Load a pipeline by hub id or folder, frozen, in the config's precision and on its device.

    ``adapter`` is a folder or file of LoRA weights to put on. Raises InputError where either cannot
    be loaded, saying why.
    """
    check_source(config.model)
    if adapter is not None:
        check_adapter(adapter)
    _be_quiet()
    source = locate(config.model)
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(
            source,
            dtype=DTYPES[config.precision],
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    except Exception as error:  # every library has its own for a file that is not right
        raise InputError(
            f"Cannot load the model {config.model}: {_first_line(error)}"
            " Give --model a folder that holds a Stable Diffusion v1 or v2 pipeline, or a hub id"
            " that this machine has or can download."
        ) from error
    words, known = len(pipeline.tokenizer), pipeline.text_encoder.config.vocab_size
    if not known // 2 < words <= known:  # transformers makes up a tokenizer if files are missing
        raise InputError(
            f"Cannot load the model {config.model}: its tokenizer has {words} tokens and its text"
            f" encoder {known}. Are its vocabulary files there?"
        )
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.requires_grad_(False).eval()
    pipeline.vae.float()  # half precision overflows in SD's decoder
    pipeline.to(device_of(config.device))
    if adapter is not None:
        _put_on(pipeline, adapter)
    return DiffusionModel(pipeline, config.height, config.width)


def _be_quiet() -> None:
    """Keep the libraries' own progress bars and words off the terminal: errors are told once."""
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity(library.CRITICAL)
        library.disable_progress_bar()


def _put_on(pipeline: StableDiffusionPipeline, adapter: Path) -> None:
    folder, name = (adapter, ADAPTER_FILE) if adapter.is_dir() else (adapter.parent, adapter.name)
    try:
        pipeline.load_lora_weights(folder, weight_name=name, adapter_name=ADAPTER)
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise InputError(
            f"The adapter {adapter} does not fit this model: {_first_line(error)}"
            " Give --model the model that it was trained on."
        ) from error
    with safe_open(folder / name, "pt") as file:
        given = sum(key.endswith(".weight") for key in file.keys())  # noqa: SIM118
    parts = (pipeline.unet, pipeline.text_encoder)
    taken = sum(".lora_" in key for part in parts for key, _ in part.named_parameters())
    if given != taken:
        raise InputError(
            f"The adapter {adapter} does not fit this model: it has {given} weights, of"
            f" which the model takes {taken}. Give --model the model that it was trained on."
        )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".:") + "."

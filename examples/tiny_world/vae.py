"""Stage 1: the autoencoder, 64x64 images to 16x16 latents of 4 channels."""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from stage import generator, random_pictures, train

# Many small batches: 4 images per step reached in two minutes what 16 per step reached in six.
STEPS, BATCH = 9000, 4


def build() -> AutoencoderKL:
    torch.manual_seed(1)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=64,
        mid_block_add_attention=False,
    )


def edges(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Differences to the right and lower neighbour, which L1 + L2 alone leave blurred."""
    return images[..., :, 1:] - images[..., :, :-1], images[..., 1:, :] - images[..., :-1, :]


def kl_weight(step: int) -> float:
    """Learn reconstruction first, then smooth the latents so that small errors do not show."""
    return 1e-5 + 5e-4 * min(max((step - 6000) / 1000, 0), 1)


def main(work: Path, output: Path) -> None:
    vae = build()

    def batch(step: int) -> torch.Tensor:
        return random_pictures(generator(1, step), BATCH) * 2 - 1

    def loss(images: torch.Tensor, step: int):
        with torch.autocast("cpu", torch.bfloat16):
            latent = vae.encode(images).latent_dist
            drawn = vae.decode(latent.sample()).sample
        drawn = drawn.float()
        l1, l2 = F.l1_loss(drawn, images), F.mse_loss(drawn, images)
        edge = sum(F.l1_loss(a, b) for a, b in zip(edges(drawn), edges(images), strict=True))
        kl = latent.kl().float().mean() / latent.mean[0].numel()
        value = l1 + l2 + edge + kl_weight(step) * kl
        return value, {"l1": l1.item(), "edge": edge.item(), "kl": kl.item()}

    train("vae", vae, batch, loss, steps=STEPS, learning_rate=1.5e-3, work=work, ema=0.999)
    vae.eval().requires_grad_(False)
    with torch.no_grad():  # SD's convention: latents of standard deviation 1
        means = vae.encode(random_pictures(generator(1, 10**6), 256) * 2 - 1).latent_dist.mean
    vae.register_to_config(scaling_factor=round(1 / means.std().item(), 5))
    vae.save_pretrained(work / "vae")

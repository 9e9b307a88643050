"""Stage 2 of the sticker backbone: a small convolutional autoencoder, 64 x 64 pixels to 16 x 16 latents of 8 channels.

In: pictures (n, 64, 64, 3) uint8.  Out: a folder that diffusers loads as AutoencoderTiny.  Its latents have mean 0 and
variance 1 in each channel over the training pictures (folded into the weights, so `scaling_factor` stays 1).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch.nn import functional as F

from bat_ui.backbones.sticker.stage import Stage
from bat_ui.backbones.sticker.train_clip import normalize
from bat_ui.seeds import step_generator

BATCH = 32
LEARNING_RATE = 2e-3
LATENT_CHANNELS = 8
LATENT_NOISE = 0.1  # makes the decoder forgive the small errors of a diffusion model
LATENT_PENALTY = 1e-3  # keeps the latents in the range that the decoder does not clamp
ABSOLUTE = 0.1  # weight of the absolute error beside the squared one: sharper edges


def new_autoencoder() -> AutoencoderTiny:
    """The architecture: 48 channels, most of the work at 16 x 16 and 32 x 32."""
    return AutoencoderTiny(
        encoder_block_out_channels=(48, 48, 48),
        decoder_block_out_channels=(48, 48, 48),
        num_encoder_blocks=(0, 0, 2),
        num_decoder_blocks=(3, 1, 0),
        latent_channels=LATENT_CHANNELS,
        scaling_factor=1.0,
    )


def train_autoencoder(folder: Path, minutes: float, seed: int, pictures: np.ndarray) -> None:
    """Train for `minutes` in all, resuming from `folder`, and export to `folder`/export."""
    torch.manual_seed(seed)
    model = new_autoencoder().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
    stage = Stage(folder, model, optimizer, minutes, ema_decay=0.999)
    for step in stage.steps():
        rng = step_generator(seed, step)
        batch = vary(normalize(images[torch.randint(len(images), (BATCH,), generator=rng)]), rng)
        latents = model.encode(batch).latents
        noise = torch.randn(latents.shape, generator=rng) * LATENT_NOISE
        error = model.decode(latents + noise).sample - batch
        squared = error.square().mean()
        loss = squared + ABSOLUTE * error.abs().mean() + LATENT_PENALTY * latents.square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        stage.log(BATCH, loss=loss, psnr=10 * torch.log10(4 / squared), latent=latents.square().mean())
    model = stage.trained_model().eval()
    standardize_latents(model, images)
    model.half().save_pretrained(folder / "export")


def vary(batch: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Half of the pictures as they are; the others mirrored, shifted, recoloured or on a ground that is not white."""
    n = len(batch)
    mirrored = torch.where(torch.rand(n, 1, 1, 1, generator=rng) < 0.5, batch.flip(3), batch)
    shift = torch.randint(-8, 9, (2,), generator=rng).tolist()
    recoloured = mirrored.roll(shift, (2, 3))[:, torch.randperm(3, generator=rng)]
    low, high = torch.rand(2, n, 3, 1, 1, generator=rng).mul(2).sub(1)
    recoloured = torch.lerp(low, high, recoloured.add(1).div(2))
    plain = torch.rand(n, 1, 1, 1, generator=rng) < 0.5
    return torch.where(plain, batch, recoloured).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def standardize_latents(model: AutoencoderTiny, images: torch.Tensor) -> None:
    """Fold each channel's mean and deviation into the encoder's last and the decoder's first convolution."""
    latents = torch.cat([model.encode(normalize(b)).latents for b in images.split(256)])
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    last, first = model.encoder.layers[-1], model.decoder.layers[0]
    last.bias.sub_(mean).div_(deviation)
    last.weight.div_(deviation[:, None, None, None])
    first.bias.add_((first.weight * mean[None, :, None, None]).sum((1, 2, 3)))
    first.weight.mul_(deviation[None, :, None, None])


@torch.no_grad()
def reconstruct(model: AutoencoderTiny, images: torch.Tensor) -> torch.Tensor:
    """uint8 (n, 3, 64, 64) through the autoencoder and back, in [-1, 1]."""
    return torch.cat([model.decode(model.encode(normalize(b)).latents).sample.clamp(-1, 1) for b in images.split(256)])


def psnr(reconstruction: torch.Tensor, images: torch.Tensor) -> float:
    """Mean over pictures of the peak signal-to-noise ratio, in dB."""
    error = F.mse_loss(reconstruction, normalize(images), reduction="none").mean((1, 2, 3))
    return float((10 * torch.log10(4 / error)).mean())

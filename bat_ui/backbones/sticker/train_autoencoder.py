"""The sticker backbone's autoencoder: 64 x 64 pixels to 16 x 16 latents of 16 channels and back.

In: pictures (n, 64, 64, 3) uint8.  Out: a folder that diffusers loads as AutoencoderTiny.  The encoder is linear and in
closed form, the principal components of 4 x 4 patches, so latents exist before anything is trained, and no later training
of the decoder can shift them.  The decoder is trained.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch.nn import functional as F

from bat_ui.backbones.sticker.stage import Stage
from bat_ui.backbones.sticker.train_clip import normalize
from bat_ui.hardware import best_device
from bat_ui.seeds import step_generator

BATCH = 32
LEARNING_RATE = 2e-3
LATENT_CHANNELS, PATCH_NUMBERS = 16, 48  # components kept, of the numbers in a patch of 4 x 4 RGB pixels
WHITENING = 0.5  # a component of deviation d is divided by d to this power: 1 makes all channels equally loud, 0 none
STORED = 0.5  # the model's own latents, as a part of those with variance 1: its decoder clamps softly at 3
LATENT_NOISE = 0.05  # makes the decoder forgive the small errors of a diffusion model
ABSOLUTE = 0.1  # weight of the absolute error beside the squared one: sharper edges


def new_autoencoder() -> AutoencoderTiny:
    """The architecture; the decoder needs a non-linear block at full resolution to tell neighbouring pixels apart."""
    return AutoencoderTiny(
        encoder_block_out_channels=(PATCH_NUMBERS,) * 3,
        decoder_block_out_channels=(32, 32, 32),
        num_encoder_blocks=(0, 0, 0),
        num_decoder_blocks=(3, 2, 1),
        latent_channels=LATENT_CHANNELS,
        scaling_factor=1 / STORED,
    )


@torch.no_grad()
def fit_encoder(model: AutoencoderTiny, pictures: np.ndarray) -> None:
    """Set the encoder: three convolutions that gather each patch's 48 numbers, one that projects them.

    Over `pictures` the scaled latents have mean 0 in every channel and variance 1 over all channels.
    """
    copy, to_half, to_quarter, project = model.encoder.layers
    for layer in (copy, to_half, to_quarter, project):
        layer.weight.zero_()
        if layer.bias is not None:
            layer.bias.zero_()
    copy.weight[range(3), range(3), 1, 1] = 1
    for layer, count in ((to_half, 3), (to_quarter, 12)):
        for place, (row, column) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
            for channel in range(count):
                layer.weight[place * count + channel, channel, row + 1, column + 1] = 1

    sums, products, total = torch.zeros(PATCH_NUMBERS).double(), torch.zeros(PATCH_NUMBERS, PATCH_NUMBERS).double(), 0
    for batch in torch.from_numpy(pictures).permute(0, 3, 1, 2).split(256):
        gathered = to_quarter(to_half(copy(batch.float() / 255)))
        patches = gathered.permute(0, 2, 3, 1).reshape(-1, PATCH_NUMBERS).double()
        sums += patches.sum(0)
        products += patches.T @ patches
        total += len(patches)
    mean = sums / total
    values, vectors = torch.linalg.eigh(products / total - mean[:, None] * mean)
    values, vectors = values.flip(0)[:LATENT_CHANNELS], vectors.flip(1)[:, :LATENT_CHANNELS]
    vectors = vectors * vectors[vectors.abs().argmax(0), range(LATENT_CHANNELS)].sign()  # eigenvectors have no sign
    scale = values.sqrt() ** -WHITENING
    scale *= STORED / (values * scale**2).mean().sqrt()
    project.weight[:, :, 1, 1] = (vectors * scale).T.float()
    project.bias.copy_(-(mean @ vectors) * scale)


def train_autoencoder(folder: Path, minutes: float, seed: int, pictures: np.ndarray) -> None:
    """Fit the encoder, train the decoder for `minutes` in all, resuming from `folder`, and export to `folder`/export."""
    torch.manual_seed(seed)
    model = new_autoencoder()
    fit_encoder(model, pictures)
    device = best_device()
    model = model.to(device, memory_format=torch.channels_last)
    decoder = model.decoder
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
    stage = Stage(folder, decoder, [optimizer], minutes, ema_decay=0.999)
    for step in stage.steps():
        rng = step_generator(seed, step)
        rows = torch.randint(len(images), (BATCH,), generator=rng)
        batch = vary(normalize(images[rows]), rng).to(device)
        with torch.no_grad():
            latents = model.encode(batch).latents
        noise = torch.randn(latents.shape, generator=rng).to(device) * (LATENT_NOISE * STORED)
        error = decoder(latents + noise) - batch
        squared = error.square().mean()
        loss = squared + ABSOLUTE * error.abs().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        stage.log(BATCH, loss=loss, psnr=10 * torch.log10(4 / squared))
    decoder.load_state_dict(stage.trained_model().state_dict())
    model.cpu().half().save_pretrained(folder / "export")


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
def reconstruct(model: AutoencoderTiny, images: torch.Tensor) -> torch.Tensor:
    """uint8 (n, 3, 64, 64) through the autoencoder and back, in [-1, 1]."""
    return torch.cat([model.decode(model.encode(normalize(b)).latents).sample.clamp(-1, 1) for b in images.split(256)])


def psnr(reconstruction: torch.Tensor, images: torch.Tensor) -> float:
    """Mean over pictures of the peak signal-to-noise ratio, in dB."""
    error = F.mse_loss(reconstruction, normalize(images), reduction="none").mean((1, 2, 3))
    return float((10 * torch.log10(4 / error)).mean())

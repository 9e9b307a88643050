"""Stage 3 of the sticker backbone: the denoising UNet, conditioned on the frozen CLIP text tower.

In: latents and text states of the captioned pictures.  Out: a UNet2DConditionModel and its scheduler.  The latents of
all pictures fit in memory, so neither the autoencoder nor the text encoder runs in the loop.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from bat_ui.backbones.sticker.muon import Muon
from bat_ui.backbones.sticker.stage import Stage
from bat_ui.backbones.sticker.train_autoencoder import LATENT_CHANNELS
from bat_ui.hardware import best_device, mixed_dtype
from bat_ui.seeds import step_generator, stratified_timesteps

BATCH = 96
LEARNING_RATE = 1e-3
TIMESTEP_SHIFT = 2.0  # towards noise, where the caption decides what is drawn (Esser et al., 2024, eq. 23)
NOISE_LEVELS = 1000
STYLELESS, EMPTY = 0.05, 0.1  # part of the captions without the style, and without anything (for guidance)


def new_unet(text_width: int) -> UNet2DConditionModel:
    """Stable Diffusion's UNet, small: attention at 8 x 8 and 4 x 4, pooled text added to the time embedding."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 128, 256),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=text_width,
        attention_head_dim=(2, 2, 4),
        addition_embed_type="text",
        addition_embed_type_num_heads=3,
        use_linear_projection=True,
    )


def new_scheduler() -> DDIMScheduler:
    """Cosine schedule with v-prediction: the last timestep is pure noise, so white grounds come out white."""
    return DDIMScheduler(
        num_train_timesteps=NOISE_LEVELS,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def new_optimizers(unet: UNet2DConditionModel) -> list[torch.optim.Optimizer]:
    """Muon for the inner matrices and convolutions, AdamW for norms, biases and the layers at both ends."""
    ends = ("conv_in.", "conv_out.")
    inner = [p for name, p in unet.named_parameters() if p.ndim >= 2 and not name.startswith(ends)]
    chosen = {id(p) for p in inner}
    rest = [p for p in unet.parameters() if id(p) not in chosen]
    return [
        Muon(inner, lr=LEARNING_RATE),
        torch.optim.AdamW(rest, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01),
    ]


def shifted(timesteps: torch.Tensor) -> torch.Tensor:
    """Uniform timesteps moved towards noise."""
    part = timesteps / NOISE_LEVELS
    return (NOISE_LEVELS * TIMESTEP_SHIFT * part / (1 + (TIMESTEP_SHIFT - 1) * part)).long().clamp(max=NOISE_LEVELS - 1)


def train_unet(
    folder: Path,
    minutes: float,
    seed: int,
    latents: torch.Tensor,
    styled: torch.Tensor,
    styleless: torch.Tensor,
    empty: torch.Tensor,
) -> None:
    """Train for `minutes` in all, resuming from and leaving the state in `folder`.

    latents (n, c, 16, 16); styled and styleless (n, tokens, width): the captions' text states; empty (tokens, width).
    """
    torch.manual_seed(seed)
    device = best_device()
    dtype = mixed_dtype(device)
    unet = new_unet(styled.shape[-1]).to(device, memory_format=torch.channels_last)
    latents, styled, styleless, empty = (t.to(device) for t in (latents, styled, styleless, empty))
    scheduler = new_scheduler()
    optimizers = new_optimizers(unet)
    stage = Stage(folder, unet, optimizers, minutes, ema_decay=0.995)
    count, per_epoch = len(latents), max(len(latents) // BATCH, 1)
    for step in stage.steps():
        rng = step_generator(seed, step)
        order = torch.randperm(count, generator=step_generator(seed + 1, step // per_epoch))
        rows = order[step % per_epoch * BATCH :][:BATCH]
        timesteps = shifted(stratified_timesteps(BATCH, NOISE_LEVELS, rng)).to(device)
        noise = torch.randn(latents[rows].shape, generator=rng).to(device)
        kind = torch.rand(BATCH, 1, 1, generator=rng).to(device)
        text = torch.where(kind < STYLELESS, styleless[rows], styled[rows])
        text = torch.where(kind > 1 - EMPTY, empty, text)
        noisy = scheduler.add_noise(latents[rows], noise, timesteps).contiguous(memory_format=torch.channels_last)
        target = scheduler.get_velocity(latents[rows], noise, timesteps)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            prediction = unet(noisy, timesteps, text).sample
        loss = (prediction.float() - target).square().mean()
        unet.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        stage.log(BATCH, loss=loss)

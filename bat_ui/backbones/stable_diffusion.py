"""A Stable Diffusion backbone as the method needs it: latents, text states, denoising loss, LoRA targets.

In: a diffusers pipeline folder.  Out: `Backbone`, whose UNet stays frozen; adapters come and go by training/lora.py.
Left out on purpose: sampling (generation.py) and any data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from bat_ui.clip_space import ClipSpace
from bat_ui.seeds import stratified_timesteps

BATCH = 64  # pictures encoded at once


@dataclass(frozen=True, eq=False)
class Backbone:
    """The frozen model. `lora_targets` are the module names that an adapter is put on."""

    name: str
    pipeline: StableDiffusionPipeline
    clip_source: str
    caption_template: str
    lora_targets: tuple[str, ...]

    @classmethod
    def load(
        cls,
        name: str,
        pipeline_folder: Path,
        clip_source: str,
        caption_template: str,
        lora_targets: tuple[str, ...],
        device: torch.device,
    ) -> Backbone:
        """Load the pipeline from `pipeline_folder` (safetensors only) in the precision that suits `device`."""
        with _quiet():
            pipeline = StableDiffusionPipeline.from_pretrained(
                pipeline_folder, dtype=_dtype_for(device), use_safetensors=True, local_files_only=True
            )
        pipeline.set_progress_bar_config(disable=True)
        pipeline.to(device)
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            part.requires_grad_(False).eval()
        pipeline.unet.to(memory_format=torch.channels_last)
        return cls(name, pipeline, clip_source, caption_template, lora_targets)

    @property
    def unet(self) -> torch.nn.Module:
        return self.pipeline.unet

    @property
    def device(self) -> torch.device:
        return self.pipeline.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.pipeline.unet.dtype

    @property
    def resolution(self) -> int:
        """Width and height of its pictures, in pixels."""
        return self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor

    @cached_property
    def clip(self) -> ClipSpace:
        """The CLIP space that goes with it."""
        return ClipSpace.load(self.clip_source)

    def class_prompt(self, class_noun: str) -> str:
        """The caption of any member of the class: the template without the identifier."""
        return self.caption_template.format(identifier="", class_noun=class_noun).replace("  ", " ").strip()

    @torch.no_grad()
    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Scaled latents (n, c, h, w) of square pictures of any size; means where the encoder gives distributions."""
        vae = self.pipeline.vae
        latents = []
        for start in range(0, len(images), BATCH):
            batch = torch.stack([_pixels(image, self.resolution) for image in images[start : start + BATCH]])
            encoded = vae.encode(batch.to(self.device, vae.dtype))
            mean = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents
            latents.append((mean - (getattr(vae.config, "shift_factor", None) or 0)) * vae.config.scaling_factor)
        return torch.cat(latents).to(self.dtype)

    @torch.no_grad()
    def encode_captions(self, captions: Sequence[str]) -> Tensor:
        """Text states (n, tokens, width), padded or cut to the encoder's length."""
        tokenizer, encoder = self.pipeline.tokenizer, self.pipeline.text_encoder
        states = []
        for start in range(0, len(captions), BATCH):
            tokens = tokenizer(
                list(captions[start : start + BATCH]),
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            ).input_ids
            states.append(encoder(tokens.to(self.device)).last_hidden_state)
        return torch.cat(states).to(self.dtype)

    def predict(self, latents: Tensor, states: Tensor, timesteps: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The UNet's prediction and its target for latents noised by `noise` at `timesteps` (n,): both (n, c, h, w).

        The denoising loss of a row (theory.md, Words: l) is the mean of (prediction - target)^2 over its elements;
        the target is the noise or the velocity, as the backbone was trained.
        """
        scheduler = self.pipeline.scheduler
        noisy = scheduler.add_noise(latents, noise, timesteps)
        prediction = self.unet(noisy.contiguous(memory_format=torch.channels_last), timesteps, states).sample
        if scheduler.config.prediction_type == "v_prediction":
            return prediction, scheduler.get_velocity(latents, noise, timesteps)
        return prediction, noise

    def draw(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """`count` timesteps in random order, one from each of `count` equal parts of the schedule, and noises."""
        timesteps = stratified_timesteps(count, self.pipeline.scheduler.config.num_train_timesteps, rng)
        config = self.unet.config
        shape = (count, config.in_channels, config.sample_size, config.sample_size)
        noise = torch.randn(shape, generator=rng)
        return timesteps.to(self.device), noise.to(self.device, self.dtype)


@contextmanager
def _quiet() -> Iterator[None]:
    """No loading bars, and no warning that the autoencoder is of another class than Stable Diffusion's own."""
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    levels = [library.get_verbosity() for library in libraries]
    bars = [library.is_progress_bar_enabled() for library in libraries]
    try:
        for library in libraries:
            library.set_verbosity_error()
            library.disable_progress_bar()
        yield
    finally:
        for library, level, bar in zip(libraries, levels, bars):
            library.set_verbosity(level)
            if bar:
                library.enable_progress_bar()


def _dtype_for(device: torch.device) -> torch.dtype:
    """float32 on CPUs, where half precision is emulated; bfloat16 on GPUs that have it."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.float32


def _pixels(image: Image.Image, size: int) -> Tensor:
    """A picture as (3, size, size) in [-1, 1]."""
    if image.size != (size, size):
        image = image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float().div(127.5).sub(1)

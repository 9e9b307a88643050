"""A Stable Diffusion backbone as the method needs it: encoded pictures, denoising loss, LoRA targets.

In: a loaded pipeline of the first, second or XL generation.  Out: `Backbone`, whose weights stay frozen; adapters come and
go by training/lora.py.  Left out on purpose: finding and reading files (checkpoints.py), sampling (generation.py), data.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from textwrap import shorten

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from bat_ui.backbones.buckets import bucket_of, fit
from bat_ui.backbones.encoded import Encoded
from bat_ui.clip_space import ClipSpace
from bat_ui.presets import PLENTY, Preset
from bat_ui.seeds import stratified_timesteps
from bat_ui.settings import BackboneSettings

logger = logging.getLogger(__name__)

PROBES = 64  # weights by which a backbone is known again
BUCKET_STEPS = 16  # a bucket's sides are multiples of the resolution's 16th part, 64 pixels for SDXL


@dataclass(frozen=True, eq=False)
class Backbone:
    """The frozen model; make it with `backbones.load_backbone`.

    `family` is sticker, sd15, sd21 or sdxl. `lora_targets` are the names of the UNet's modules that an adapter is put on.
    `photos`: its pictures have any shape, and are trained on in aspect-ratio buckets. `asked` is how it was named.
    """

    name: str
    family: str
    pipeline: StableDiffusionPipeline | StableDiffusionXLPipeline
    device: torch.device
    clip_source: str
    caption_template: str
    lora_targets: tuple[str, ...]
    photos: bool = True
    preset: Preset = PLENTY
    asked: BackboneSettings = BackboneSettings()

    def __post_init__(self) -> None:
        self.pipeline.set_progress_bar_config(disable=True)
        for part in (self.pipeline.unet, self.pipeline.vae, *self.text_encoders):
            part.requires_grad_(False).eval()
        self.pipeline.unet.to(self.device, memory_format=torch.channels_last)
        if not self.preset.offload:
            self.pipeline.to(self.device)

    @property
    def unet(self) -> torch.nn.Module:
        return self.pipeline.unet

    @property
    def text_encoders(self) -> tuple[torch.nn.Module, ...]:
        """One, or SDXL's two."""
        second = getattr(self.pipeline, "text_encoder_2", None)
        return (self.pipeline.text_encoder,) if second is None else (self.pipeline.text_encoder, second)

    @cached_property
    def dtype(self) -> torch.dtype:
        """Of the UNet; kept, since diffusers walks through all modules to find it, which cost a third of a small step."""
        return self.pipeline.unet.dtype

    @property
    def resolution(self) -> int:
        """Width and height of its square pictures, in pixels."""
        return self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor

    @property
    def bucket_step(self) -> int:
        """Sides of its pictures are multiples of this many pixels."""
        halvings = len(self.pipeline.unet.config.block_out_channels) - 1
        return max(self.pipeline.vae_scale_factor * 2**halvings, self.resolution // BUCKET_STEPS)

    @cached_property
    def noise_scheduler(self) -> DDPMScheduler:
        """The noise that the backbone was trained with, whichever way its samples are drawn."""
        return DDPMScheduler.from_config(self.pipeline.scheduler.config)

    @property
    def prediction(self) -> str:
        """What the UNet predicts: epsilon (the noise) or v_prediction (the velocity)."""
        return self.noise_scheduler.config.prediction_type

    @property
    def identity(self) -> dict:
        """What a later run knows this model by: its name, family, prediction, and some numbers out of its UNet."""
        weights = [p for name, p in self.unet.named_parameters() if p.ndim > 1 and "lora_" not in name]
        probes = [p.flatten()[p.numel() // 2].item() for p in weights[:: math.ceil(len(weights) / PROBES)]]
        return {"name": self.name, "family": self.family, "prediction": self.prediction, "probes": probes}

    def is_that(self, identity: dict) -> bool:
        """Whether an `identity` is of this model, in whatever precision and place it was then."""
        own = self.identity
        same = all(own[key] == identity[key] for key in ("family", "prediction"))
        theirs = identity["probes"]
        near = (math.isclose(a, b, rel_tol=0.01, abs_tol=1e-4) for a, b in zip(own["probes"], theirs))
        return same and len(theirs) == len(own["probes"]) and all(near)

    @cached_property
    def clip(self) -> ClipSpace:
        """The CLIP space that goes with it, on the GPU if that has memory for both."""
        return ClipSpace.load(self.clip_source, "cpu" if self.preset.offload else self.device)

    def class_prompt(self, class_noun: str) -> str:
        """The caption of any member of the class: the template without the identifier."""
        return self.caption_template.format(identifier="", class_noun=class_noun).replace("  ", " ").strip()

    def encode(
        self,
        images: Sequence[Image.Image],
        captions: Sequence[str],
        weights: Tensor | None = None,
        bucketed: bool = False,
    ) -> Encoded:
        """Captioned pictures of any size, ready for training and sketching, on the backbone's device.

        They become squares of `resolution` pixels, cropped in the middle; `bucketed`, the nearest aspect-ratio bucket.
        """
        shapes = [(self.resolution, self.resolution)] * len(images)
        if bucketed:
            shapes = [bucket_of(image.size, self.resolution, self.bucket_step) for image in images]
        latents, sizes = self._encode_images(images, shapes)
        states, pooled = self.encode_captions(captions)
        added = None if pooled is None else torch.tensor(sizes, device=self.device)
        return Encoded(latents, states, weights, pooled, added, tuple(captions))

    @torch.no_grad()
    def encode_captions(self, captions: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Text states (n, tokens, width), padded or cut to the encoder's length, and SDXL's pooled states (n, width)."""
        parts = []
        with self.at_work(*self.text_encoders):
            for start in range(0, len(captions), self.preset.pictures):
                parts.append(self._text_states(captions[start : start + self.preset.pictures]))
        states, pooled = zip(*parts)
        return torch.cat(states), None if pooled[0] is None else torch.cat(pooled)

    def warn_of_long(self, texts: Sequence[str]) -> None:
        """Say of which texts the text encoder does not read the end."""
        tokenizer = self.pipeline.tokenizer
        for text in dict.fromkeys(texts):
            if len(tokenizer.tokenize(text)) + 2 > tokenizer.model_max_length:
                logger.warning("The model does not read the end of “%s”: it takes some 50 words.", shorten(text, 60))

    def with_text(self, images: Encoded) -> Encoded:
        """The same pictures with text states of the text encoders as they are now, through which gradients flow."""
        states, pooled = self._text_states(images.captions)
        return Encoded(images.latents, states, images.weights, pooled, images.sizes, images.captions)

    def predict(self, images: Encoded, timesteps: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The UNet's prediction and its target for pictures noised by `noise` at `timesteps` (n,): both (n, c, h, w).

        The denoising loss of a row (theory.md, Words: l) is the mean of (prediction - target)^2 over its elements;
        the target is the noise or the velocity, as the backbone was trained.
        """
        # In full precision, for the schedule in bfloat16 would give the first timesteps no noise at all.
        latents, noise = images.latents.float(), noise.float()
        noisy = self.noise_scheduler.add_noise(latents, noise, timesteps).to(self.dtype)
        added = None if images.pooled is None else {"text_embeds": images.pooled, "time_ids": images.sizes}
        # Half precision alone would also compute the adapter's float32 weights in float32; autocast keeps them for the sum.
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            noisy = noisy.contiguous(memory_format=torch.channels_last)
            prediction = self.unet(noisy, timesteps, images.states, added_cond_kwargs=added).sample
        if self.prediction == "v_prediction":
            return prediction, self.noise_scheduler.get_velocity(latents, noise, timesteps)
        return prediction, noise

    def draw(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """`count` timesteps in random order, one from each of `count` equal parts of the schedule, and noises of squares."""
        timesteps = self.draw_timesteps(count, rng)
        side = self.unet.config.sample_size
        return timesteps, self.draw_noise((count, self.unet.config.in_channels, side, side), rng)

    def draw_timesteps(self, count: int, rng: torch.Generator) -> Tensor:
        """The timesteps (count,) of `draw`."""
        return stratified_timesteps(count, self.noise_scheduler.config.num_train_timesteps, rng).to(self.device)

    def draw_noise(self, shape: Sequence[int], rng: torch.Generator) -> Tensor:
        """Unit noise of that shape, equal for equal generators on every device."""
        return torch.randn(tuple(shape), generator=rng).to(self.device, self.dtype)

    @contextmanager
    def at_work(self, *parts: torch.nn.Module) -> Iterator[None]:
        """`parts` are on the device inside; where memory is scarce they wait in main memory outside, unless they learn."""
        try:
            for part in parts:
                part.to(self.device)
            yield
        finally:
            if self.preset.offload:
                for part in parts:
                    if not _adapted(part):
                        part.to("cpu")

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """The whole pipeline is ready to draw inside; where memory is scarce its parts take turns on the device."""
        if not self.preset.offload or self.device.type == "cpu":
            yield
            return
        self.pipeline.enable_model_cpu_offload(device=self.device)
        try:
            yield
        finally:
            self.pipeline.remove_all_hooks()
            for part in (self.unet, *filter(_adapted, self.text_encoders)):
                part.to(self.device)

    @torch.no_grad()
    def _encode_images(self, images: Sequence[Image.Image], shapes: Sequence[tuple[int, int]]):
        """Scaled latents, one tensor where all have one shape, and the size conditioning of each picture.

        Means where the encoder gives distributions, so that a picture is encoded once and for all.
        """
        vae = self.pipeline.vae
        own = vae.dtype
        if own == torch.float16 and getattr(vae.config, "force_upcast", False):
            vae.to(torch.float32)  # SDXL's overflows in half precision
        latents: list[Tensor | None] = [None] * len(images)
        sizes: list[tuple[int, ...]] = [()] * len(images)
        with self.at_work(vae):
            for shape in dict.fromkeys(shapes):
                rows = [i for i, other in enumerate(shapes) if other == shape]
                for start in range(0, len(rows), self.preset.pictures):
                    part = rows[start : start + self.preset.pictures]
                    fitted = [fit(images[i], *shape) for i in part]
                    batch = torch.stack([_pixels(image) for image, _ in fitted]).to(self.device, vae.dtype)
                    encoded = vae.encode(batch)
                    mean = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents
                    scaled = (mean - (getattr(vae.config, "shift_factor", None) or 0)) * vae.config.scaling_factor
                    for i, row, (_, size) in zip(part, scaled.to(self.dtype), fitted):
                        latents[i], sizes[i] = row, size
        if vae.dtype != own:
            vae.to(own)
        return (torch.stack(latents) if len(set(shapes)) == 1 else tuple(latents)), sizes

    def _text_states(self, captions: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """States and pooled states of one batch: the last layer's, or SDXL's next to last of both encoders side by side."""
        pipeline = self.pipeline
        states, pooled = [], None
        tokenizers = (pipeline.tokenizer, getattr(pipeline, "tokenizer_2", None))
        for tokenizer, encoder in zip(tokenizers, self.text_encoders):
            tokens = tokenizer(
                list(captions),
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            ).input_ids
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                made = encoder(tokens.to(self.device), output_hidden_states=len(self.text_encoders) > 1)
            if len(self.text_encoders) == 1:
                return made.last_hidden_state.to(self.dtype), None
            states.append(made.hidden_states[-2])
            pooled = made[0]  # of the last encoder, which has a projection
        return torch.cat(states, -1).to(self.dtype), pooled.to(self.dtype)


def _adapted(part: torch.nn.Module) -> bool:
    """Whether an adapter is on it."""
    return bool(getattr(part, "peft_config", None))


def _pixels(image: Image.Image) -> Tensor:
    """An RGB picture as (3, h, w) in [-1, 1]."""
    return pil_to_tensor(image).float().div(127.5).sub(1)

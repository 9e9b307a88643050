"""Metrics of an adapter: pure functions of losses, CLIP vectors and pictures.

In: a backbone with or without an adapter and encoded pictures, or CLIP vectors (unit rows), or PIL pictures.  Out: numbers.
Losses are taken at COMMON timesteps and noises, equal for every rule, seed and step, so that differences between rules are
not noise.  Left out on purpose: LPIPS, DINO and FID, whose networks are not at hand offline; diversity and PRES are in CLIP
space and so not comparable with figures published for those.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bat_ui.backbones.encoded import Encoded
from bat_ui.backbones.stable_diffusion import Backbone
from bat_ui.seeds import step_generator

EVALUATION_SEED = 1_000_000  # far from any seed that trains or sketches
Draws = tuple[Tensor, Tensor]  # timesteps (d,), noises (d, c, h, w)


def common_draws(backbone: Backbone, count: int) -> Draws:
    """The `count` timesteps, one from each equal part of the schedule, and noises that every evaluation uses."""
    return backbone.draw(count, step_generator(EVALUATION_SEED, count))


@torch.no_grad()
def denoising_loss(backbone: Backbone, images: Encoded, draws: Draws) -> Tensor:
    """Loss l (theory.md, Words) of each image (n,), float32 on the CPU: the mean over draws that all images share."""
    timesteps, noise = draws
    count = len(timesteps)
    losses = torch.empty(len(images) * count)
    for rows in torch.arange(len(losses)).split(backbone.preset.rows_at_once):
        image, draw = (rows // count).to(images.latents.device), (rows % count).to(timesteps.device)
        prediction, target = backbone.predict(images[image], timesteps[draw], noise[draw])
        losses[rows] = (prediction.float() - target.float()).square().mean((1, 2, 3)).cpu()
    return losses.view(len(images), count).mean(1)


def similarity(vectors: Tensor, others: Tensor) -> float:
    """Mean cosine over all pairs of unit rows (n, d) and (m, d).

    Between generated and true pictures this is CLIP-I; between class-prompt pictures, drawn with the adapter, and the
    subject's it is PRES, where lower means that the class has drifted less towards the subject.
    """
    return float((vectors @ others.T).mean())


def paired_similarity(vectors: Tensor, others: Tensor) -> float:
    """Mean cosine of row i with row i, (n, d) both: of a picture with its own truth, or with its prompt (CLIP-T)."""
    return float((vectors * others).sum(1).mean())


def pixel_distance(images: Sequence[Image.Image], truths: Sequence[Image.Image]) -> float:
    """Mean over pairs of the root mean square difference of pixels in [0, 1]; truths are resized to the images."""
    distances = []
    for image, truth in zip(images, truths, strict=True):
        resized = truth.convert("RGB").resize(image.size, Image.Resampling.LANCZOS)
        apart = (np.asarray(image.convert("RGB"), np.float64) - np.asarray(resized, np.float64)) / 255
        distances.append(np.sqrt(np.square(apart).mean()))
    return float(np.mean(distances))


def diversity(vectors: Tensor) -> float:
    """Mean of 1 - cosine over pairs of samples of one prompt, (prompts, samples, d) unit vectors; CLIP-, not LPIPS-based."""
    samples = vectors.shape[1]
    cosines = vectors @ vectors.mT
    others = ~torch.eye(samples, dtype=torch.bool)
    return float(1 - cosines[:, others].mean())


def without_identifier(prompt: str, identifier: str) -> str:
    """The prompt as CLIP should judge it: the identifier is no word to it."""
    return " ".join(word for word in prompt.split() if word != identifier)

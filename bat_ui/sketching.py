"""From a backbone with a surrogate to sketches: the one place where the mathematics of albat/ meets the model.

In: encoded candidates and subject pictures, a surrogate's settings.  Out: `Sketches`.
Candidates share their timesteps and noises; the subject pictures have draws of their own (theory.md, ALBAT, step 3).
"""

from __future__ import annotations

from zlib import crc32

import torch
from torch import Tensor

from bat_ui.albat.selection import Sketches, make_sketches
from bat_ui.albat.sketch import BatchSketch, Projection, make_projection, sketch
from bat_ui.albat.validity import cluster
from bat_ui.backbones.stable_diffusion import Backbone
from bat_ui.project import Progress
from bat_ui.seeds import step_generator
from bat_ui.settings import SelectionSettings, TrainingSettings
from bat_ui.training.loop import Encoded, new_optimizer, train
from bat_ui.training.lora import lora

BATCH_ROWS = 64  # images x draws in one pass
SUBJECT_DRAWS, SUBJECT_VECTORS = 8, 4
CANDIDATE_STREAM, SUBJECT_STREAM = 1, 2  # keep the two sets of draws apart
PICTURES_PER_GROUP = 20


def sketch_candidates(
    backbone: Backbone,
    ids: tuple[str, ...],
    vectors: Tensor,
    candidates: Encoded,
    subject: Encoded,
    settings: SelectionSettings,
    training: TrainingSettings,
    progress: Progress,
) -> Sketches:
    """Train the surrogate on the subject alone, then sketch subject and candidates at it.

    vectors (n, d): the candidates' CLIP vectors, by which they are grouped.
    """
    keys = torch.tensor([crc32(name.encode()) for name in ids])
    subject_keys = torch.arange(len(subject))
    with lora(backbone, training.rank, settings.seed) as weights:
        projection = make_projection(backbone.unet, settings.sketch_size, settings.seed)

        def sketch_subject() -> BatchSketch:
            draw = backbone.draw(SUBJECT_DRAWS, step_generator(settings.seed, -SUBJECT_STREAM))
            return sketch_images(
                backbone, subject, subject_keys, draw, projection, SUBJECT_VECTORS, "gauss_newton", settings.seed
            )

        start = sketch_subject()
        for step in train(backbone, weights, new_optimizer(weights, training), subject, None, training):
            progress("Training the surrogate", step.number, training.steps)
        adapted = sketch_subject()
        draw = backbone.draw(settings.draws, step_generator(settings.seed, -CANDIDATE_STREAM))
        parts, per_pass = [], max(BATCH_ROWS // settings.draws, 1)
        for first in range(0, len(ids), per_pass):
            rows = slice(first, first + per_pass)
            part = Encoded(candidates.latents[rows], candidates.states[rows])
            parts.append(sketch_images(backbone, part, keys[rows], draw, projection, 1, "fisher", settings.seed))
            progress("Sketching backbone pictures", min(first + per_pass, len(ids)), len(ids))
    gradients = torch.cat([p.gradients for p in parts]).cpu()
    curvature = torch.cat([p.curvature for p in parts]).cpu()
    groups = cluster(vectors, max(len(ids) // PICTURES_PER_GROUP, 1), settings.seed)
    return make_sketches(
        ids,
        groups,
        gradients,
        curvature,
        adapted.curvature.cpu(),
        start_gradients=start.gradients.cpu(),
        start_curvature=start.curvature.cpu(),
    )


def sketch_images(
    backbone: Backbone,
    images: Encoded,
    keys: Tensor,
    draw: tuple[Tensor, Tensor],
    projection: Projection,
    vectors: int,
    curvature: str,
    seed: int,
) -> BatchSketch:
    """Sketch b images over the same timesteps (d,) and noises (d, c, h, w)."""
    timesteps, noise = draw
    count, draws = len(images), len(timesteps)

    def predict(batch: Encoded) -> tuple[Tensor, Tensor, float]:
        latents = batch.latents.repeat_interleave(draws, 0)
        states = batch.states.repeat_interleave(draws, 0)
        prediction, target = backbone.predict(latents, states, timesteps.repeat(count), noise.repeat(count, 1, 1, 1))
        return prediction.contiguous(), target.contiguous(), 1.0

    return sketch(
        backbone.unet,
        predict,
        images,
        keys,
        projection,
        draws=draws,
        vectors=vectors,
        curvature=curvature,
        seed=seed,
    )

"""From a backbone with a surrogate to sketches: the one place where the mathematics of albat/ meets the model.

In: encoded candidates and subject pictures, a surrogate's settings.  Out: `Sketches`.
Candidates share their timesteps and noises; the subject pictures have draws of their own (theory.md, ALBAT, step 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from zlib import crc32

import torch
from torch import Tensor

from bat_ui.albat.selection import Sketches, make_sketches
from bat_ui.albat.sketch import BatchSketch, Predict, Projection, make_projection, sketch
from bat_ui.albat.validity import cluster
from bat_ui.backbones.encoded import Encoded
from bat_ui.backbones.stable_diffusion import Backbone
from bat_ui.project import Progress
from bat_ui.seeds import step_generator
from bat_ui.settings import SelectionSettings, TrainingSettings
from bat_ui.training.loop import new_optimizer, train
from bat_ui.training.lora import lora
from bat_ui.training.speed import checkpointing

SUBJECT_DRAWS, SUBJECT_VECTORS = 8, 4
SIZED = 16  # candidates whose Gauss-Newton trace is taken, by which the curvature of all is sized
CANDIDATE_STREAM, SUBJECT_STREAM, JUDGE_STREAM = 1, 2, 100  # keep the sets of draws apart; the judges' by fold
PICTURES_PER_GROUP = 20
CLASS_LIKE = 40  # of the nearest candidates make up the risk's curvature Q: what the adapter will be asked to draw


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
    """Train the surrogate on the subject alone, then sketch subject and candidates, nearest first, at it.

    vectors (n, d): the candidates' CLIP vectors, by which they are grouped.
    """
    with lora(backbone, training.rank, settings.seed) as weights:
        projection = make_projection(backbone.unet, settings.sketch_size, settings.seed)
        for step in train(backbone, weights, new_optimizer(weights, training), subject, None, training):
            progress("Training the surrogate", step.number, training.steps)
        draw = backbone.draw(SUBJECT_DRAWS, step_generator(settings.seed, -SUBJECT_STREAM))
        adapted = sketch_images(
            backbone, subject, torch.arange(len(subject)), draw, projection, SUBJECT_VECTORS, "gauss_newton", settings.seed
        )
        gradients, curvature = _sketch_all(
            backbone, ids, candidates, projection, 1, settings, "Sketching backbone pictures", progress
        )
    groups = cluster(vectors, max(len(ids) // PICTURES_PER_GROUP, 1), settings.seed)
    return make_sketches(
        ids,
        groups,
        gradients,
        curvature,
        adapted.curvature.cpu(),
        risk=curvature[:CLASS_LIKE].flatten(0, 1) / min(CLASS_LIKE, len(ids)) ** 0.5,
    )


def sketch_folds(
    backbone: Backbone,
    ids: Sequence[str],
    candidates: Encoded,
    subject: Encoded,
    settings: SelectionSettings,
    training: TrainingSettings,
    progress: Progress,
) -> dict[str, Tensor]:
    """For each fold a surrogate of the other pictures, its left-out judges and the candidates there (theory.md, The
    cross-fitted form): `judges`, `judge_curvature` and `fold_gradients` as `Sketches` has them.

    Leave-one-out up to 6 pictures, else 4 folds.  A judge's draws are its own, never the candidates'.
    """
    count = len(subject)
    folds = count if count <= 6 else 4
    judges, judge_curvature, gradients = [], [], []
    for fold in range(folds):
        left = torch.arange(fold, count, folds)
        rest = torch.tensor([i for i in range(count) if i % folds != fold])
        with lora(backbone, training.rank, settings.seed) as weights:
            projection = make_projection(backbone.unet, settings.sketch_size, settings.seed)
            others = subject[rest]
            for step in train(backbone, weights, new_optimizer(weights, training), others, None, training):
                progress(f"Training the surrogate of fold {fold + 1}", step.number, training.steps)
            judged = _judge(backbone, subject[left], left, JUDGE_STREAM + fold, projection, settings.seed)
            judges.append(judged["judges"])
            judge_curvature.append(judged["judge_curvature"])
            what = f"Sketching at fold {fold + 1}"
            gradients.append(_sketch_all(backbone, ids, candidates, projection, 0, settings, what, progress)[0])
    longest = max(len(c) for c in judge_curvature)
    padded = [torch.nn.functional.pad(c, (0, 0, 0, longest - len(c))) for c in judge_curvature]  # folds differ in size
    return {
        "judges": torch.stack(judges),
        "judge_curvature": torch.stack(padded),
        "fold_gradients": torch.stack(gradients),
    }


def sketch_images(
    backbone: Backbone,
    images: Encoded,
    keys: Tensor,
    draw: tuple[Tensor, Tensor],
    projection: Projection,
    vectors: int,
    curvature: str,
    seed: int,
    done: Callable[[int], None] = lambda count: None,
) -> BatchSketch:
    """Sketch b images over the same timesteps (d,) and noises (d, c, h, w), as many rows at once as the preset allows.

    `done` is told how many are.
    """
    draws, predict = len(draw[0]), _predictor(backbone, draw)
    at_once = min(backbone.preset.rows_at_once, draws)
    options = {"draws": draws, "draws_at_once": at_once, "vectors": vectors, "curvature": curvature, "seed": seed}

    def sketch_rows(rows: Tensor) -> BatchSketch:
        return sketch(backbone.unet, predict, images[rows], keys[rows], projection, **options)

    return _in_passes(backbone, len(images), draws, sketch_rows, done)


def _sketch_all(
    backbone: Backbone,
    ids: Sequence[str],
    candidates: Encoded,
    projection: Projection,
    vectors: int,
    settings: SelectionSettings,
    what: str,
    progress: Progress,
) -> tuple[Tensor, Tensor]:
    """Gradients (n, k) and curvature (n, vectors, k) of all candidates, on the CPU, over their common draws.

    The curvature has the directions of the gradients' covariance, which come out of their own backward, and the trace of
    the Gauss-Newton matrix, as the subject's has, beside which it is weighed: the two are the same only where residuals are
    white, and here they are not (theory.md, Sketch).
    """
    keys = torch.tensor([crc32(name.encode()) for name in ids])
    draw = backbone.draw(settings.draws, step_generator(settings.seed, -CANDIDATE_STREAM))

    def done(count: int) -> None:
        progress(what, count, len(ids))

    made = sketch_images(backbone, candidates, keys, draw, projection, vectors, "fisher", settings.seed, done)
    gradients, curvature = made.gradients.cpu(), made.curvature.cpu()
    if vectors:
        found = min(len(ids), settings.shortlist)  # what comes after was not found, but is asked about
        some = torch.linspace(0, found - 1, SIZED).round().long().unique()
        exact = sketch_images(backbone, candidates[some], keys[some], draw, projection, 1, "gauss_newton", settings.seed)
        trace, own = (rows.square().sum() for rows in (exact.curvature.cpu(), curvature[some]))
        curvature *= (trace / own).sqrt()
    return gradients, curvature


def _judge(
    backbone: Backbone, images: Encoded, keys: Tensor, stream: int, projection: Projection, seed: int
) -> dict[str, Tensor]:
    """`judges` (d, k) and `judge_curvature` (s, k) of one fold, from draws of its own."""
    draw = backbone.draw(SUBJECT_DRAWS, step_generator(seed, -stream))
    found = sketch_images(backbone, images, keys, draw, projection, SUBJECT_VECTORS, "gauss_newton", seed)
    gradients = _gradient_by_draw(backbone, images, draw, projection)
    return {"judges": gradients, "judge_curvature": found.curvature.flatten(0, 1).cpu()}


def _gradient_by_draw(backbone: Backbone, images: Encoded, draw: tuple[Tensor, Tensor], projection: Projection) -> Tensor:
    """The images' summed gradient in each of d draws (d, k): every draw counts as an image of its own."""
    (timesteps, noise), count = draw, len(draw[0])

    def predict(rows: Tensor, _: slice) -> tuple[Tensor, Tensor, float]:
        made = backbone.predict(images[rows // count], timesteps[rows % count], noise[rows % count])
        return *(part.contiguous() for part in made), 1.0

    def sketch_rows(rows: Tensor) -> BatchSketch:
        return sketch(backbone.unet, predict, rows, rows, projection, vectors=0)

    made = _in_passes(backbone, len(images) * count, 1, sketch_rows)
    return made.gradients.view(len(images), count, -1).sum(0).cpu()


def _in_passes(
    backbone: Backbone,
    images: int,
    draws: int,
    sketch_rows: Callable[[Tensor], BatchSketch],
    done: Callable[[int], None] = lambda count: None,
) -> BatchSketch:
    """Sketches of `images`, as many in one pass as the preset has room for, at least one."""
    made = []
    with checkpointing(backbone):
        for rows in torch.arange(images).split(max(backbone.preset.rows_at_once // draws, 1)):
            made.append(sketch_rows(rows))
            done(int(rows[-1]) + 1)
    return BatchSketch(*map(torch.cat, zip(*made)))


def _predictor(backbone: Backbone, draw: tuple[Tensor, Tensor]) -> Predict:
    """What `sketch` calls: prediction, target and weight of every image of a batch under each draw, image by image."""

    def predict(batch: Encoded, part: slice) -> tuple[Tensor, Tensor, float]:
        timesteps, noise = (values[part] for values in draw)
        images = batch[torch.arange(len(batch)).repeat_interleave(len(timesteps))]
        prediction, target = backbone.predict(images, timesteps.repeat(len(batch)), noise.repeat(len(batch), 1, 1, 1))
        return prediction.contiguous(), target.contiguous(), 1.0

    return predict

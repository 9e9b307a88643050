"""What sketches tell of curvature: Fisher beside Gauss-Newton, and both beside a real training step (theory.md, Sketch).

    python benchmarks/curvature.py

Two subjects outside the suite, on the sticker backbone; some ten minutes.  Writes docs/benchmarks/curvature.md and .json.
"""

from __future__ import annotations

from dataclasses import replace

import record
import torch
from torch import Tensor

from bat_ui.albat.selection import assess, make_sketches
from bat_ui.albat.sketch import BatchSketch, Projection, lora_layers, make_projection
from bat_ui.albat.validity import HARMFUL, VALID, cluster
from bat_ui.backbones import load_backbone
from bat_ui.backbones.encoded import Encoded
from bat_ui.backbones.stable_diffusion import Backbone
from bat_ui.evaluation.subjects import Case, load_case
from bat_ui.search import find_candidates, open_store
from bat_ui.seeds import step_generator
from bat_ui.settings import SelectionSettings, TrainingSettings
from bat_ui.sketching import (
    CANDIDATE_STREAM,
    CLASS_LIKE,
    PICTURES_PER_GROUP,
    SUBJECT_DRAWS,
    SUBJECT_STREAM,
    SUBJECT_VECTORS,
    sketch_images,
)
from bat_ui.training.loop import new_optimizer, train
from bat_ui.training.lora import lora

SUBJECTS = ("flat/monkeys", "outlined/animals")
SETTINGS, TRAINING, SURROGATE_STEPS = SelectionSettings(), TrainingSettings(), 60
FISHER, SIZED, EXACT = "Fisher", "Fisher, sized", "Gauss-Newton, 3 vectors"
FORMS = {FISHER: ("fisher", 1), "Gauss-Newton, 1 vector": ("gauss_newton", 1), EXACT: ("gauss_newton", 3)}
BEFORE, AFTER = 40, 50  # steps of one run, between which the gradients' change is compared with what curvature makes of it
NEAR, OTHERS, VECTORS = 40, 20, 3  # candidates, candidates from the end of the list, and Gauss-Newton vectors of each
STEP = ("cosine", "sketched", "measured")


def main() -> None:
    backbone = load_backbone()
    store = open_store(backbone)
    figures = {}
    for name in SUBJECTS:
        case = load_case(name, seed=0)
        found = find_candidates(store, backbone, case.given, case.class_prompt, SETTINGS)
        candidates = backbone.encode(store.pictures(found.ids), found.captions)
        subject = case.given.encode(backbone)
        figures[name] = {
            "surrogate": at_surrogate(backbone, candidates, found.vectors, subject),
            "step": along_step(backbone, candidates, subject, case),
        }
    record.write("curvature", figures, describe(figures), headline(figures))


def at_surrogate(backbone: Backbone, candidates: Encoded, vectors: Tensor, subject: Encoded) -> dict:
    """Traces, directions and ranks of the forms of curvature at one surrogate, and what `assess` makes of each."""
    count, training = len(candidates), replace(TRAINING, steps=SURROGATE_STEPS)
    groups = cluster(vectors, max(count // PICTURES_PER_GROUP, 1), SETTINGS.seed)
    with lora(backbone, training.rank, SETTINGS.seed) as weights:
        for _ in train(backbone, weights, new_optimizer(weights, training), subject, None, training):
            pass
        projection = make_projection(backbone.unet, SETTINGS.sketch_size, SETTINGS.seed)
        draw = backbone.draw(SUBJECT_DRAWS, step_generator(SETTINGS.seed, -SUBJECT_STREAM))
        keys = torch.arange(len(subject))
        adapted = sketch_images(backbone, subject, keys, draw, projection, SUBJECT_VECTORS, "gauss_newton", SETTINGS.seed)
        draw = backbone.draw(SETTINGS.draws, step_generator(SETTINGS.seed, -CANDIDATE_STREAM))
        keys = torch.arange(count)
        made = {
            form: sketch_images(backbone, candidates, keys, draw, projection, vectors, kind, SETTINGS.seed)
            for form, (kind, vectors) in FORMS.items()
        }
    fisher, exact = made[FISHER].curvature, made[EXACT].curvature
    ratio = trace(fisher) / trace(exact)
    sized = fisher * (trace(exact).sum() / trace(fisher).sum()).sqrt()
    forms = {form: (each.gradients, each.curvature) for form, each in made.items()}
    forms[SIZED] = made[FISHER].gradients, sized
    return {
        "trace_ratio": dict(zip(("p5", "p50", "p95"), ratio.quantile(torch.tensor([0.05, 0.5, 0.95])).tolist())),
        "cosine": overlap(fisher, exact) / (overlap(fisher, fisher) * overlap(exact, exact)) ** 0.5,
        "rank": {form: group_ranks(curvature, groups) for form, (_, curvature) in forms.items()},
        "assessed": {form: assessed(*each, groups, adapted) for form, each in forms.items()},
    }


def trace(curvature: Tensor) -> Tensor:
    """(n,): of each image's matrix, given its vectors (n, r, k)."""
    return curvature.square().sum((1, 2))


def overlap(a: Tensor, b: Tensor) -> float:
    """Frobenius product of the mean matrices of two stacks (n, r, k), unbiased: over pairs of different images, whose
    random vectors are independent."""
    products = torch.einsum("irk,jsk->irjs", a, b).square().sum((1, 3))
    return float(products.sum() - products.diagonal().sum()) / (len(a) * (len(a) - 1))


def group_ranks(curvature: Tensor, groups: Tensor) -> float:
    """The median over groups of tr(H)^2 / tr(H^2), the number of directions that share a matrix's trace."""
    ranks = []
    for label in groups.unique():
        own = curvature[groups == label]
        if len(own) > 2:
            traces = trace(own)
            pairs = float(traces.sum() ** 2 - traces.square().sum()) / (len(own) * (len(own) - 1))
            ranks.append(pairs / overlap(own, own))
    return float(torch.tensor(ranks).median())


def assessed(gradients: Tensor, curvature: Tensor, groups: Tensor, adapted: BatchSketch) -> dict[str, float]:
    ids = tuple(str(i) for i in range(len(gradients)))
    risk = curvature[:CLASS_LIKE].flatten(0, 1) / CLASS_LIKE**0.5
    found = assess(make_sketches(ids, groups, gradients, curvature, adapted.curvature, risk=risk))
    verdicts = [group.verdict for group in found.validity.groups]
    return {
        "noise": found.noise,
        "groups": len(verdicts),
        "valid": verdicts.count(VALID),
        "harmful": verdicts.count(HARMFUL),
    }


def along_step(backbone: Backbone, candidates: Encoded, subject: Encoded, case: Case) -> dict:
    """How the mean gradients of three sets change between two steps of a run, beside their curvature times the step."""
    sets = {
        "near the class": candidates[torch.arange(NEAR)],
        "others": candidates[torch.arange(len(candidates) - OTHERS, len(candidates))],
        "held out": backbone.encode(case.truths, case.captions),
    }
    with lora(backbone, TRAINING.rank, SETTINGS.seed) as weights:
        projection, seen = make_projection(backbone.unet, SETTINGS.sketch_size, SETTINGS.seed), {}
        for step in train(backbone, weights, new_optimizer(weights, TRAINING), subject, None, TRAINING):
            if step.number in (BEFORE, AFTER):
                gradients = {name: mean_gradient(backbone, images, weights) for name, images in sets.items()}
                seen[step.number] = [{name: p.detach().cpu().clone() for name, p in weights.items()}, gradients]
            if step.number == BEFORE:
                sketched = {name: sketch_set(backbone, images, projection) for name, images in sets.items()}
            if step.number == AFTER:
                break
        (start, first), (end, last) = seen[BEFORE], seen[AFTER]
        move = difference(end, start)
        place, found = projected(backbone, move, projection), {"length": inner(move, move) ** 0.5}
        for name in sets:
            change, vectors = difference(last[name], first[name]), sketched[name].curvature
            expected = torch.einsum("irk,ir->k", vectors, vectors @ place) / len(vectors)
            found[name] = {
                "cosine": float(torch.cosine_similarity(projected(backbone, change, projection), expected, 0)),
                "sketched": float(place @ expected),
                "measured": inner(move, change),
            }
    return found


def mean_gradient(backbone: Backbone, images: Encoded, weights: dict[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    """Of the images' mean loss over the draws of their sketches, by a plain backward each."""
    timesteps, noise = backbone.draw(SETTINGS.draws, step_generator(SETTINGS.seed, -CANDIDATE_STREAM))
    totals = {name: torch.zeros(p.shape) for name, p in weights.items()}
    for i in range(len(images)):
        prediction, target = backbone.predict(images[torch.full((len(timesteps),), i)], timesteps, noise)
        found = torch.autograd.grad((prediction - target).square().mean(), list(weights.values()))
        for name, gradient in zip(weights, found):
            totals[name] += gradient.cpu() / len(images)
    return totals


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: a[name] - b[name] for name in a}


def inner(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return sum(float((a[name].double() * b[name].double()).sum()) for name in a)


def projected(backbone: Backbone, values: dict[str, Tensor], projection: Projection) -> Tensor:
    """(k,): what is shaped like the adapter in the coordinates of the sketches."""
    total = torch.zeros(projection.size)
    for layer in lora_layers(backbone.unet):
        for name in (layer.a_weight, layer.b_weight):
            total += projection.apply(name, values[name].reshape(1, -1).to(backbone.device))[0].cpu()
    return total


def sketch_set(backbone: Backbone, images: Encoded, projection) -> BatchSketch:
    draw = backbone.draw(SETTINGS.draws, step_generator(SETTINGS.seed, -CANDIDATE_STREAM))
    keys = torch.arange(len(images))
    made = sketch_images(backbone, images, keys, draw, projection, VECTORS, "gauss_newton", SETTINGS.seed)
    return BatchSketch(*(part.cpu() for part in made))


def describe(figures: dict) -> str:
    at = {name: found["surrogate"] for name, found in figures.items()}
    ratios = [[name, *(f"{v:.1f}" for v in f["trace_ratio"].values()), f"{f['cosine']:.2f}"] for name, f in at.items()]
    estimates = [
        [
            name,
            form,
            f"{found['rank'][form]:.0f}",
            f"{judged['noise']:.2g}",
            judged["groups"],
            judged["valid"],
            judged["harmful"],
        ]
        for name, found in at.items()
        for form, judged in found["assessed"].items()
    ]
    steps = [
        [name, f"{found['step']['length']:.1f}", kind, *(f"{found['step'][kind][key]:.2g}" for key in STEP)]
        for name, found in figures.items()
        for kind in found["step"]
        if kind != "length"
    ]
    return f"""# What sketches tell of curvature

{SETTINGS.shortlist} candidates and the subject's pictures at a surrogate of {SURROGATE_STEPS} steps, {SETTINGS.draws} draws
of each candidate, {SETTINGS.sketch_size} numbers a sketch.

## Fisher beside Gauss-Newton

The trace of one image's matrix, Fisher's over Gauss-Newton's, and the cosine between the mean matrices over pairs of
different images:

{record.table(["subject", "5 %", "median", "95 %", "cosine"], ratios)}

What is estimated from each. The rank of a group is tr(H)^2 / tr(H^2), in the median. `{SIZED}` has the trace of the
Gauss-Newton matrices, as the product has it:

{record.table(["subject", "curvature", "rank of a group", "sigma^2", "groups", "valid", "harmful"], estimates)}

## Along a training step, from step {BEFORE} to {AFTER}

The change of the mean gradient beside what the sketched Gauss-Newton matrix makes of the step: their cosine, and the
curvature along the step, sketched and as the gradients change:

{record.table(["subject", "length of the step", "pictures", *STEP], steps)}
"""


def headline(figures: dict) -> dict[str, float]:
    return {f"{name} median trace ratio": found["surrogate"]["trace_ratio"]["p50"] for name, found in figures.items()}


if __name__ == "__main__":
    main()

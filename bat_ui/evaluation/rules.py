"""The rules that the suite compares: each one names the backbone pictures of a run.

In: a case, a store, and for rules of gradients a `Pool` of sketches that all of them share.  Out: `Chosen`, and what the
theory predicts for it.  A rule that takes pictures takes `number` of them, or as many as there are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from zlib import crc32

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from bat_ui.albat.benefit import asymptotic_error, error_curve
from bat_ui.albat.cross_fit import rank_by_score
from bat_ui.albat.selection import Assessment, Sketches, assess, risk_of, select
from bat_ui.albat.strength import MOST, most_strength
from bat_ui.albat.validity import cluster
from bat_ui.backbones.encoded import Encoded
from bat_ui.backbones.stable_diffusion import Backbone
from bat_ui.choice import load_sketches, save_sketches
from bat_ui.errors import UserError
from bat_ui.evaluation.subjects import Case
from bat_ui.files import read_json, replacing, write_json
from bat_ui.generation import generate
from bat_ui.left_out import LeftOut, left_out_losses, steps_alone, surrogate_steps
from bat_ui.project import Progress
from bat_ui.search import find_candidates
from bat_ui.settings import GenerationSettings, SelectionSettings, TrainingSettings
from bat_ui.sketching import PICTURES_PER_GROUP, sketch_candidates, sketch_folds
from bat_ui.store.table import Store

# Each is a rule of albat/selection.py with its options; a new ablation is one line here.
SKETCHED = {
    "gradient_cosine": ("gradient_cosine", {}),
    "albat": ("albat", {}),
    "cross_fit": ("cross_fit", {}),
    "albat_without_validity": ("without_validity", {}),
    "albat_without_benefit": ("without_benefit", {}),
    "albat_without_when": ("albat", {}),
    "albat_by_group": ("by_group", {}),
    "albat_by_image": ("by_image", {}),
    "albat_strict": ("albat", {"strict": True}),
    "albat_weighted": ("albat", {"weighted": True}),
}
FIXED = ("albat_without_when",)  # pictures come in when those of all other rules do, whatever left-out pictures say
FOLDED = ("gradient_cosine", "cross_fit")  # judged
OWN_NUMBER = tuple(rule for rule in SKETCHED if rule not in FOLDED)  # and weight: nothing to tune
FROM_STORE = ("random", "nearest_subject", "nearest_class", "oracle")
# Pictures of another rule that come in as ALBAT's do: what of ALBAT's effect is which pictures, and what is when?
WHEN = {"random_when": "random", "nearest_class_when": "nearest_class", "oracle_when": "oracle"}
# Pictures of another rule that come in later than those of all other rules: is that step a poor one?
LATE, LATE_STEPS = {"random_late": "random", "nearest_class_late": "nearest_class"}, 200
POOLED = (*SKETCHED, *WHEN)  # need what is found out about a subject before anything is chosen
RULES = (
    "backbone",
    "none",
    "none_share",
    "prior",
    "random",
    "whole_store",
    "nearest_subject",
    "nearest_class",
    "random_late",
    "nearest_class_late",
    "random_when",
    "nearest_class_when",
    "gradient_cosine",
    "albat",
    "cross_fit",
    "albat_without_validity",
    "albat_without_benefit",
    "albat_by_group",
    "albat_by_image",
    "albat_without_when",
    "oracle",
    "oracle_when",
)
ABLATIONS = tuple(rule for rule in SKETCHED if rule not in RULES)
# `backbone` is no training at all; `none_share` has batches of half as many subject pictures.
WITHOUT_PICTURES = ("backbone", "none", "none_share")
WITHOUT_NUMBER = (*WITHOUT_PICTURES, "whole_store")
EXTRA = 40  # of each rule in FROM_STORE are sketched beside the shortlist, only to predict what these rules do


@dataclass(frozen=True, eq=False)
class Chosen:
    """The backbone pictures of a run (None: no picture), their ids where they are in the store, the seconds it took."""

    images: Encoded | None
    ids: tuple[str, ...]
    seconds: float
    strength: float = 1.0  # what the rule would have the weight lambda multiplied by
    subject_steps: int | None = None  # when the rule would have them come in; None: when the suite says


@dataclass(frozen=True, eq=False)
class World:
    """What all cases share: the backbone, its store, and the store's pictures encoded, in the order of its ids."""

    backbone: Backbone
    store: Store
    encoded: Encoded

    @cached_property
    def place(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.store.ids)}

    def images(self, ids: Sequence[str]) -> Encoded:
        """The encoded pictures of these ids."""
        rows = torch.tensor([self.place[i] for i in ids])
        return self.encoded[rows]


def encode_store(backbone: Backbone, store: Store, chunk: int = 256) -> Encoded:
    """Every picture of the store with its caption, ready for training."""
    parts = []
    for start in range(0, store.count, chunk):
        pictures = store.pictures(store.ids[start : start + chunk])
        captions = store.captions[start : start + chunk]
        parts.append(backbone.encode(pictures, captions))
    return Encoded.cat(parts)


def ranked_ids(rule: str, world: World, case: Case, seed: int) -> list[str]:
    """All ids of a rule in FROM_STORE, best first."""
    store, clip = world.store, world.backbone.clip
    if rule == "oracle":
        return [i for i in case.relatives if i in world.place]
    if rule == "random":
        order = torch.randperm(store.count, generator=torch.Generator().manual_seed(seed))
    else:
        query = clip.embed_texts([case.class_prompt]) if rule == "nearest_class" else clip.embed_images(case.given.images)
        order = (store.vectors @ query.T).amax(1).argsort(descending=True, stable=True)
    return [store.ids[i] for i in order.tolist()]


def choose(rule: str, number: int | None, world: World, case: Case, seed: int, pool: Pool | None, cache: Path) -> Chosen:
    """The pictures of one run; number None is the whole list, for rules of sketches their own suggestion.

    Raises UserError for an unknown rule.
    """
    started = time.perf_counter()
    if rule in WITHOUT_PICTURES:
        return Chosen(None, (), 0.0)
    if rule == "prior":
        count = 40 if number is None else number
        pictures, seconds = prior_pictures(world.backbone, case.class_prompt, count, seed, cache)
        return Chosen(world.backbone.encode(pictures, [case.class_prompt] * count), (), seconds)
    if rule == "whole_store":
        return Chosen(world.encoded, world.store.ids, 0.0)
    if rule in FROM_STORE:
        ids = tuple(ranked_ids(rule, world, case, seed)[:number])
        return Chosen(world.images(ids), ids, time.perf_counter() - started)
    if rule in LATE:
        return replace(choose(LATE[rule], number, world, case, seed, pool, cache), subject_steps=LATE_STEPS)
    if rule in WHEN:
        found = choose(WHEN[rule], number, world, case, seed, pool, cache)
        seconds = found.seconds + pool.seconds["left_out"]
        return replace(found, seconds=seconds, strength=pool.most_strength, subject_steps=pool.subject_steps)
    if rule not in SKETCHED:
        raise UserError(f'There is no rule "{rule}": choose from {", ".join(RULES + ABLATIONS)}.')
    name, options = SKETCHED[rule]
    folded = rule in FOLDED
    if folded:
        sketches, assessment = pool.folded, pool.folded_assessment
    else:
        sketches, assessment = pool.candidates, pool.assessment
    measured = rule not in FIXED and not folded
    most = pool.most_strength if measured else MOST
    found = select(sketches, assessment, name, number, most=most, **options)
    alone = pool.subject_steps if measured else None
    parts = ("sketches", *(["folds"] if folded else []), *(["left_out"] if alone is not None else []))
    seconds = time.perf_counter() - started + sum(pool.seconds[part] for part in parts)
    if not found.chosen:
        return Chosen(None, (), seconds)
    images = replace(world.images(found.chosen), weights=torch.from_numpy(found.weights).float())
    return Chosen(images, found.chosen, seconds, found.strength, alone)


def prior_pictures(backbone: Backbone, prompt: str, count: int, seed: int, cache: Path) -> tuple[list[Image.Image], float]:
    """`count` pictures that the backbone itself draws from the prompt, as DreamBooth has it, and the seconds they took.

    They are kept in `cache`, and a smaller number is the beginning of a larger one.
    """
    folder = cache / "prior" / f"{crc32(prompt.encode()):08x}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    paths, batch = [folder / f"{i:04d}.png" for i in range(count)], 16
    clock = folder / "seconds.json"
    per_picture = json.loads(clock.read_text(encoding="utf-8")) if clock.is_file() else 0.0
    for start in range(0, count, batch):
        missing = [p for p in paths[start : start + batch] if not p.is_file()]
        if not missing:
            continue
        began, wanted = time.perf_counter(), paths[start : start + batch]
        settings = GenerationSettings(seed=100_000 * (seed + 1) + start)
        for path, picture in zip(wanted, generate(backbone, [prompt] * len(wanted), settings)):
            with replacing(path) as draft:
                picture.save(draft, format="PNG")
        per_picture = (time.perf_counter() - began) / len(wanted)
        clock.write_text(json.dumps(per_picture), encoding="utf-8")
    return [Image.open(path).convert("RGB") for path in paths], per_picture * count


@dataclass(frozen=True, eq=False)
class Pool:
    """Sketches of one case and seed, shared by all rules: the shortlist is the first `count` of `ids`, the rest are EXTRA.

    `everything` holds the sketches of all of them, folds included if they were asked for; `subject_steps` is how long a run
    is the subject's alone, `most_strength` what lambda may reach after that.
    """

    everything: Sketches
    vectors: Tensor
    count: int
    seed: int
    subject_steps: int
    most_strength: float
    seconds: dict[str, float]

    @cached_property
    def folded(self) -> Sketches:
        """The shortlist with the left-out judges, for the cross-fitted rules."""
        s, n = self.everything, self.count
        groups = cluster(self.vectors[:n], max(n // PICTURES_PER_GROUP, 1), self.seed)
        return replace(
            s,
            ids=s.ids[:n],
            groups=groups,
            gradients=s.gradients[:n],
            curvature=s.curvature[:n],
            fold_gradients=s.fold_gradients[:, :n],
        )

    @cached_property
    def candidates(self) -> Sketches:
        """The shortlist as the product sketches it, without judges."""
        return _without_folds(self.folded)

    @cached_property
    def assessment(self) -> Assessment:
        return assess(self.candidates)

    @cached_property
    def folded_assessment(self) -> Assessment:
        return assess(self.folded)

    @cached_property
    def whole_assessment(self) -> Assessment:
        return assess(_without_folds(self.everything))


def make_pool(
    world: World,
    case: Case,
    settings: SelectionSettings,
    training: TrainingSettings,
    folds: bool,
    further: int,
    folder: Path,
    progress: Progress,
) -> Pool:
    """Sketch the shortlist, `further` pictures of other rules, and with `folds` the left-out judges; kept in `folder`."""
    seed, backbone = training.seed, world.backbone
    settings = replace(settings, seed=seed)
    found = find_candidates(world.store, backbone, case.given, case.class_prompt, settings)
    extra = dict.fromkeys(i for rule in FROM_STORE for i in ranked_ids(rule, world, case, seed)[:further])
    ids = (*found.ids, *(i for i in extra if i not in set(found.ids)))
    vectors, images, subject = world.store.vectors_of(ids), world.images(ids), case.given.encode(backbone)
    main, folded, clock = folder / "sketches.safetensors", folder / "folds.safetensors", folder / "seconds.json"
    turning = folder / "left_out.json"
    folder.mkdir(parents=True, exist_ok=True)
    seconds = json.loads(clock.read_text(encoding="utf-8")) if clock.is_file() else {}
    # Pictures that only the prediction needs are no part of what a selection costs.
    share = len(found.ids) / len(ids)
    if settings.surrogate_steps is None and not turning.is_file():
        began = time.perf_counter()
        losses = left_out_losses(backbone, subject, training, progress)
        write_json(turning, asdict(losses) if losses else {})
        seconds |= {"left_out": time.perf_counter() - began}
        write_json(clock, seconds)
    kept = read_json(turning) if settings.surrogate_steps is None else None
    found_out = LeftOut(**kept) if kept else None
    alone = steps_alone(settings, training, found_out)
    most = most_strength(training.steps, found_out and found_out.turning)
    surrogate = training.subject_alone(surrogate_steps(settings, training, alone))
    if not main.is_file():
        began = time.perf_counter()
        save_sketches(sketch_candidates(backbone, ids, vectors, images, subject, settings, surrogate, progress), main)
        seconds |= {"sketches": share * (time.perf_counter() - began)}
        write_json(clock, seconds)
    sketches = load_sketches(main)
    if folds:
        if not folded.is_file():
            began = time.perf_counter()
            parts = sketch_folds(backbone, ids, images, subject, settings, surrogate, progress)
            with replacing(folded) as draft:
                save_file(parts, draft)
            seconds |= {"folds": share * (time.perf_counter() - began)}
            write_json(clock, seconds)
        sketches = replace(sketches, **load_file(folded))
    seconds = {"left_out": 0.0, "sketches": 0.0, "folds": 0.0} | seconds
    return Pool(sketches, vectors, len(found.ids), seed, alone, most, seconds)


def predict(pool: Pool, ids: Sequence[str], weights: Tensor | None, strength: float) -> dict[str, float | None]:
    """What the theory says of training on the pictures `ids`, relative to training on the subject alone.

    All for the weights that training gives: `strength` times the mean loss of the pictures, each as often as `weights` (mean
    one; None: equally). rho: predicted error with the bias of disagreeing groups; rho_sandwich: tr(Q H^-1 G H^-1), no bias;
    rho_cross_fit: first to second order change of the left-out loss by the judges, negative is better (None without folds).
    Pictures that were not sketched count as much as the mean of those that were; None if there is none of these.
    """
    if not ids:
        return {"rho": 1.0, "rho_sandwich": 1.0, "rho_cross_fit": 0.0 if len(pool.everything.judges) else None}
    s, a, place = pool.everything, pool.whole_assessment, {name: i for i, name in enumerate(pool.everything.ids)}
    rows = torch.tensor([place[i] for i in ids if i in place], dtype=torch.long)
    if not len(rows):
        return {"rho": None, "rho_sandwich": None, "rho_cross_fit": None}
    curvature, adaptation = s.curvature[rows], s.adaptation_curvature.flatten(0, 1)
    risk, scale, given = risk_of(s), {"noise": a.noise, "ridge": a.ridge}, len(s.adaptation_curvature)
    odds = torch.ones(len(ids)) if weights is None else weights
    odds = odds[[i in place for i in ids]]
    stand_for = len(ids) / len(rows)
    weights = strength * given * odds / odds.sum()  # of one picture's loss beside one of the subject's
    errors = error_curve(
        curvature, s.groups[rows], lambda size: weights[:size], risk, adaptation, **scale,
        disagreement=a.validity.disagreement(), sizes=1,
    )  # fmt: skip
    each = (weights / stand_for**0.5).repeat_interleave(curvature.shape[1])
    scores = torch.cat([adaptation, curvature.flatten(0, 1) * each[:, None]]) * a.noise**0.5
    alone = asymptotic_error(curvature[:0], risk, adaptation, **scale, scores=adaptation * a.noise**0.5)
    both = asymptotic_error(curvature, risk, adaptation, **scale, weights=weights, scores=scores)
    change = None
    if len(s.judges):
        change = rank_by_score(
            s.judges, s.fold_gradients[:, rows], curvature, s.judge_curvature.flatten(0, 1) / len(s.judges) ** 0.5,
            adaptation, ridge=a.ridge, weight=float(weights.mean()),
        ).errors[-1].item()  # fmt: skip
    return {"rho": float(errors[-1] / errors[0]), "rho_sandwich": both / alone, "rho_cross_fit": change}


def _without_folds(s: Sketches) -> Sketches:
    return replace(s, judges=s.judges[:0], judge_curvature=s.judge_curvature[:0], fold_gradients=s.fold_gradients[:0])

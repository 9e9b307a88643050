"""Selection: from sketches to a ranked, explained choice of backbone images (theory.md, ALBAT steps 4 to 6).

In: Sketches, plain arrays that somebody else saves. Out: an Assessment (scales, group verdicts and strengths, computed
once) and a Selection (order, gains, predicted-error curve, knee, chosen images and their weights), recomputed at once
whenever an image is excluded or forced. Left out on purpose: the model, the images, disk and page.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from bat_ui.albat.allocation import GroupCurvature, group_curvature, rank_by_allocation
from bat_ui.albat.benefit import SIZES, Ranking, design_weights, error_curve, gradient_cosine, knee, rank_by_benefit
from bat_ui.albat.cross_fit import FoldScores, ScoredGroup, fold_scores, judge_groups, rank_by_score
from bat_ui.albat.evidence import Judge, estimate_scales, least_noise, observe
from bat_ui.albat.strength import MOST, Shares, best_strength, strength_curves, tolerance
from bat_ui.albat.validity import HARMFUL, VALID, Validity, group_disagreement
from bat_ui.errors import UserError

RULES = (
    "albat", "cross_fit", "without_validity", "without_benefit", "by_group", "by_image", "gradient_cosine"
)  # fmt: skip
STRENGTHENED = ("albat", "by_group", "by_image")  # lambda is as large as the groups allow; elsewhere `most`
PREDICTED = (*STRENGTHENED, "without_validity")  # Proposition 2 says what their images take off the error
JUDGED = ("cross_fit", "gradient_cosine")  # by left-out subject images
METHOD = 15  # counts up when a choice changes, so that nobody compares the results of two methods as if they were one
# Bounds of the default number: so many at least, and from there on none that counts less than this beside a subject image.
# by_image ranks by the weights that FEWEST images have.
FEWEST, LIGHTEST = 40, 0.5


@dataclass(frozen=True)
class Sketches:
    """Everything that the selection needs of n candidates, a adaptation images and f folds, k numbers each (float32).

    ids: the candidates' ids, nearest to the class first. groups (n,): their labels, from cluster().
    gradients (n, k), curvature (n, r, k): the candidates at the surrogate.
    adaptation_curvature (a, r, k): the subject images at the surrogate.
    risk (l, k): vectors of Q, sum of outer products = mean curvature of class-like images; empty: of all candidates.
    judges (f, d, k): left-out subject images at each fold's surrogate, SUMMED over the fold's images, in d draws that
        are independent of the candidates'. judge_curvature (f, s, k): vectors of their summed curvature.
    fold_gradients (f, n, k): the candidates at each fold's surrogate.

    Parts that a rule does not use may be empty.
    """

    ids: tuple[str, ...]
    groups: Tensor
    gradients: Tensor
    curvature: Tensor
    adaptation_curvature: Tensor
    risk: Tensor
    judges: Tensor
    judge_curvature: Tensor
    fold_gradients: Tensor

    def to_arrays(self) -> dict[str, np.ndarray]:
        """NumPy arrays by field name; ids as UTF-8 bytes (uint8) joined by newlines."""
        arrays = {f.name: getattr(self, f.name).cpu().numpy() for f in fields(self) if f.name != "ids"}
        return {"ids": np.frombuffer("\n".join(self.ids).encode(), dtype=np.uint8).copy(), **arrays}

    @staticmethod
    def from_arrays(arrays: dict[str, np.ndarray]) -> Sketches:
        """The inverse of to_arrays."""
        text = np.asarray(arrays["ids"]).tobytes().decode()
        rest = {f.name: torch.from_numpy(np.array(arrays[f.name])) for f in fields(Sketches) if f.name != "ids"}
        return Sketches(tuple(text.split("\n")) if text else (), **rest)


def make_sketches(
    ids: tuple[str, ...],
    groups: Tensor,
    gradients: Tensor,
    curvature: Tensor,
    adaptation_curvature: Tensor,
    **parts: Tensor,
) -> Sketches:
    """Sketches with the parts not named left empty."""
    size = gradients.shape[1]
    empty = {
        "risk": (0, size),
        "judges": (0, 0, size),
        "judge_curvature": (0, 0, size),
        "fold_gradients": (0, len(ids), size),
    }
    filled = {name: parts.pop(name, gradients.new_zeros(shape)) for name, shape in empty.items()}
    if parts:
        raise ValueError(f"unknown parts: {sorted(parts)}")
    return Sketches(ids, groups, gradients, curvature, adaptation_curvature, **filled)


@dataclass(frozen=True)
class Assessment:
    """What does not change when images are excluded or forced: sigma^2, ridge = delta sigma^2, the verdicts of both
    forms (None where the sketches lack its parts), the groups' mean curvature, and by group the strength lambda_j at which
    it helps most alone."""

    noise: float
    ridge: float
    validity: Validity
    strengths: dict[int, float]
    curvature: GroupCurvature
    scores: FoldScores | None
    scored_groups: tuple[ScoredGroup, ...]

    def verdicts(self, rule: str) -> dict[int, str]:
        """Verdict by group label, of the form that the rule uses."""
        groups = self.scored_groups if rule == "cross_fit" else self.validity.groups
        return {g.group: g.verdict for g in groups}


@dataclass(frozen=True)
class Selection:
    """A ranked choice.

    order (m,): candidate indices, best first. gains (m,): each one's part in the fall of the predicted error, whose curve is
    reckoned at some sizes and straight between them (for rules that predict none its score). errors (m + 1,): predicted
    error from no image on (empty where a rule predicts none). knee: the default size. chosen: the ids taken. weights (m,):
    sampling weights of the chosen, mean one. strength: lambda, what their weighted mean loss should count beside the
    subject's. verdicts: for every candidate.
    """

    rule: str
    order: np.ndarray
    gains: np.ndarray
    errors: np.ndarray
    knee: int
    chosen: tuple[str, ...]
    weights: np.ndarray
    strength: float
    verdicts: tuple[str, ...]


def assess(sketches: Sketches) -> Assessment:
    """Estimate sigma^2 and the ridge by marginal likelihood and judge every group: seconds, once for all choices.

    A group may disagree as much as it can and still help with an equal share of lambda = 1 (theory.md, Strength).
    Raises UserError if a number is not finite, or if nothing pulls the adapter.
    """
    s = sketches
    for field in fields(s)[1:]:
        if not torch.isfinite(getattr(s, field.name)).all():
            raise UserError("Some sketches are not finite numbers: train the surrogate with a smaller learning rate.")
    if not all(part.any() for part in (s.gradients, s.curvature, s.adaptation_curvature)):
        raise UserError("The model learns nothing from these pictures, as if they were blank: look at them, or take others.")
    members = [s.groups == label for label in torch.unique(s.groups)]
    gradients, curvatures = [s.gradients[m] for m in members], [s.curvature[m] for m in members]
    pool = observe([own.sum(0) for own in gradients], curvatures)
    judges = [
        # A fold's surrogate saw the other folds' images; their curvature is at hand from their own surrogates.
        Judge(observe([s.judges[f].mean(0)], [c]), torch.cat([s.judge_curvature[:f], s.judge_curvature[f + 1 :]]))
        for f, c in enumerate(s.judge_curvature)
        if len(s.judge_curvature) > 1
    ]
    _, ridge = estimate_scales(pool, s.adaptation_curvature, judges, least_noise(gradients, curvatures, pool))
    return _judge(s, ridge)


def assess_known(sketches: Sketches, *, noise: float, ridge: float) -> Assessment:
    """As `assess` where sigma^2 and the ridge are known."""
    return _judge(sketches, ridge, noise)


def _judge(s: Sketches, ridge: float, noise: float | None = None) -> Assessment:
    curves = strength_curves(s.curvature, s.groups, s.adaptation_curvature, risk_of(s), ridge=ridge)
    allowed = {label: tolerance(*curve, share=1 / len(curves)) * ridge for label, curve in curves.items()}
    validity = group_disagreement(
        s.gradients, s.curvature, s.groups, s.adaptation_curvature, ridge=ridge, noise=noise, tolerance=allowed
    )
    strengths = {label: best_strength(*curves[label], lam) for label, lam in validity.disagreement().items()}
    means = group_curvature(s.curvature, s.groups, s.adaptation_curvature, risk_of(s), ridge=ridge)
    found = (validity.noise, ridge, validity, strengths, means)
    if not len(s.judges):
        return Assessment(*found, None, ())
    scores = fold_scores(s.judges, s.fold_gradients, s.adaptation_curvature.flatten(0, 1), ridge=ridge)
    return Assessment(*found, scores, judge_groups(scores, s.groups))


def select(
    sketches: Sketches,
    assessment: Assessment,
    rule: str = "albat",
    m: int | None = None,
    *,
    excluded: tuple[str, ...] = (),
    forced: tuple[str, ...] = (),
    strict: bool = False,
    weighted: bool = False,
    most: float = MOST,
) -> Selection:
    """Rank the candidates by a rule and take the first m; forced ids first, excluded ones never.

    - albat: nearest first, those of harmful groups last; as many as the predicted-error curve suggests.
    - without_validity: albat as if all groups agreed; without_benefit: albat with FEWEST images and all of `most`.
    - by_group: from the group that takes most off the predicted error, nearest image first; by_image: image by image.
    - cross_fit: groups that left-out subject images find helpful, greedy by their need.
    - gradient_cosine: the baseline of LESS.

    m None: the knee within FEWEST and as many as count LIGHTEST each, and none of a harmful group. strict: only valid
    groups. weighted: sampling weights by A-optimal design on top. most: what lambda may reach.
    Raises UserError for unknown or clashing ids.
    """
    if rule not in RULES:
        raise UserError(f"There is no selection rule called {rule}: choose one of {', '.join(RULES)}.")
    if rule in JUDGED and assessment.scores is None:
        raise UserError("The cross-fitted rules need left-out subject images: sketch the subject in folds.")
    s, where = sketches, {name: i for i, name in enumerate(sketches.ids)}
    unknown = [name for name in (*excluded, *forced) if name not in where]
    if unknown:
        raise UserError(f"The image {unknown[0]} is not among the candidates: choose it from the list.")
    if set(excluded) & set(forced):
        raise UserError("An image is both excluded and added: undo one of the two.")
    by_group = assessment.verdicts(rule)
    verdicts = tuple(by_group[g] for g in s.groups.tolist())
    only_valid = strict or rule == "cross_fit"
    allowed = torch.tensor([v == VALID or not only_valid for v in verdicts], dtype=torch.bool)
    allowed[[where[name] for name in excluded]] = False
    last = torch.tensor([v == HARMFUL and rule != "without_validity" for v in verdicts], dtype=torch.bool)
    first = torch.zeros(len(s.ids), dtype=torch.bool)
    first[[where[name] for name in forced]] = True
    shares = _shares(s, assessment, rule, most)
    ranking = _rank(s, assessment, rule, allowed, first, last, shares)
    errors, gains = ranking.errors, ranking.gains
    if rule in PREDICTED:
        disagreement = dict.fromkeys(assessment.strengths, 0.0) if rule == "without_validity" else None
        errors = predicted_errors(s, assessment, ranking.order, shares, disagreement=disagreement)
        gains = errors[:-1] - errors[1:]
    size, harmless = len(ranking.order), allowed & ~last
    most_images = int((harmless | first).sum())
    if rule == "without_benefit":
        size = min(size, FEWEST, most_images)
    elif len(errors):
        weight = shares.total(harmless.nonzero()[:, 0]) * len(s.adaptation_curvature)
        wanted = knee(errors) if only_valid else max(FEWEST, min(knee(errors), math.ceil(weight / LIGHTEST)))
        size = min(size, wanted, most_images)
    take = min(max(size if m is None else m, len(forced)), len(ranking.order))
    chosen = ranking.order[:take]
    share = shares.of(chosen)
    if weighted and take:
        adaptation, each = s.adaptation_curvature.flatten(0, 1), float(share.mean()) * len(s.adaptation_curvature)
        design = design_weights(s.curvature[chosen], risk_of(s), adaptation, ridge=assessment.ridge, weight=each)
        share = share * design * share.sum() / (share * design).sum()
    return Selection(
        rule=rule,
        order=ranking.order.numpy(),
        gains=gains.numpy(),
        errors=errors.numpy(),
        knee=size,
        chosen=tuple(s.ids[i] for i in chosen.tolist()),
        weights=(share / share.mean()).numpy(),
        strength=shares.total(chosen) if take else 1.0,
        verdicts=verdicts,
    )


def predicted_errors(
    s: Sketches,
    a: Assessment,
    order: Tensor,
    shares: Shares,
    sizes: int = SIZES,
    disagreement: dict[int, float] | None = None,
) -> Tensor:
    """E(S) of the first 0, 1, .. images of an order (m + 1,), each set with the weights that training gives it; lam_j /
    sigma^2 by group label as it was assessed, if None."""
    given, found = len(s.adaptation_curvature), a.validity.disagreement() if disagreement is None else disagreement
    return error_curve(
        s.curvature[order], s.groups[order], lambda size: given * shares.of(order[:size]), risk_of(s),
        s.adaptation_curvature, noise=a.noise, ridge=a.ridge, disagreement=found, sizes=sizes,
    )  # fmt: skip


def predicted_error(s: Sketches, a: Assessment, rule: str, ids: tuple[str, ...], most: float = MOST) -> float:
    """E(S) / E({}) of the images `ids` with the weights that training by `rule` gives them."""
    where = {name: i for i, name in enumerate(s.ids)}
    order = torch.tensor([where[name] for name in ids], dtype=torch.long)
    errors = predicted_errors(s, a, order, _shares(s, a, rule, most), sizes=1)
    return float(errors[-1] / errors[0])


def risk_of(s: Sketches) -> Tensor:
    """Vectors (l, k) of Q: the sketches' own, else the candidates' mean curvature."""
    return s.risk if len(s.risk) else s.curvature.flatten(0, 1) / len(s.ids) ** 0.5


def _shares(s: Sketches, a: Assessment, rule: str, most: float) -> Shares:
    return Shares(s.groups, a.strengths if rule in STRENGTHENED else {}, most)


def _rank(
    s: Sketches,
    a: Assessment,
    rule: str,
    allowed: Tensor,
    first: Tensor,
    last: Tensor,
    shares: Shares,
) -> Ranking:
    adaptation = s.adaptation_curvature.flatten(0, 1)
    if rule == "cross_fit":
        risk = s.judge_curvature.flatten(0, 1) / len(s.judges) ** 0.5 if len(s.judge_curvature) else risk_of(s)
        return rank_by_score(
            s.judges, s.fold_gradients, s.curvature, risk, adaptation,
            ridge=a.ridge, allowed=allowed, forced=first,
        )  # fmt: skip
    if rule in ("by_group", "by_image"):
        open_ones = (allowed | first).nonzero()[:, 0]
        total = shares.total(open_ones) * len(s.adaptation_curvature)
        given = {"noise": a.noise, "allowed": allowed, "forced": first, "last": last}
        if rule == "by_group":
            disagreement = a.validity.disagreement()
            return rank_by_allocation(a.curvature, s.groups, total=total, disagreement=disagreement, **given)
        each = total / min(FEWEST, max(len(open_ones), 1))
        return rank_by_benefit(s.curvature, risk_of(s), adaptation, ridge=a.ridge, weight=each, **given)
    if rule in ("albat", "without_validity", "without_benefit"):
        score = -torch.linspace(0, 1, len(s.ids)) - 2.0 * last
    else:
        score = gradient_cosine(s.fold_gradients, s.judges)
    order = torch.argsort(score + 4.0 * first, descending=True, stable=True)
    order = order[(allowed | first)[order]]
    return Ranking(order, score[order], score.new_zeros(0))

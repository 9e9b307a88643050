"""The cross-fitted form (theory.md): left-out subject images judge the candidates.

In: for each fold the left-out images' gradient at a surrogate that never saw them, and the candidates' gradients at
that same surrogate, drawn with independent noise. Out: to first order, what one more image or group takes off the true
risk, with a standard error over folds and draws, a verdict by its t-value, and a ranking with diminishing returns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bat_ui.albat.benefit import LowRank, Picks, Ranking
from bat_ui.albat.validity import DOUBTFUL, HARMFUL, UNKNOWN, VALID

T_VALUE = 2.0  # a score this many standard errors from zero decides
FINE, POOL = 32, 64  # as in benefit, fewer: the scores' own noise outweighs the order inside a block
SMALLEST = 3  # images: below, a group's score is one image's noise


@dataclass(frozen=True)
class FoldScores:
    """values (f, d, n): -d risk / d weight of each candidate, by fold and judge draw; positive helps."""

    values: Tensor

    def mean(self) -> Tensor:
        return self.values.mean((0, 1))

    def error(self) -> Tensor:
        """Standard error (n,) of the mean."""
        return standard_error(self.values)


@dataclass(frozen=True)
class ScoredGroup:
    """One group's mean score over its images, the score's standard error and t-value, and the verdict."""

    group: int
    size: int
    verdict: str
    score: float
    error: float
    t_value: float


def standard_error(values: Tensor) -> Tensor:
    """Standard error of the mean of values (f, d, ...) over folds and, inside them, draws: the larger of the spread of
    fold means (few folds may agree by luck) and the draws' share of it; infinite if there is one value alone."""
    folds, draws = values.shape[:2]
    errors = []
    if folds > 1:
        errors.append(values.mean(1).var(0) / folds)
    if draws > 1:
        errors.append(values.var(1).mean(0) / (folds * draws))
    return torch.stack(errors).amax(0).sqrt() if errors else torch.full_like(values[0, 0], float("inf"))


def fold_scores(judges: Tensor, gradients: Tensor, adaptation: Tensor, *, ridge: float) -> FoldScores:
    """ghat_f' P g_c(phi_f), P = (H_A + ridge I)^-1 in sketch space.

    judges (f, d, k): the left-out images' mean gradients, d draws independent of the candidates' draws; gradients
    (f, n, k): the candidates' at the same surrogates; adaptation (a, k): curvature vectors of the adaptation images.
    """
    folds, draws, size = judges.shape
    reach = LowRank(adaptation.reshape(-1, size), ridge).start(judges.reshape(-1, size))
    return FoldScores(reach.view(folds, draws, size) @ gradients.mT)


def judge_groups(scores: FoldScores, groups: Tensor) -> tuple[ScoredGroup, ...]:
    """Verdict for each group label by the sign of its mean score and its t-value over folds and draws."""
    verdicts = []
    for label in (int(g) for g in torch.unique(groups)):
        member = (groups == label).to(scores.values.device)
        values = scores.values[:, :, member].mean(2)
        score, error = values.mean().item(), standard_error(values[:, :, None])[0].item()
        t = score / error if error > 0 else 0.0
        verdict = VALID if t >= T_VALUE else HARMFUL if t <= -T_VALUE else DOUBTFUL
        size = int(member.sum())
        verdicts.append(ScoredGroup(label, size, UNKNOWN if size < SMALLEST else verdict, score, error, t))
    return tuple(verdicts)


def rank_by_score(
    judges: Tensor,
    gradients: Tensor,
    curvature: Tensor,
    risk: Tensor,
    adaptation: Tensor,
    *,
    ridge: float,
    weight: float = 1.0,
    allowed: Tensor | None = None,
    forced: Tensor | None = None,
    fine: int = FINE,
    pool: int = POOL,
) -> Ranking:
    """Greedy ranking by the risk's slope, on the need that the images chosen so far leave (diminishing returns).

    With A = H_A + ridge I and images S at weight w, fold f's adapter moves by the Newton step D_f = -(A + w sum
    H_c)^-1 w sum g_c(phi_f); its judge's risk changes by ghat_f' D_f + D_f' Q D_f / 2, and the next image's slope is
    (ghat_f + Q D_f)' (A + w sum H_c)^-1 (g_c + H_c D_f). errors is the mean change over folds, zero for no image;
    gains are its falls. After the first `fine` picks it is computed once a block and joined by straight lines inside
    one.

    judges (f, d, k), gradients (f, n, k), curvature (n, r, k), risk (l, k) with Q = L'L, adaptation (a, k).
    Pools and blocks as in rank_by_benefit. Cost O(f n k + n r k) a block.
    """
    folds, _, size = judges.shape
    picks = Picks(len(curvature), allowed, forced)
    # One row holds a candidate's gradients at all folds, so that scoring everyone is one matrix-vector product.
    gradients, curvature = gradients[:, picks.places].transpose(0, 1).flatten(1), curvature[picks.places]
    truth = judges.mean(1)
    m = LowRank(adaptation.reshape(-1, size), ridge)
    pull, move, need = torch.zeros_like(truth), torch.zeros_like(truth), truth
    errors = [0.0]

    def slopes(gradients: Tensor, curvature: Tensor) -> Tensor:
        reach = m.times(need)
        return gradients @ reach.flatten() + ((curvature @ reach.T) * (curvature @ move.T)).sum((1, 2))

    def advance(picked: Tensor) -> None:
        nonlocal pull, move, need
        m.add(curvature[picked].reshape(-1, size) * weight**0.5)
        pull = pull + weight * gradients[picked].sum(0).view(folds, size)
        move = -m.times(pull)
        seen = move @ risk.T
        need = truth + seen @ risk
        value, last = ((truth * move).sum() + seen.square().sum() / 2).item() / folds, errors[-1]
        errors.extend(last + (value - last) * (i + 1) / len(picked) for i in range(len(picked)))
        picks.order += picked.tolist()

    while (mask := picks.open()) is not None:
        slope = slopes(gradients, curvature).masked_fill(~mask.to(truth.device), float("-inf"))
        block = picks.block(fine)
        if len(picks.order) >= fine:
            advance(slope.topk(block).indices)
            continue
        near = slope.topk(min(max(pool, block), int(mask.sum()))).indices
        near_gradients, near_curvature = gradients[near], curvature[near]
        taken = torch.zeros(len(near), dtype=slope.dtype, device=slope.device)
        for _ in range(block):
            i = int((slopes(near_gradients, near_curvature) + taken).argmax())
            taken[i] = float("-inf")
            advance(near[i : i + 1])
    curve = torch.tensor(errors, dtype=judges.dtype)
    return Ranking(picks.ranked(), -curve.diff(), curve)

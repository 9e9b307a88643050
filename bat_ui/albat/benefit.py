"""Benefit (theory.md, Proposition 2): what each further backbone image takes off the adapter's predicted error.

In: curvature vectors of the candidates, the adaptation and the risk; noise sigma^2 and ridge = delta sigma^2
(evidence). Out: a nested ranking with each image's gain, the predicted-error curve, its knee, weights of an optimal
design, and the asymptotic error coefficient rho. Everything is a low-rank update in sketch space: no (k x k) matrix is
inverted while ranking. Left out on purpose: which images may be chosen (validity, selection).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

FINE = 64  # this many picks are made one by one, among the best of a pool, chosen anew after 4 to 16 picks
BLOCK, POOL = 16, 128
GROWTH, COARSE = 5, 256  # later ones in blocks of one for every GROWTH picked; from COARSE on the blocks double
SIZES = 10  # at which a curve is computed
ENOUGH = 0.95


@dataclass(frozen=True)
class Ranking:
    """order (m,) candidate indices, gains (m,), errors (m + 1,): predicted variance of none, of the first image, ..."""

    order: Tensor
    gains: Tensor
    errors: Tensor


class LowRank:
    """M = (ridge I + V'V + added U'U)^-1 as M_0 - R'R, by Woodbury: products with M, and rows added to it."""

    def __init__(self, vectors: Tensor, ridge: float) -> None:
        self.vectors, self.ridge = vectors, ridge
        inner = vectors @ vectors.T
        inner.diagonal().add_(ridge)
        self.factor = torch.linalg.cholesky(inner)
        self.columns = vectors.new_zeros(0, vectors.shape[1])

    def start(self, rows: Tensor) -> Tensor:
        """rows M_0 for rows (m, k)."""
        return (rows - torch.cholesky_solve(self.vectors @ rows.T, self.factor).T @ self.vectors) / self.ridge

    def times(self, rows: Tensor, count: int | None = None) -> Tensor:
        """rows M for rows (m, k), M as after the first count added rows (all if None)."""
        used = self.columns[:count]
        return self.start(rows) - (rows @ used.T) @ used

    def add(self, rows: Tensor, started: Tensor | None = None) -> Tensor:
        """Add U'U for rows U (b, k), started = U M_0 if at hand; returns the new R (b, k): M falls by R'R by rows."""
        started = self.start(rows) if started is None else started
        y = started - (rows @ self.columns.T) @ self.columns
        inner = rows @ y.T
        if len(rows) == 1:
            new = y / (1 + inner).sqrt()
        else:
            inner = (inner + inner.T) / 2
            inner.diagonal().add_(1)
            new = torch.linalg.solve_triangular(torch.linalg.cholesky(inner), y, upper=False)
        self.columns = torch.cat([self.columns, new])
        return new


class Picks:
    """The books of a greedy pass over the candidates in play, forced or allowed, by their place in `places`: forced
    ones first, then allowed ones, among these `last` ones last, each once, at most limit."""

    def __init__(
        self, count: int, allowed: Tensor | None, forced: Tensor | None, limit: int | None = None, last: Tensor | None = None
    ) -> None:
        allowed = torch.ones(count, dtype=torch.bool) if allowed is None else allowed.cpu()
        forced = torch.zeros(count, dtype=torch.bool) if forced is None else forced.cpu()
        self.places = (forced | allowed).nonzero()[:, 0]
        forced = forced[self.places]
        last = torch.zeros_like(forced) if last is None else last.cpu()[self.places]
        self.order: list[int] = []
        self.rounds = [forced, ~forced & ~last, ~forced & last]
        self.limit = len(forced) if limit is None else min(limit, len(forced))

    def ranked(self) -> Tensor:
        """Candidate indices in the order picked."""
        return self.places[torch.tensor(self.order, dtype=torch.long)]

    def open(self) -> Tensor | None:
        """Mask (n,) of those to choose among now, None at the end."""
        while self.rounds and len(self.order) < self.limit:
            self.rounds[0][self.order] = False
            if self.rounds[0].any():
                return self.rounds[0]
            self.rounds.pop(0)
        return None

    def block(self, fine: int) -> int:
        """How many to pick before all candidates are scored again."""
        done = len(self.order)
        if done < fine:
            size = min(max(4, done // 2), BLOCK, fine - done)
        else:
            size = max(1, done if done >= COARSE else done // GROWTH)
        return min(size, int(self.rounds[0].sum()), self.limit - done)


def rank_by_benefit(
    curvature: Tensor,
    risk: Tensor,
    adaptation: Tensor,
    *,
    noise: float,
    ridge: float,
    weight: float | Tensor = 1.0,
    allowed: Tensor | None = None,
    forced: Tensor | None = None,
    last: Tensor | None = None,
    limit: int | None = None,
    fine: int = FINE,
    pool: int = POOL,
) -> Ranking:
    """Greedy ranking by the fall of tr(Q M_S), M_S = (C^-1 + sum_S w H_c / sigma^2)^-1.

    curvature (n, r, k) with H_c = sum_r u u'; risk (l, k) with Q = L'L; adaptation (a, k); weight w of an image beside
    one adaptation image, the same for all or (n,). forced (n,) booleans are ranked first, then allowed (n,) ones, of these
    `last` (n,) ones after the others, at most limit in all. The first `fine` picks are greedy one by one among the `pool`
    best, chosen anew every 4 to 16 picks (pool >= n is plain greedy); then the best m / 5 images are taken at a time, and
    from 256 on the best m.
    The errors are exact for the order either way. Cost O(n r (k + l)) a pick in large products, memory O(n r (k + l)).
    """
    picks = Picks(len(curvature), allowed, forced, limit, last)
    weights = torch.as_tensor(weight, dtype=curvature.dtype, device=curvature.device).expand(len(curvature))
    rows = curvature[picks.places] * weights[picks.places].sqrt()[:, None, None]
    count, rank, size = rows.shape
    m = LowRank(adaptation.reshape(-1, size), ridge)
    started = m.start(rows.reshape(-1, size)).view(count, rank, size)  # U M_0
    image = started @ risk.T  # U M L', kept current
    own = started @ rows.mT  # U M U', kept current
    falls: list[Tensor] = []
    error = (m.start(risk) * risk).sum()
    while (mask := picks.open()) is not None:
        gain = _gains(image, own).masked_fill(~mask.to(image.device), float("-inf"))
        block, before = picks.block(fine), len(m.columns)
        if len(picks.order) < fine:
            near = gain.topk(min(max(pool, block), int(mask.sum()))).indices
            picked = near[_pick(m, rows[near], started[near], image[near], own[near], risk, block)]
        else:
            picked = gain.topk(block).indices
            m.add(rows[picked].reshape(-1, size), started[picked].reshape(-1, size))
        new = m.columns[before:]
        reach = new @ risk.T
        falls.append(reach.square().sum(1).view(block, rank).sum(1))
        picks.order += picked.tolist()
        if len(picks.order) == picks.limit:
            break
        shared = (rows.reshape(-1, size) @ new.T).view(count, rank, -1)
        image -= shared @ reach
        own -= shared.square().sum(2, keepdim=True) if rank == 1 else shared @ shared.mT
    gains = torch.cat(falls) * noise if falls else risk.new_zeros(0)
    errors = torch.cat([noise * error[None], noise * error - gains.cumsum(0)])
    return Ranking(picks.ranked(), gains, errors)


def _pick(m: LowRank, rows: Tensor, start: Tensor, image: Tensor, own: Tensor, risk: Tensor, block: int) -> list[int]:
    """Plain greedy among p candidates, `block` of them added to m.

    rows, start (p, r, k), image (p, r, l), own (p, r, r).
    """
    picked: list[int] = []
    taken = torch.zeros(len(rows), dtype=image.dtype, device=image.device)
    for _ in range(block):
        i = int((_gains(image, own) + taken).argmax())
        taken[i] = float("-inf")
        new = m.add(rows[i], start[i])
        shared = rows @ new.T
        image = image - shared @ (new @ risk.T)
        own = own - shared @ shared.mT
        picked.append(i)
    return picked


def _gains(image: Tensor, own: Tensor) -> Tensor:
    """tr[(I + U M U')^-1 U M Q M U'] for every candidate: image (n, r, l), own (n, r, r)."""
    if image.shape[1] == 1:
        return image.square().sum((1, 2)) / (1 + own[:, 0, 0])
    eye = torch.eye(own.shape[1], dtype=own.dtype, device=own.device)
    return torch.linalg.solve(own + eye, image @ image.mT).diagonal(dim1=1, dim2=2).sum(1)


def error_curve(
    curvature: Tensor,
    groups: Tensor,
    weigh: Callable[[int], Tensor],
    risk: Tensor,
    adaptation: Tensor,
    *,
    noise: float,
    ridge: float,
    disagreement: dict[int, float],
    sizes: int = SIZES,
) -> Tensor:
    """E(S) = tr(Q M_S) + sum_j lam_j |L M_S H_{S,j}|^2 of the first 0, 1, .., m images (m + 1,) (Proposition 2).

    curvature (m, r, k) and groups (m,) in the order taken; weigh(size) gives the weights (size,) of the first `size` images
    beside one adaptation image; disagreement: lam_j / sigma^2 by group label. Exact at some `sizes` sizes, joined by
    straight lines.
    """
    total, size = len(curvature), curvature.shape[-1]
    curvature, risk, adapt = curvature.double(), risk.double(), adaptation.reshape(-1, size).double()
    at = sorted({0, 1, total, *(round(total ** (i / sizes)) for i in range(1, sizes))} & {*range(total + 1)})
    values = []
    for count in at:
        rows = curvature[:count] * weigh(count).to(curvature).sqrt()[:, None, None] if count else curvature[:0]
        reach = _solve(torch.cat([adapt, rows.reshape(-1, size)]), ridge, risk)
        value = (reach * risk).sum()
        for label in torch.unique(groups[:count]).tolist():
            if (lam := disagreement[label]) > 0:
                own = rows[groups[:count] == label].reshape(-1, size)
                value = value + lam * ((reach @ own.T) @ own).square().sum()
        values.append(noise * value.item())
    return torch.from_numpy(np.interp(np.arange(total + 1), at, values))


def _solve(vectors: Tensor, ridge: float, rows: Tensor) -> Tensor:
    """rows (ridge I + V'V)^-1, by the smaller of the two matrices that can be inverted."""
    if len(vectors) < vectors.shape[1]:
        return LowRank(vectors, ridge).start(rows)
    inner = vectors.T @ vectors
    inner.diagonal().add_(ridge)
    return torch.cholesky_solve(rows.T, torch.linalg.cholesky(inner)).T


def knee(errors: Tensor) -> int:
    """The default number of images: the smallest that reaches ENOUGH of the whole fall of the predicted-error curve.

    The whole fall is down to the curve's minimum (beyond it more images do harm); 0 if no image helps.
    """
    best = int(errors.argmin())
    fall = errors[0] - errors[: best + 1].double()
    return int((fall >= ENOUGH * fall[-1]).nonzero()[0]) if best else 0


def asymptotic_error(
    chosen: Tensor,
    risk: Tensor,
    adaptation: Tensor,
    *,
    noise: float,
    ridge: float,
    weights: Tensor | None = None,
    scores: Tensor | None = None,
) -> float:
    """rho(S; Q) = tr(Q H_S^-1 G_S H_S^-1), the asymptotic error coefficient (theory.md, before Words).

    chosen (m, r, k), risk (l, k), adaptation (a, k) curvature vectors; weights (m,) of the chosen. With scores None
    the gradient covariance is sigma^2 H and rho = tr(Q M_S). Else scores (s, k) are gradients whose outer products add
    up to the covariance of the whole training gradient (each image's centred gradient times its weight), and the
    sandwich is formed.
    """
    weights = torch.ones(len(chosen)) if weights is None else weights
    rows = (chosen.double() * weights.double().to(chosen.device).sqrt()[:, None, None]).reshape(-1, chosen.shape[-1])
    m = LowRank(torch.cat([adaptation.double().reshape(-1, rows.shape[1]), rows]), ridge)
    reach = m.start(risk.double())
    if scores is None:
        return noise * (reach * risk.double()).sum().item()
    return ((reach @ scores.double().T).square().sum() + noise * ridge * reach.square().sum()).item()


def design_weights(
    chosen: Tensor, risk: Tensor, adaptation: Tensor, *, ridge: float, weight: float = 1.0, rounds: int = 10
) -> Tensor:
    """Sampling weights (m,), mean one, that lower tr(Q M) at the same total: multiplicative A-optimal design updates.

    chosen (m, r, k). An image that repeats another ends below one, one that alone opens a direction above.
    """
    share = torch.ones(len(chosen), dtype=chosen.dtype, device=chosen.device)
    adapt = adaptation.reshape(-1, chosen.shape[-1])
    for _ in range(rounds):
        rows = (chosen * (share * weight).sqrt()[:, None, None]).reshape(-1, chosen.shape[-1])
        reach = LowRank(torch.cat([adapt, rows]), ridge).start(risk)
        slope = (chosen @ reach.T).square().sum((1, 2))
        share = share * slope.sqrt()
        share = share * len(share) / share.sum().clamp_min(1e-30)
    return share


def gradient_cosine(gradients: Tensor, judges: Tensor) -> Tensor:
    """The baseline score of LESS (n,): cosine of each candidate's gradient with the mean gradient of left-out subject
    images, at the same surrogate, as a mean over the folds' surrogates (LESS sums over checkpoints).

    gradients (f, n, k): the candidates' at each fold's surrogate; judges (f, d, k): the left-out images' there, in d draws.
    """
    return torch.nn.functional.cosine_similarity(gradients, judges.mean(1, keepdim=True), dim=-1).mean(0)

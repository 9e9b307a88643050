"""Allocation: how many images of which group (theory.md, Proposition 2 and Strength).

In: curvature vectors of candidates with a group label each, and how far each group disagrees.  Out: a nested order of the
candidates.  A single image's sketch is mostly its own noise, and the best of many noisy ones is the luckiest, so the theory
decides between groups, by their mean curvature; within a group images come in the order in which they lie, nearest first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bat_ui.albat.benefit import FINE, GROWTH, LowRank, Picks, Ranking

DIRECTIONS = 8  # the largest ones of a group's mean curvature are kept
FIRST = 10  # images whose weights are those of a set of 10, then of 20, 40, ..


@dataclass(frozen=True)
class GroupCurvature:
    """Mean curvatures U_j' U_j of J groups, d directions each, and what they meet: labels (J,); start (J d, J d) = U C U';
    image (J d, l) = U C L' with Q = L'L; own (J, d, d) = U_j U_j'; error = tr(Q C). In units of the noise."""

    labels: Tensor
    start: Tensor
    image: Tensor
    own: Tensor
    error: float

    def beside(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """`start` and `image` with M = (C^-1 + sum_j weights_j U_j' U_j)^-1 in the place of C; weights (J,)."""
        rows = weights.repeat_interleave(self.own.shape[1]).double()
        some = rows.nonzero()[:, 0]
        whole = torch.cat([self.start, self.image], 1).double()
        inner = whole[some][:, some] + torch.diag(1 / rows[some])
        moved = whole - whole[:, some] @ torch.cholesky_solve(whole[some], torch.linalg.cholesky(inner))
        return tuple(part.to(self.start) for part in moved.split([len(rows), self.image.shape[1]], 1))


def group_curvature(curvature: Tensor, groups: Tensor, adaptation: Tensor, risk: Tensor, *, ridge: float) -> GroupCurvature:
    """curvature (n, r, k), groups (n,), adaptation (.., k), risk (l, k); ridge = delta sigma^2, C as without any image."""
    labels, size = torch.unique(groups), curvature.shape[-1]
    rows = curvature.new_zeros(len(labels), DIRECTIONS, size)
    for j, label in enumerate(labels):
        members = curvature[groups == label]
        stacked = members.flatten(0, 1) / len(members) ** 0.5
        basis = torch.linalg.eigh(stacked @ stacked.T).eigenvectors[:, -DIRECTIONS:]
        rows[j, : basis.shape[1]] = basis.T @ stacked
    alone = LowRank(adaptation.reshape(-1, size), ridge)
    flat = rows.flatten(0, 1)
    reached = alone.start(flat)
    error = float((alone.start(risk) * risk).sum())
    return GroupCurvature(labels, reached @ flat.T, reached @ risk.T, rows @ rows.mT, error)


def rank_by_allocation(
    found: GroupCurvature,
    groups: Tensor,
    *,
    noise: float,
    total: float,
    disagreement: dict[int, float],
    allowed: Tensor,
    forced: Tensor,
    last: Tensor,
    limit: int | None = None,
) -> Ranking:
    """Greedy ranking by E(S) = tr(Q M_S) + sum_j lam_j (w n_j)^2 |L M_S H_j|^2 with n_j images of group j.

    M_S = (C^-1 + w sum_j n_j H_j)^-1 with the groups' mean curvatures H_j. All images together have the weight `total`
    beside one adaptation image, so w is total / FIRST for the first ones and is halved whenever their number has doubled.
    disagreement: lam_j / sigma^2 by group label. forced (n,) booleans come first, then allowed (n,) ones, of these `last`
    (n,) ones last, at most `limit` in all; each is the next of its group. The bias of one more image is taken to first
    order, too large if anything; gains and errors are of tr(Q M_S) alone. From FINE on, picks come in blocks of one for
    every GROWTH picked. Cost O(J^2 d^3) a pick.
    """
    picks, place = Picks(len(groups), allowed, forced, limit, last), torch.searchsorted(found.labels, groups)
    where = place[picks.places]
    count, directions, _ = found.own.shape
    lam = found.own.new_tensor([disagreement[label] for label in found.labels.tolist()])
    taken, size, gains = found.own.new_zeros(count), FIRST // 2, []
    eye = torch.eye(directions, dtype=lam.dtype, device=lam.device)
    while (mask := picks.open()) is not None:
        done = len(picks.order)
        if done in (0, size):
            size = 2 * size
            weight = total / min(size, picks.limit)
            start, image = found.beside(weight * taken)
        seen = image.view(count, directions, -1)  # U_j M L'
        each = start.view(count, directions, count, directions).diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # U_j M U_j'
        after = torch.linalg.solve(eye + weight * each, seen)  # with one more image of j
        bias = weight**2 * lam * _squares(seen, found.own)  # for each n_j^2
        net = weight * (after * seen).sum((1, 2)) - (2 * taken + 1) * bias
        open_groups = torch.zeros(count, dtype=torch.bool).index_fill_(0, where[mask], True).to(lam.device)
        j = int(net.masked_fill(~open_groups, float("-inf")).argmax())
        block = 1 if done < FINE else done // GROWTH
        members = (mask & (where == j)).nonzero()[: min(block, picks.limit - done, size - done), 0]
        inner = torch.linalg.inv(eye / (weight * len(members)) + each[j])
        columns, reach = start.view(-1, count, directions)[:, j] @ inner, seen[j].clone()
        image = image - columns @ reach
        start = start - columns @ start.view(count, directions, -1)[j]
        gains.append((((inner @ reach) * reach).sum() / len(members)).expand(len(members)))
        taken[j] += len(members)
        picks.order += members.tolist()
    gains = torch.cat(gains) * noise if gains else lam[:0]
    errors = noise * found.error - torch.cat([gains.new_zeros(1), gains.cumsum(0)])
    return Ranking(picks.ranked(), gains, errors)


def _squares(image: Tensor, own: Tensor) -> Tensor:
    """|L M U' U|^2 of groups with U M L' = image (.., d, l) and U U' = own (.., d, d)."""
    return ((own @ image) * image).sum((-2, -1))

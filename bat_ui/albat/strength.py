"""Strength: how much of a group's loss to add, given how far it disagrees (theory.md, Strength).

In: curvature vectors, groups and their disagreement. Out: for each group the weight lambda at which it helps most, and
the disagreement up to which it helps at a given weight; and lambda for a set of images.
Any group lowers the variance in proportion to lambda and brings a bias in proportion to lambda^2, so each has its own best
weight, and disagreement makes it small instead of forbidding the group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bat_ui.albat.benefit import LowRank

LEVELS = torch.cat([torch.zeros(1), torch.logspace(-3, 1.2, 43)]).double()  # 0, and 0.001 to 16 in steps of a quarter

# lambda of all groups together in a run's last step. Where nothing says how much is needed it may be what a turning point at
# a fifth of the run asks for; where all disagree, a tenth of them still kept every subject that was measured from being
# learned by heart (docs/evidence), which no term of the theory foresees; and more than HIGHEST was not tried.
LEAST, MOST, HIGHEST = 0.1, 4.0, 16.0


class Shares:
    """What the images of a set have of lambda, the same for each: in sum the strengths of the groups that are among
    them, from LEAST to `most`; or, where no strengths are given, `most`."""

    def __init__(self, groups: Tensor, strengths: dict[int, float], most: float = MOST) -> None:
        self.groups, self.strengths, self.most = groups, strengths, most

    def total(self, rows: Tensor) -> float:
        """lambda for the images `rows`."""
        if not self.strengths:
            return self.most
        found = sum(self.strengths[label] for label in torch.unique(self.groups[rows]).tolist())
        return min(max(found, LEAST), self.most)

    def of(self, rows: Tensor) -> Tensor:
        """(m,) shares of the images `rows`, in sum lambda."""
        return torch.full((len(rows),), self.total(rows) / max(len(rows), 1))


def most_strength(steps: int, turning: int | None) -> float:
    """What lambda may reach in the last of `steps` (theory.md, When): what leaves turning / steps of the sum to the subject.

    MOST where nobody asked for the turning point.
    """
    return MOST if turning is None else min(max(steps / turning - 1, LEAST), HIGHEST)


def strength_curves(
    curvature: Tensor, groups: Tensor, adaptation: Tensor, risk: Tensor, *, ridge: float
) -> dict[int, tuple[Tensor, Tensor]]:
    """By group label what weighs against each other at each of LEVELS: variance tr(Q M) and bias per lam_j, tr(Q M H H M).

    curvature (n, r, k), groups (n,), adaptation (a, r, k), risk (l, k) with Q = L'L. H = lambda a times the group's mean
    curvature, M = (C^-1 + H)^-1, for training on the mean loss of the a adaptation images plus lambda times the mean loss
    of the group. In units of the noise.
    """
    found, risk = {}, risk.double()
    start = LowRank(adaptation.reshape(-1, adaptation.shape[-1]).double(), ridge)
    reached = start.start(risk)  # L C
    alone = (reached * risk).sum()
    for label in torch.unique(groups).tolist():
        members = curvature[groups == label].double()
        rows = members.flatten(0, 1) / len(members) ** 0.5
        values, basis = torch.linalg.eigh(start.start(rows) @ rows.T)  # U C U' = basis diag(values) basis'
        values, turned = values.clamp_min(0), basis.T @ rows
        seen = reached @ turned.T  # L C U', rotated; L M U' is seen / (1 + w values)
        own = turned @ turned.T
        variance, bias = [], []
        for weight in (LEVELS * len(adaptation)).tolist():
            reach = seen / (1 + weight * values)
            variance.append(alone - weight * (seen * reach).sum())
            bias.append(weight**2 * ((reach @ own) * reach).sum())
        found[label] = torch.stack(variance), torch.stack(bias)
    return found


def tolerance(variance: Tensor, bias: Tensor, share: float) -> float:
    """The largest lam_j / sigma^2 at which a group still lowers the error if it has the weight `share`."""
    at = max(int((LEVELS - share).abs().argmin()), 1)
    return float((variance[0] - variance[at]) / bias[at].clamp_min(1e-300))


def best_strength(variance: Tensor, bias: Tensor, disagreement: float) -> float:
    """The one of LEVELS at which variance + disagreement * bias is lowest; disagreement = lam_j / sigma^2."""
    return float(LEVELS[int((variance + disagreement * bias).argmin())])

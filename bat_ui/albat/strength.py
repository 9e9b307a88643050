"""Strength: how much of a group's loss to add, given how far it disagrees (theory.md, Propositions 1 and 2 together).

In: curvature vectors, groups and their disagreement. Out: for each group the weight lambda at which it helps most.
Any group lowers the variance in proportion to lambda and brings a bias in proportion to lambda^2, so each has its own best
weight, and disagreement makes it small instead of forbidding the group.
"""

from __future__ import annotations

from torch import Tensor

from bat_ui.albat.benefit import LowRank

CAP = 1.0  # a group without any disagreement counts as much as the subject


def group_strengths(
    curvature: Tensor, groups: Tensor, adaptation: Tensor, risk: Tensor, disagreement: dict[int, float], *, ridge: float
) -> dict[int, float]:
    """lambda_j = tr(Q C H C) / (2 a lam_j tr(Q C H H C)) by group label, at most CAP; to lowest order in lambda.

    curvature (n, r, k), groups (n,), adaptation (a, r, k), risk (l, k) with Q = L'L; H is the group's mean curvature, C the
    adaptation's posterior covariance, lam_j in units of the noise (Validity.disagreement). E(lambda) = tr(Q C) - lambda a
    tr(Q C H C) + (lambda a)^2 lam_j tr(Q C H H C), the error of training on the mean loss of the a adaptation images plus
    lambda times the mean loss of the group, is lowest there.
    """
    reach = LowRank(adaptation.reshape(-1, adaptation.shape[-1]), ridge).start(risk)  # L C
    found = {}
    for label, lam in disagreement.items():
        members = curvature[groups == label]
        rows = members.flatten(0, 1)
        seen = reach @ rows.T  # L C U', of which H = U'U / size
        gain = seen.square().sum() / len(members)
        bias = ((seen @ rows) / len(members)).square().sum()
        best = float(gain / (2 * len(adaptation) * lam * bias)) if lam * bias > 0 else CAP
        found[label] = min(best, CAP)
    return found

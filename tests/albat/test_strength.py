"""The best weight of a group, and what it may disagree, against the error written out with dense matrices."""

import pytest
import torch

from bat_ui.albat.strength import LEVELS, best_strength, strength_curves, tolerance

RIDGE = 2.0


@pytest.fixture(scope="module")
def case():
    rng = torch.Generator().manual_seed(0)
    adaptation = torch.randn(3, 2, 12, generator=rng, dtype=torch.double)
    curvature = torch.randn(10, 2, 12, generator=rng, dtype=torch.double)
    risk = torch.randn(5, 12, generator=rng, dtype=torch.double)
    groups = torch.tensor([0] * 6 + [1] * 4)
    return adaptation, curvature, groups, risk, strength_curves(curvature, groups, adaptation, risk, ridge=RIDGE)


def dense(case, group, strength, lam):
    """tr(Q M) + lam tr(Q M H H M) by inverting a matrix."""
    adaptation, curvature, groups, risk, _ = case
    a, u = adaptation.flatten(0, 1), curvature[groups == group]
    h = 3 * strength * torch.einsum("nrk,nrl->kl", u, u) / len(u)  # beside the sum over three adaptation images
    m = torch.linalg.inv(a.T @ a + RIDGE * torch.eye(12, dtype=torch.double) + h)
    q = risk.T @ risk
    return torch.trace(q @ m) + lam * torch.trace(q @ m @ h @ h @ m)


@pytest.mark.parametrize("group", [0, 1])
def test_the_curves_are_those_of_dense_inverses(case, group):
    variance, bias = case[-1][group]
    for i in (0, 1, 20, 37):
        assert torch.allclose(variance[i] + 3 * bias[i], dense(case, group, LEVELS[i], 3.0), rtol=1e-9)


def test_disagreement_makes_a_group_weaker_but_never_forbids_it(case):
    strengths = [best_strength(*case[-1][0], lam) for lam in (0.0, 0.1, 1.0, 10.0)]
    assert strengths[0] == LEVELS[-1]
    assert strengths == sorted(strengths, reverse=True)
    assert strengths[-1] > 0
    assert dense(case, 0, strengths[-1], 10.0) < dense(case, 0, 0.0, 10.0)


def test_up_to_the_tolerance_a_group_helps_at_its_share_and_beyond_it_harms(case):
    share = float(LEVELS[20])
    most = tolerance(*case[-1][0], share)
    alone = dense(case, 0, 0.0, 0.0)
    assert dense(case, 0, share, 0.99 * most) < alone < dense(case, 0, share, 1.01 * most)

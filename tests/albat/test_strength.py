"""The best weight of a group against the error written out with dense matrices."""

import torch

from bat_ui.albat.strength import CAP, group_strengths


def drawn_case():
    rng = torch.Generator().manual_seed(0)
    adaptation = torch.randn(3, 2, 12, generator=rng, dtype=torch.double)
    curvature = torch.randn(10, 2, 12, generator=rng, dtype=torch.double)
    risk = torch.randn(5, 12, generator=rng, dtype=torch.double)
    return adaptation, curvature, torch.tensor([0] * 6 + [1] * 4), risk


def test_the_strength_is_where_the_error_written_out_is_lowest():
    adaptation, curvature, groups, risk = drawn_case()
    ridge, lam = 2.0, {0: 3.0, 1: 5.0}
    found = group_strengths(curvature, groups, adaptation, risk, lam, ridge=ridge)
    flat = adaptation.flatten(0, 1)
    c = torch.linalg.inv(flat.T @ flat + ridge * torch.eye(12, dtype=torch.double))
    q = risk.T @ risk
    for group, size in ((0, 6), (1, 4)):
        u = curvature[groups == group].flatten(0, 1)
        h = u.T @ u / size

        def error(strength, h=h, group=group):
            w = 3 * strength  # beside the sum over three adaptation images
            return torch.trace(q @ (c - w * c @ h @ c)) + w**2 * lam[group] * torch.trace(q @ c @ h @ h @ c)

        best = found[group]
        assert 0 < best < CAP
        assert error(best) < min(error(0.99 * best), error(1.01 * best))


def test_a_group_that_agrees_counts_as_much_as_the_subject():
    adaptation, curvature, groups, risk = drawn_case()
    assert group_strengths(curvature, groups, adaptation, risk, {0: 0.0}, ridge=2.0) == {0: CAP}

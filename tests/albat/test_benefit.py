"""Rankings and predicted errors against dense inverses."""

import pytest
import torch

from bat_ui.albat.benefit import (
    asymptotic_error,
    design_weights,
    error_curve,
    gradient_cosine,
    knee,
    rank_by_benefit,
)

NOISE, RIDGE, WEIGHT = 0.7, 0.3, 1.5


def problem(count=24, rank=2, size=10, seed=0):
    g = torch.Generator().manual_seed(seed)
    curvature = torch.randn(count, rank, size, generator=g, dtype=torch.float64)
    return curvature, torch.randn(6, size, generator=g).double(), torch.randn(3, size, generator=g).double()


def dense_error(curvature, risk, adaptation, chosen, weights=None):
    precision = adaptation.T @ adaptation + RIDGE * torch.eye(adaptation.shape[1]).double()
    for i, c in enumerate(chosen):
        precision = precision + (WEIGHT if weights is None else weights[i]) * curvature[c].T @ curvature[c]
    return NOISE * torch.trace(risk.T @ risk @ torch.linalg.inv(precision)).item()


@pytest.mark.parametrize("rank", [1, 3])
def test_greedy_picks_and_errors_are_those_of_dense_inverses(rank):
    curvature, risk, adaptation = problem(rank=rank)
    got = rank_by_benefit(curvature, risk, adaptation, noise=NOISE, ridge=RIDGE, weight=WEIGHT, pool=24)
    chosen = []
    for step in range(24):
        left = [c for c in range(24) if c not in chosen]
        errors = [dense_error(curvature, risk, adaptation, [*chosen, c]) for c in left]
        chosen.append(left[errors.index(min(errors))])
        assert got.order[step] == chosen[-1]
        assert abs(got.errors[step + 1].item() - min(errors)) < 1e-9
    assert abs(got.errors[0].item() - dense_error(curvature, risk, adaptation, [])) < 1e-9
    torch.testing.assert_close(got.gains, -got.errors.diff())


def test_each_image_may_have_a_weight_of_its_own():
    curvature, risk, adaptation = problem(rank=2)
    weights = torch.rand(24, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    allowed = torch.arange(24) % 3 > 0  # the weights follow the images, whichever may be chosen
    options = {"noise": NOISE, "ridge": RIDGE, "weight": weights, "allowed": allowed, "pool": 24}
    got = rank_by_benefit(curvature, risk, adaptation, **options)
    for size in (1, 7, 16):
        chosen = got.order[:size].tolist()
        dense = dense_error(curvature, risk, adaptation, chosen, [weights[c] for c in chosen])
        assert abs(got.errors[size].item() - dense) < 1e-9


def test_errors_in_blocks_are_exact_for_their_order_and_near_plain_greedy():
    curvature, risk, adaptation = problem(count=300, rank=1, size=20)
    options = {"noise": NOISE, "ridge": RIDGE, "weight": WEIGHT}
    fast = rank_by_benefit(curvature, risk, adaptation, fine=48, pool=96, **options)
    plain = rank_by_benefit(curvature, risk, adaptation, fine=300, pool=300, **options)
    assert sorted(fast.order.tolist()) == list(range(300))
    for size in (1, 10, 30, 100, 300):
        exact = dense_error(curvature, risk, adaptation, fast.order[:size].tolist())
        assert abs(fast.errors[size].item() - exact) < 1e-9
        assert fast.errors[size] < 1.1 * plain.errors[size]


def test_float32_ranking_follows_the_float64_one():
    curvature, risk, adaptation = problem(count=200, rank=1, size=64)
    options = {"noise": NOISE, "ridge": RIDGE}
    full = rank_by_benefit(curvature, risk, adaptation, **options)
    half = rank_by_benefit(curvature.float(), risk.float(), adaptation.float(), **options)
    assert half.errors.dtype == torch.float32
    torch.testing.assert_close(half.errors.double(), full.errors, rtol=1e-3, atol=0)


def test_forced_images_come_first_excluded_ones_never_and_the_rest_is_nested():
    curvature, risk, adaptation = problem(count=60)
    allowed, forced = torch.ones(60, dtype=torch.bool), torch.zeros(60, dtype=torch.bool)
    allowed[:20], forced[[5, 40]] = False, True
    options = {"noise": NOISE, "ridge": RIDGE, "allowed": allowed, "forced": forced}
    whole = rank_by_benefit(curvature, risk, adaptation, **options)
    assert set(whole.order[:2].tolist()) == {5, 40}
    assert set(whole.order.tolist()) == {5, *range(20, 60)}
    part = rank_by_benefit(curvature, risk, adaptation, limit=12, **options)
    assert torch.equal(part.order, whole.order[:12])
    assert len(part.errors) == 13


def test_last_images_come_when_the_others_are_taken_as_if_these_had_been_forced():
    curvature, risk, adaptation = problem(count=40)
    last = torch.arange(40) < 15
    options = {"noise": NOISE, "ridge": RIDGE, "fine": 40, "pool": 40}
    both = rank_by_benefit(curvature, risk, adaptation, last=last, **options).order
    assert torch.equal(both[:25], rank_by_benefit(curvature, risk, adaptation, allowed=~last, **options).order)
    rest = rank_by_benefit(curvature, risk, torch.cat([adaptation, curvature[~last].flatten(0, 1)]), allowed=last, **options)
    assert torch.equal(both[25:], rest.order)


def test_the_error_curve_is_variance_and_bias_by_dense_inverses_for_the_weights_of_each_size():
    curvature, risk, adaptation = problem(count=8)
    groups, lam = torch.tensor([0, 1] * 4), {0: 0.2, 1: 0.0}

    def weigh(size):
        return torch.arange(1, size + 1, dtype=torch.float64) / size

    got = error_curve(curvature, groups, weigh, risk, adaptation, noise=NOISE, ridge=RIDGE, disagreement=lam, sizes=20)
    for size in range(9):
        precision = adaptation.T @ adaptation + RIDGE * torch.eye(10).double()
        h = torch.zeros(10, 10, dtype=torch.float64)
        for c in range(size):
            block = weigh(size)[c] * curvature[c].T @ curvature[c]
            precision, h = precision + block, h + block * (groups[c] == 0)
        # An offset d ~ N(0, lam I) of group 0 moves the adapter by M H d; lam is NOISE times the value given.
        m = torch.linalg.inv(precision)
        q = risk.T @ risk
        assert abs(got[size] - NOISE * (torch.trace(q @ m) + 0.2 * torch.trace(q @ m @ h @ h @ m))) < 1e-9


def test_the_knee_is_the_first_size_that_wins_most_of_the_whole_fall():
    assert knee(torch.tensor([10.0, 4.0, 1.0, 0.9, 0.8, 0.7, 0.6])) == 2
    assert knee(torch.tensor([10.0, 4.0, 1.0, 0.9, 5.0, 9.0, 20.0])) == 2
    assert knee(torch.tensor([1.0, 1.1, 1.2])) == 0
    assert knee(torch.tensor([3.0, 2.0, 1.0])) == 2
    assert knee(torch.tensor([3.0])) == 0


def test_the_asymptotic_error_is_the_trace_and_the_sandwich_its_dense_form():
    curvature, risk, adaptation = problem()
    weights = torch.linspace(0.5, 2, 5).double()
    rho = asymptotic_error(curvature[:5], risk, adaptation, noise=NOISE, ridge=RIDGE, weights=weights)
    assert abs(rho - dense_error(curvature, risk, adaptation, range(5), weights)) < 1e-9
    scores = torch.randn(30, 10, generator=torch.Generator().manual_seed(4)).double()
    options = {"noise": NOISE, "ridge": RIDGE, "weights": weights}
    sandwich = asymptotic_error(curvature[:5], risk, adaptation, scores=scores, **options)
    h = adaptation.T @ adaptation + RIDGE * torch.eye(10).double()
    h = h + torch.einsum("c,crk,crl->kl", weights, curvature[:5], curvature[:5])
    g = scores.T @ scores + NOISE * RIDGE * torch.eye(10).double()
    wanted = torch.trace(risk.T @ risk @ torch.linalg.inv(h) @ g @ torch.linalg.inv(h)).item()
    assert abs(sandwich - wanted) < 1e-9
    rows = torch.cat([adaptation, (curvature[:5] * weights.sqrt()[:, None, None]).flatten(0, 1)]) * NOISE**0.5
    same = asymptotic_error(curvature[:5], risk, adaptation, scores=rows, **options)
    assert abs(same - rho) < 1e-9  # with G = sigma^2 H the two forms are one


def test_design_weights_lower_the_error_at_the_same_total():
    curvature, risk, adaptation = problem(count=6, rank=1)
    chosen = torch.cat([curvature, curvature[:1], curvature[:1]])
    weights = design_weights(chosen, risk, adaptation, ridge=RIDGE)
    assert abs(weights.mean().item() - 1) < 1e-9
    before = dense_error(chosen, risk, adaptation, range(8), torch.ones(8))
    assert dense_error(chosen, risk, adaptation, range(8), weights) < before
    torch.testing.assert_close(weights[0], weights[6])


def test_gradient_cosine_is_that_with_each_fold_s_own_judges_at_its_own_surrogate():
    gradients = torch.tensor([[[2.0, 0.0], [0.0, 3.0], [-1.0, -1.0]], [[0.0, 5.0], [0.0, 5.0], [1.0, 0.0]]])
    judges = torch.tensor([[[1.0, 0.0], [3.0, 4.0]], [[0.0, 1.0], [0.0, 2.0]]])  # means along (1, 1) and (0, 1)
    expected = torch.tensor([(0.5**0.5 + 1) / 2, (0.5**0.5 + 1) / 2, -0.5])
    torch.testing.assert_close(gradient_cosine(gradients, judges), expected)

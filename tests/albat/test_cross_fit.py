"""The cross-fitted scores against the true risk's own slope, in a quadratic world."""

import torch

from bat_ui.albat.cross_fit import FoldScores, fold_scores, judge_groups, rank_by_score, standard_error
from bat_ui.albat.validity import DOUBTFUL, HARMFUL, UNKNOWN, VALID

RIDGE = 0.3


def problem(count=20, size=8, folds=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    u = torch.randn(count, 1, size, generator=g).double()
    gradients = torch.randn(folds, count, size, generator=g).double()
    judges, adaptation = torch.randn(folds, 2, size, generator=g).double(), torch.randn(4, size, generator=g).double()
    return judges, gradients, u, torch.randn(5, size, generator=g).double(), adaptation


def dense_change(judges, gradients, u, risk, adaptation, chosen, weights):
    """Mean over folds of the judge's quadratic risk after the minimum of adaptation + weighted quadratics."""
    total = 0.0
    for ghat, g in zip(judges.mean(1), gradients):
        h, pull = adaptation.T @ adaptation + RIDGE * torch.eye(len(ghat)).double(), torch.zeros_like(ghat)
        for c, w in zip(chosen, weights):
            h, pull = h + w * u[c].T @ u[c], pull + w * g[c]
        move = -torch.linalg.solve(h, pull)
        total += (ghat @ move + (risk @ move).square().sum() / 2).item()
    return total / len(judges)


def test_scores_are_the_slope_of_the_risk_at_zero_weight():
    judges, gradients, u, risk, adaptation = problem()
    scores = fold_scores(judges, gradients, adaptation, ridge=RIDGE)
    for c in range(20):
        slope = dense_change(judges, gradients, u, risk, adaptation, [c], [1e-8]) / 1e-8
        assert abs(scores.mean()[c].item() + slope) < 1e-4 * abs(slope) + 1e-4


def test_the_ranking_takes_the_steepest_slope_and_predicts_the_dense_risk():
    judges, gradients, u, risk, adaptation = problem()
    got = rank_by_score(judges, gradients, u, risk, adaptation, ridge=RIDGE, weight=0.5, pool=20)
    chosen = []
    for step in range(20):
        now = dense_change(judges, gradients, u, risk, adaptation, chosen, [0.5] * step)
        slopes = {}
        for c in set(range(20)) - set(chosen):
            near = dense_change(judges, gradients, u, risk, adaptation, [*chosen, c], [*[0.5] * step, 1e-6])
            slopes[c] = near - now
        chosen.append(min(slopes, key=slopes.get))
        assert got.order[step] == chosen[-1]
        exact = dense_change(judges, gradients, u, risk, adaptation, chosen, [0.5] * (step + 1))
        assert abs(got.errors[step + 1].item() - exact) < 1e-9


def test_blocks_keep_the_prediction_exact_at_their_ends():
    judges, gradients, u, risk, adaptation = problem(count=80)
    got = rank_by_score(judges, gradients, u, risk, adaptation, ridge=RIDGE, fine=8, pool=16)
    assert sorted(got.order.tolist()) == list(range(80))
    exact = dense_change(judges, gradients, u, risk, adaptation, range(80), [1.0] * 80)
    assert abs(got.errors[-1].item() - exact) < 1e-9


def test_the_score_with_noisy_judges_averages_to_the_score_with_the_truth():
    judges, gradients, _, _, adaptation = problem(folds=2)
    g = torch.Generator().manual_seed(1)
    noisy = judges.mean(1, keepdim=True) + 2 * torch.randn(2, 4000, 8, generator=g).double()
    scores = fold_scores(noisy, gradients, adaptation, ridge=RIDGE)
    truth = fold_scores(judges.mean(1, keepdim=True), gradients, adaptation, ridge=RIDGE)
    spread = scores.values.std(1).square().mean(0).sqrt() / 8000**0.5
    assert ((scores.mean() - truth.mean()).abs() < 5 * spread).all()


def test_the_standard_error_takes_the_larger_of_folds_and_draws():
    between = torch.tensor([[1.0, 1.0], [3.0, 3.0]])[:, :, None]
    assert abs(standard_error(between)[0].item() - 1.0) < 1e-6
    within = torch.tensor([[1.0, 3.0], [1.0, 3.0]])[:, :, None]
    assert abs(standard_error(within)[0].item() - (2 / 4) ** 0.5) < 1e-6
    assert standard_error(torch.ones(1, 1, 3)).isinf().all()


def test_groups_are_judged_by_the_sign_of_their_t_value():
    g = torch.Generator().manual_seed(0)
    groups = torch.tensor([0] * 10 + [1] * 10 + [2] * 10 + [3])
    shift = torch.tensor([1.0, -1.0, 0.0, 5.0])[groups]
    wave = torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None, None]  # folds that disagree about group 2
    values = shift + 0.1 * torch.randn(4, 2, 31, generator=g) + wave * (groups == 2)
    verdicts = [x.verdict for x in judge_groups(FoldScores(values), groups)]
    assert verdicts == [VALID, HARMFUL, DOUBTFUL, UNKNOWN]

"""lam_j against dense matrices and brute grids; clusters; verdicts."""

import pytest
import torch

from bat_ui.albat.evidence import (
    NOISE_PART,
    Judge,
    Posterior,
    disagreements,
    estimate_scales,
    likelihood,
    noise_scale,
    observe,
    posterior,
    spectrum,
    unexplained_scatter,
)
from bat_ui.albat.validity import DOUBTFUL, HARMFUL, UNKNOWN, VALID, cluster, group_disagreement


def draw(seed, size=12, count=30, rank=2, lam=0.3, noise=0.5, ridge=0.4):
    """Adaptation, curvature vectors, H, C and a summed gradient drawn from the model; C in units of the noise."""
    g = torch.Generator().manual_seed(seed)
    adaptation = torch.randn(4, size, generator=g, dtype=torch.float64)
    u = torch.randn(count, rank, size, generator=g, dtype=torch.float64) * torch.logspace(0, -1, size)
    h = u.flatten(0, 1).T @ u.flatten(0, 1)
    c = torch.linalg.inv(adaptation.T @ adaptation + ridge * torch.eye(size))
    cov = noise * (h + h @ (c + lam * torch.eye(size)) @ h)
    gradient = torch.linalg.cholesky(cov) @ torch.randn(size, generator=g, dtype=torch.float64)
    return adaptation, u, h, c, gradient


def judged(gradient, u, c=None):
    """The likelihood of one group, with a dense C."""
    observed = observe([gradient], [u])
    return likelihood(observed, None if c is None else observed.basis.mT @ c @ observed.basis)


def dense_log(gradient, h, c, lam, noise):
    cov = noise * (h + h @ (c + lam * torch.eye(len(h))) @ h)
    normal = torch.distributions.MultivariateNormal(torch.zeros_like(gradient), cov)
    return normal.log_prob(gradient).item()


@pytest.mark.parametrize("with_covariance", [True, False])
def test_the_likelihood_is_the_dense_gaussian_up_to_one_constant(with_covariance):
    _, u, h, c, gradient = draw(0)
    c = c if with_covariance else torch.zeros_like(c)
    fast = judged(gradient, u, c if with_covariance else None)
    offsets = [
        fast(torch.tensor([lam]).double(), noise).item() - dense_log(gradient, h, c, lam, noise)
        for lam, noise in ((0.0, 0.5), (0.1, 0.5), (3.0, 0.5), (0.1, 2.0), (1.0, 0.01))
    ]
    assert max(offsets) - min(offsets) < 1e-6


def test_the_best_lam_is_that_of_a_brute_grid_of_dense_matrices():
    for seed in range(4):
        adaptation, u, h, c, gradient = draw(seed)
        peak = judged(gradient, u, c).maximise(0.5).item()
        grid = torch.cat([torch.zeros(1), torch.logspace(-4, 2, 150)]).double().tolist()
        scores = [dense_log(gradient, h, c, lam, 0.5) for lam in grid]
        assert dense_log(gradient, h, c, peak, 0.5) >= max(scores) - 1e-9
        best = grid[scores.index(max(scores))]
        assert abs(peak - best) <= 0.1 * best + 1e-6


def test_the_interval_holds_the_values_within_192_of_the_peak():
    _, u, h, c, gradient = draw(3)
    fast = judged(gradient, u, c)
    peak = fast.maximise(0.5)
    low, high = (end.item() for end in fast.interval(0.5, peak))
    peak = peak.item()
    best = dense_log(gradient, h, c, peak, 0.5)
    for end, inward, outward in ((low, 1.2, 0.8), (high, 0.8, 1.2)):
        if end > 0:
            assert dense_log(gradient, h, c, end * inward, 0.5) > best - 1.92
            assert dense_log(gradient, h, c, end * outward, 0.5) < best - 1.92


def test_a_curvature_of_low_rank_is_decomposed_on_its_range():
    u = torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for vectors in (u, u.repeat(40, 1)):
        basis, values = spectrum(vectors)
        assert len(values) == 3
        torch.testing.assert_close((basis * values) @ basis.T, vectors.T @ vectors)


def test_groups_of_different_ranks_are_judged_as_each_alone():
    drawn = [draw(seed) for seed in range(3)]
    groups = [(d[4], d[1][:count]) for d, count in zip(drawn, (30, 2, 1))]
    several = observe(*zip(*groups))
    c = drawn[0][3]
    together = likelihood(several, several.basis.mT @ c @ several.basis)
    peaks = together.maximise(0.5)
    for j, (gradient, u) in enumerate(groups):
        alone = judged(gradient, u, c)
        assert together.ranks[j] == alone.ranks[0] == min(12, 2 * len(u))
        torch.testing.assert_close(peaks[j], alone.maximise(0.5)[0])
        torch.testing.assert_close(together(peaks, 0.5)[j], alone(peaks[j : j + 1], 0.5)[0])
        for fast, slow in zip(together.interval(0.5, peaks), alone.interval(0.5, peaks[j : j + 1])):
            torch.testing.assert_close(fast[j], slow[0])
        torch.testing.assert_close(together.power(0.2)[j], alone.power(0.2)[0])


def test_the_posterior_seen_from_a_range_is_the_dense_one():
    adaptation, u, _, c, gradient = draw(0, ridge=0.4)
    observed = observe([gradient], [u[:3]])
    torch.testing.assert_close(Posterior(observed, adaptation)(0.4)[0], observed.basis[0].T @ c @ observed.basis[0])


def test_the_posterior_is_the_dense_inverse():
    v = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    dense = torch.linalg.inv(v.flatten(0, 1).T @ v.flatten(0, 1) + 0.2 * torch.eye(7))
    torch.testing.assert_close(posterior(v, 0.2), dense)


def test_a_refit_round_is_the_dense_newton_step_to_the_other_groups():
    ridge, noise = 0.4, 0.5
    adaptation, u1, h1, c, g1 = draw(1, lam=0.0)
    _, u2, h2, _, g2 = draw(2, lam=0.0)
    labels = torch.tensor([0] * 30 + [1] * 30)
    gradients = torch.cat([(g1 / 30).expand(30, -1), (g2 / 30).expand(30, -1)])
    got = group_disagreement(gradients, torch.cat([u1, u2]), labels, adaptation, ridge=ridge, noise=noise, rounds=2)
    first = [judged(g, u, c).maximise(noise).item() for g, u in ((g1, u1), (g2, u2))]
    w = torch.linalg.inv(torch.linalg.inv(h2) + first[1] * torch.eye(12))
    refit = torch.linalg.inv(torch.linalg.inv(c) + w)
    offset = refit @ (w @ (-torch.linalg.solve(h2, g2)))
    wanted = judged(g1 + h1 @ offset, u1, refit).maximise(noise).item()
    assert abs(got.groups[0].disagreement / ridge - wanted) < 1e-3 * wanted + 1e-6


def test_a_sketch_wider_than_all_curvatures_together_changes_nothing():
    drawn = [draw(seed) for seed in (1, 2)]
    adaptation, labels = drawn[0][0], torch.tensor([0] * 3 + [1] * 3)
    gradients = torch.stack([d[4] / 3 for d in drawn for _ in range(3)])
    curvature = torch.cat([d[1][:3] for d in drawn])
    wide = torch.linalg.qr(torch.randn(40, 12, generator=torch.Generator().manual_seed(0)).double()).Q.T
    small = group_disagreement(gradients, curvature, labels, adaptation, ridge=0.4)
    large = group_disagreement(gradients @ wide, curvature @ wide, labels, adaptation @ wide, ridge=0.4)
    for a, b in zip(small.groups, large.groups):
        assert a.verdict == b.verdict and abs(a.disagreement - b.disagreement) < 1e-6 + 1e-4 * a.disagreement


def three_groups(**options):
    """One that agrees, one that does not, one that is tiny."""
    g = torch.Generator().manual_seed(0)
    size, truth = 10, torch.randn(10, generator=g).double()
    adaptation, ridge = torch.randn(30, size, generator=g).double(), 0.09
    noise = 0.3 * torch.randn(30, generator=g).double()
    surrogate = posterior(adaptation, ridge) @ adaptation.T @ (adaptation @ truth + noise)
    rows, gradients, labels = [], [], []
    for label, (count, shift, scale) in enumerate([(80, 0.0, 1.0), (80, 1.5, 1.0), (1, 0.0, 0.01)]):
        x = torch.randn(count, size, generator=g).double() * scale
        target = truth + shift * torch.randn(size, generator=g).double()
        y = x @ target + 0.3 * torch.randn(count, generator=g).double()
        rows.append(x)
        gradients.append(x * (x @ surrogate - y)[:, None])
        labels += [label] * count
    rows, gradients, labels = torch.cat(rows)[:, None], torch.cat(gradients), torch.tensor(labels)
    return group_disagreement(gradients, rows, labels, adaptation, ridge=ridge, noise=0.09, **options)


def test_groups_that_agree_are_valid_those_that_do_not_harmful_and_tiny_ones_are_not_judged():
    validity = three_groups()
    assert [x.verdict for x in validity.groups] == [VALID, HARMFUL, UNKNOWN]
    assert [x.size for x in validity.groups] == [80, 80, 1]
    low, high = validity.groups[1].interval
    assert low < validity.groups[1].disagreement < high
    assert validity.groups[1].evidence > 10 > validity.groups[0].evidence


def test_a_group_that_plainly_disagrees_is_valid_only_if_all_of_its_interval_is_within_the_tolerance():
    agrees, disagrees, _ = three_groups().groups
    (_, upper), (low, high) = agrees.interval, disagrees.interval
    between = [low * 0.9, (low + disagrees.disagreement) / 2, (disagrees.disagreement + high) / 2, high * 1.1]
    verdicts = [three_groups(tolerance={0: 1.0, 1: part, 2: 1.0}).groups[1].verdict for part in between]
    assert verdicts == [HARMFUL, DOUBTFUL, DOUBTFUL, VALID]
    assert agrees.disagreement < upper / 2  # where nothing shows a disagreement, it is enough that none is the likeliest
    assert three_groups(tolerance={0: upper / 2, 1: 1.0, 2: 1.0}).groups[0].verdict == VALID


def test_scales_are_recovered_from_groups_and_left_out_images():
    """Many draws of gradients from the model itself give back the noise and ridge that made them."""
    g = torch.Generator().manual_seed(0)
    size, noise, ridge = 12, 0.3, 0.5
    adaptation = torch.randn(4, size, generator=g, dtype=torch.float64)

    def drawn(c):
        u = torch.randn(40, size, generator=g, dtype=torch.float64) * torch.logspace(0, -1.5, size)
        h = u.T @ u
        factor = torch.linalg.cholesky(noise * (h + h @ c @ h))
        return factor @ torch.randn(size, generator=g, dtype=torch.float64), u

    pool = observe(*zip(*[drawn(posterior(adaptation, ridge)) for _ in range(4)]))
    left_out = [drawn(posterior(adaptation[:2], ridge)) for _ in range(5)]
    judges = [Judge(observe([gradient], [u]), adaptation[:2]) for gradient, u in left_out]
    found = estimate_scales(pool, adaptation, judges)
    assert 0.7 < found[0] / noise < 1.4
    assert 0.5 < found[1] / ridge < 2


def test_clusters_find_separate_blobs_and_repeat_with_their_seed():
    g = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(4, 32, generator=g), dim=1)
    truth = torch.arange(200) % 4
    vectors = centres[truth] + 0.05 * torch.randn(200, 32, generator=g)
    labels = cluster(vectors, 4, seed=0)
    assert torch.equal(labels, cluster(vectors, 4, seed=0))
    pairs = {(a, b) for a, b in zip(truth.tolist(), labels.tolist())}
    assert len(pairs) == 4
    assert len(torch.unique(cluster(vectors[:3], 8, seed=0))) == 3


@pytest.mark.parametrize("size", [5, 10, 20])
@pytest.mark.parametrize("seed", range(3))
def test_the_noise_scale_hardly_depends_on_the_grouping(size, seed):
    """Groups disagree as much as the prior allows: with each one's likeliest lam the noise comes out at 0.002 to 0.6."""
    rng = torch.Generator().manual_seed(seed)
    count, width, noise, reach = 200, 96, 0.01, 0.3
    scales = torch.logspace(0.5, -1.5, width, dtype=torch.float64)
    subject, images = (torch.randn(n, width, generator=rng, dtype=torch.float64) * scales for n in (6, count))
    truth, groups = torch.randn(width, generator=rng, dtype=torch.float64) * reach, images.view(-1, size, width)
    sums = []
    for group in groups:
        own = truth + reach * torch.randn(width, generator=rng, dtype=torch.float64)
        sums.append(group.T @ (group @ own + noise**0.5 * torch.randn(size, generator=rng, dtype=torch.float64)))
    observed = observe(sums, list(groups))
    found = noise_scale(likelihood(observed, Posterior(observed, subject)(noise / reach**2)), disagreements(observed))
    assert noise / 5 < found < noise * 5


def sampled(count, size, generator, noise, step=None):
    """Curvature vectors u (count, size) and gradients u (u' step + noise) of images whose optimum lies at -step."""
    u = torch.randn(count, size, generator=generator, dtype=torch.float64)
    residual = noise * torch.randn(count, generator=generator, dtype=torch.float64)
    return u[:, None], u * (residual + (0 if step is None else u @ step))[:, None]


def test_what_curvature_explains_of_gradients_is_no_noise():
    g = torch.Generator().manual_seed(0)
    curvature, gradients = sampled(200, 6, g, 0.5, 3 * torch.randn(6, generator=g, dtype=torch.float64))
    found = observe([gradients.sum(0)], [curvature])
    assert 0.25 < unexplained_scatter([gradients], [curvature], found) < 0.6
    plain = (gradients - gradients.mean(0)) @ found.basis[0] / found.values[0].sqrt()
    assert plain.square().sum() / 6 > 10  # all of the scatter


def test_without_a_group_of_four_all_images_show_the_scatter_together():
    curvature, gradients = sampled(9, 6, torch.Generator().manual_seed(3), 0.5)
    whole, alone = observe([gradients.sum(0)], [curvature]), observe(list(gradients), list(curvature[:, None]))
    found = unexplained_scatter(list(gradients[:, None]), list(curvature[:, None]), alone)
    assert found == pytest.approx(unexplained_scatter([gradients], [curvature], whole)) and found > 0
    assert unexplained_scatter([gradients[:3]], [curvature[:3]], observe([gradients[:3].sum(0)], [curvature[:3]])) == 0


def test_where_curvature_explains_nothing_the_scatter_of_each_half_is_left():
    g = torch.Generator().manual_seed(1)
    curvature, _ = sampled(12, 40, g, 1.0)
    gradients = torch.randn(12, 40, generator=g, dtype=torch.float64)
    found, naive = observe([gradients.sum(0)], [curvature]), 0.0
    seen = found.values[0] > 0
    for half in (range(0, 12, 2), range(1, 12, 2)):
        mean = sum(gradients[i] for i in half) / 6
        for i in half:
            white = found.basis[0][:, seen].T @ (gradients[i] - mean) / found.values[0][seen].sqrt()
            naive += float(white @ white) * 6 / 5
    assert unexplained_scatter([gradients], [curvature], found) == pytest.approx(naive / int(seen.sum()))


def test_noise_is_at_least_a_part_of_the_unexplained_scatter():
    """Gradients of opposite images cancel in a group's sum, which alone would look like no noise at all."""
    g = torch.Generator().manual_seed(2)
    curvature, gradients = sampled(40, 60, g, 1.0)
    pairs = torch.cat([curvature, curvature]), torch.cat([gradients, -0.999 * gradients])
    adaptation, groups = torch.randn(6, 60, generator=g, dtype=torch.float64), torch.zeros(80, dtype=torch.long)
    found = group_disagreement(pairs[1], pairs[0], groups, adaptation, ridge=1.0)
    observed = observe([pairs[1].sum(0)], [pairs[0]])
    scatter = unexplained_scatter([pairs[1]], [pairs[0]], observed)
    assert found.noise == pytest.approx(NOISE_PART * scatter, rel=1e-3)
    assert float(observed.white.square().sum()) / 40 < 0.01 * found.noise

"""The allocation among groups against a naive twin that inverts dense matrices."""

import pytest
import torch

from bat_ui.albat.allocation import DIRECTIONS, FIRST, group_curvature, rank_by_allocation

SIZE, RIDGE, NOISE, TOTAL = 12, 0.3, 0.7, 5.0


@pytest.fixture(scope="module")
def world():
    """Five groups of six images, each with directions of its own, in a shuffled order; few enough rows to keep them all."""
    g = torch.Generator().manual_seed(3)
    groups = torch.arange(30)[torch.randperm(30, generator=g)] % 5
    scale = torch.rand(5, SIZE, generator=g) ** 3
    curvature = (
        torch.randn(30, 1, SIZE, generator=g)
        * scale[groups][:, None]
        * torch.tensor([2.0, 1, 1, 0.7, 1.5])[groups][:, None, None]
    )
    adaptation, risk = torch.randn(3, SIZE, generator=g), torch.randn(4, SIZE, generator=g)
    return [x.double() for x in (curvature, adaptation, risk)] + [groups]


def options(**changes):
    plain = {
        "noise": NOISE,
        "total": TOTAL,
        "disagreement": {0: 0.0, 1: 0.3, 2: 0.0, 3: 2.0, 4: 0.05},
        "allowed": torch.ones(30, dtype=torch.bool),
        "forced": torch.zeros(30, dtype=torch.bool),
        "last": torch.zeros(30, dtype=torch.bool),
    }
    return plain | changes


def ranked(world, **changes):
    curvature, adaptation, risk, groups = world
    found = group_curvature(curvature, groups, adaptation, risk, ridge=RIDGE)
    return rank_by_allocation(found, groups, **options(**changes))


def twin(world, limit, lam):
    """Order and gains by dense inverses: each round the group whose next image lowers the error most."""
    curvature, adaptation, risk, groups = world
    means = [torch.einsum("nrk,nrl->kl", c, c) / len(c) for c in (curvature[groups == j] for j in range(5))]
    alone = adaptation.T @ adaptation + RIDGE * torch.eye(SIZE)

    def variance(counts, weight):
        m = torch.linalg.inv(alone + weight * sum(n * h for n, h in zip(counts, means)))
        return torch.trace(risk @ m @ risk.T), m

    left = {j: (groups == j).nonzero()[:, 0].tolist() for j in range(5)}
    taken, order, gains = [0] * 5, [], []
    size = FIRST
    for done in range(limit):
        size = 2 * size if done == size else size
        weight = TOTAL / min(size, limit)

        before, m = variance(taken, weight)
        choices = []
        for j in (j for j in range(5) if left[j]):
            after, _ = variance([n + (i == j) for i, n in enumerate(taken)], weight)
            bias = (2 * taken[j] + 1) * lam[j] * weight**2 * (risk @ m @ means[j]).square().sum()
            choices.append((float(before - after - bias), j, float(before - after)))
        best = max(choices)
        gains.append(NOISE * best[2])
        order.append(left[best[1]].pop(0))
        taken[best[1]] += 1
    return order, gains


@pytest.mark.parametrize("limit", [7, 25])
def test_it_takes_from_the_group_that_lowers_the_error_most_as_the_naive_twin_does(world, limit):
    order, gains = twin(world, limit, options()["disagreement"])
    found = ranked(world, limit=limit)
    assert found.order.tolist() == order
    assert torch.allclose(found.gains, torch.tensor(gains, dtype=torch.float64))


def test_without_disagreement_the_errors_are_exact(world):
    curvature, adaptation, risk, groups = world
    found = ranked(world, disagreement=dict.fromkeys(range(5), 0.0), limit=FIRST)
    inverse = RIDGE * torch.eye(SIZE) + adaptation.T @ adaptation
    for count, index in enumerate([None, *found.order.tolist()]):
        if index is not None:
            members = curvature[groups == groups[index]]
            inverse = inverse + TOTAL / FIRST * torch.einsum("nrk,nrl->kl", members, members) / len(members)
        assert found.errors[count] == pytest.approx(float(NOISE * torch.trace(risk @ torch.linalg.inv(inverse) @ risk.T)))


def test_images_of_a_group_come_in_their_own_order_forced_ones_first_and_the_last_last(world):
    groups = world[-1]
    forced = torch.zeros(30, dtype=torch.bool).index_fill_(0, torch.tensor([17, 29]), True)
    allowed = torch.arange(30) != 4
    order = ranked(world, forced=forced, allowed=allowed, last=groups == 0).order.tolist()
    assert sorted(order[:2]) == [17, 29] and 4 not in order and len(order) == 29
    for j in range(5):
        rest = [i for i in order[2:] if groups[i] == j]
        assert rest == sorted(rest)
    number = sum(int(groups[i]) == 0 and i not in (17, 29) for i in order)
    assert {int(groups[i]) for i in order[-number:]} == {0}


def test_disagreement_takes_images_away_from_a_group(world):
    groups = world[-1]

    def share(lam):
        order = ranked(world, disagreement=dict.fromkeys(range(5), 0.0) | {0: lam}, limit=15).order
        return int((groups[order] == 0).sum())

    assert share(0.0) > share(3.0)


def test_of_a_large_group_the_largest_directions_are_kept(world):
    g = torch.Generator().manual_seed(0)
    curvature = torch.randn(40, 1, SIZE, generator=g).double() * torch.linspace(3, 0.01, SIZE).double() ** 2
    found = group_curvature(curvature, torch.zeros(40, dtype=torch.long), world[1], world[2], ridge=RIDGE)
    mean = torch.einsum("nrk,nrl->kl", curvature, curvature) / 40
    kept = torch.linalg.eigvalsh(mean)[-DIRECTIONS:]
    assert torch.allclose(torch.linalg.eigvalsh(found.own[0]), kept)

"""The selection as a whole: saved and loaded, pruned and added to, its rules and its sentences."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bat_ui.albat.selection import FEWEST, PREDICTED, RULES, Sketches, assess, make_sketches, select
from bat_ui.albat.strength import LEAST, MOST
from bat_ui.errors import UserError


def fit(x, y):
    """Ridge regression under noise 0.3 and a prior of one."""
    return torch.linalg.solve(x.T @ x + 0.09 * torch.eye(x.shape[1]), x.T @ y)


@pytest.fixture(scope="module")
def made():
    """Three groups in ten dimensions: one agrees with the subject's truth, one does not, one has two images."""
    g = torch.Generator().manual_seed(0)
    truth, away = torch.randn(2, 10, generator=g)
    seen = torch.randn(12, 10, generator=g) * torch.linspace(1, 0.1, 10)
    wanted = seen @ truth + 0.3 * torch.randn(12, generator=g)
    rest = [torch.tensor([j for j in range(12) if j != i]) for i in range(12)]
    folds = torch.stack([fit(seen[r], wanted[r]) for r in rest])
    groups = torch.tensor([0] * 50 + [1] * 50 + [2] * 2)
    x = torch.randn(102, 10, generator=g) * torch.where(groups == 2, 0.01, 1.0)[:, None]
    y = (x * (truth + 2 * away * (groups == 1)[:, None])).sum(1) + 0.3 * torch.randn(102, generator=g)
    return make_sketches(
        tuple(f"image {i}" for i in range(102)), groups, x * (x @ fit(seen, wanted) - y)[:, None], x[:, None],
        seen[:, None], risk=torch.eye(10),
        judges=(seen * ((seen * folds).sum(1) - wanted)[:, None])[:, None], judge_curvature=seen[:, None],
        fold_gradients=torch.stack([x * (x @ f - y)[:, None] for f in folds]),
    )  # fmt: skip


@pytest.fixture(scope="module")
def assessed(made):
    return assess(made)


def test_a_group_that_pulls_nowhere_at_all_is_not_judged(made):
    here = (made.groups == 0).float()[:, None]
    parts = (made.groups, made.gradients * here, made.curvature * here[:, None], made.adaptation_curvature)
    silent = assess(make_sketches(made.ids, *parts, risk=torch.eye(10)))
    assert {g.group: g.verdict for g in silent.validity.groups}[1] == "too small to judge"


def test_three_images_are_not_judged_however_far_off_and_four_are(made):
    away = (made.groups == 1).nonzero()[:, 0]
    for count, verdict in ((3, "too small to judge"), (4, "harmful")):
        rows = torch.cat([(made.groups == 0).nonzero()[:, 0], away[:count]])
        parts = (made.groups[rows], 40 * made.gradients[rows], made.curvature[rows], made.adaptation_curvature)
        found = assess(make_sketches(tuple(made.ids[i] for i in rows), *parts, risk=torch.eye(10)))
        assert found.verdicts("albat")[1] == verdict
        assert count == 4 or found.validity.disagreement()[1] * found.ridge >= 1


def test_sketches_survive_the_way_through_arrays(made):
    back = Sketches.from_arrays(made.to_arrays())
    assert back.ids == made.ids
    for name in made.to_arrays():
        if name != "ids":
            assert torch.equal(getattr(back, name), getattr(made, name))
    parts = (made.groups[:2], made.gradients[:2], made.curvature[:2], made.curvature[:1])
    named = make_sketches(("ä", "b"), *parts)
    assert Sketches.from_arrays(named.to_arrays()).ids == ("ä", "b")


def test_albat_takes_the_group_that_agrees_and_the_harmful_one_last(made, assessed):
    assert assessed.verdicts("albat") == {0: "valid", 1: "harmful", 2: "too small to judge"}
    selection = select(made, assessed, "albat", 12)
    assert len(selection.chosen) == 12
    assert {int(name.split()[1]) // 50 for name in selection.chosen} <= {0, 2}
    assert selection.errors[12] < 0.5 * selection.errors[0]
    assert 0 < selection.knee < 50
    assert assessed.strengths[1] < 0.1 * assessed.strengths[0]
    everything = select(made, assessed, "albat", 102)
    assert {int(name.split()[1]) // 50 for name in everything.chosen[-50:]} == {1}  # it comes last
    strict = select(made, assessed, "albat", 102, strict=True)
    assert {int(name.split()[1]) for name in strict.chosen} == set(range(50))


@pytest.mark.parametrize("rule", PREDICTED)
def test_gains_are_the_steps_of_the_curve(made, assessed, rule):
    selection = select(made, assessed, rule, 12)
    assert np.allclose(selection.gains, selection.errors[:-1] - selection.errors[1:])


def test_without_validity_reckons_with_no_disagreement(made, assessed):
    """Of the nearest 60 images ten are of the harmful group: their variance counts for both, their bias for albat alone."""
    albat = select(made, assessed, "albat", 12)
    forced = select(made, assessed, "albat", 60, forced=tuple(f"image {i}" for i in range(60)))
    blind = select(made, assessed, "without_validity", 60)
    assert blind.order[:60].tolist() == forced.order[:60].tolist()
    assert blind.errors[60] < albat.errors[12] < forced.errors[60]


def test_by_itself_no_harmful_image_fills_up_a_short_list(made, assessed):
    gone = tuple(f"image {i}" for i in range(25))
    selection = select(made, assessed, "albat", excluded=gone)
    assert len(selection.chosen) == selection.knee == 27  # what is left of the groups that are not harmful
    assert {int(name.split()[1]) // 50 for name in selection.chosen} == {0, 2}
    assert {int(name.split()[1]) // 50 for name in select(made, assessed, "albat", 40, excluded=gone).chosen} == {0, 1, 2}
    assert select(made, assessed, "albat", excluded=tuple(f"image {i}" for i in (*range(50), 100, 101))).chosen == ()


@pytest.mark.parametrize("most", [MOST, 2.5])
@pytest.mark.parametrize("rule", ["albat", "without_validity"])
def test_lambda_stays_within_its_bounds_and_is_shared_equally(made, assessed, rule, most):
    selection = select(made, assessed, rule, 60, most=most)
    assert LEAST <= selection.strength <= most + 1e-6
    assert np.allclose(selection.weights, 1)
    if rule == "albat":
        groups = {int(made.groups[int(name.split()[1])]) for name in selection.chosen}
        assert selection.strength == pytest.approx(min(max(sum(assessed.strengths[g] for g in groups), LEAST), most))
    else:
        assert selection.strength == most


def test_every_rule_takes_the_first_of_an_order_without_repeats(made, assessed):
    for rule in RULES:
        selection = select(made, assessed, rule, 9)
        assert selection.chosen == tuple(made.ids[i] for i in selection.order[:9])
        assert len(set(selection.order.tolist())) == len(selection.order)


@pytest.mark.parametrize("most, suggested", [(0.5, FEWEST), (2.0, 48), (16.0, 52)])
def test_no_more_are_suggested_than_count_half_as_much_as_an_image_of_the_subjects(
    most, suggested, made, assessed, monkeypatch
):
    """However far the curve falls: 12 images of the subject, `most` for all others together, 52 that are not harmful."""
    monkeypatch.setattr("bat_ui.albat.selection.knee", lambda errors: 1000)
    strong = replace(assessed, strengths=dict.fromkeys(assessed.strengths, MOST))
    assert select(made, strong, "albat", most=most).knee == suggested


def test_excluded_images_never_come_and_forced_ones_always_do(made, assessed):
    plain = select(made, assessed, "albat", 10)
    for rule in RULES:
        selection = select(made, assessed, rule, 10, excluded=plain.chosen[:3], forced=("image 60", "image 49"))
        assert set(selection.chosen[:2]) == {"image 60", "image 49"}
        assert not set(selection.chosen) & set(plain.chosen[:3])
    again = select(made, assessed, "albat", 10, excluded=(plain.chosen[-1],))
    assert again.chosen[:9] == plain.chosen[:9]  # images ahead of the one dropped stay


def test_forcing_an_image_of_a_harmful_group_raises_the_predicted_error(made, assessed):
    plain = select(made, assessed, "albat", 10)
    forced = select(made, assessed, "albat", 10, forced=tuple(f"image {i}" for i in range(60, 66)))
    assert forced.errors[10] > plain.errors[10]


def test_the_cross_fitted_rule_sees_that_the_harmful_group_pulls_away(made, assessed):
    by_group = {g.group: g.score for g in assessed.scored_groups}
    assert by_group[0] > 0
    assert by_group[0] > by_group[1]


def test_design_weights_have_mean_one(made, assessed):
    selection = select(made, assessed, "albat", 12, weighted=True)
    assert selection.weights.shape == (12,)
    assert abs(selection.weights.mean() - 1) < 1e-5


@pytest.mark.parametrize("rule", ["albat", "without_benefit"])
def test_the_nearest_come_first_but_the_harmful_last(made, assessed, rule):
    order = select(made, assessed, rule, 102).order.tolist()
    assert order == [*range(50), 100, 101, *range(50, 100)]
    assert select(made, assessed, "without_validity", 102).order.tolist() == list(range(102))


def test_without_benefit_the_number_and_lambda_are_fixed(made, assessed):
    selection = select(made, assessed, "without_benefit", most=3.0)
    assert (len(selection.chosen), selection.strength, len(selection.errors)) == (FEWEST, 3.0, 0)


def test_mistakes_are_answered_with_a_sentence(made, assessed):
    with pytest.raises(UserError, match="no selection rule"):
        select(made, assessed, "best")
    with pytest.raises(UserError, match="not among the candidates"):
        select(made, assessed, excluded=("nobody",))
    with pytest.raises(UserError, match="both excluded and added"):
        select(made, assessed, excluded=("image 1",), forced=("image 1",))
    without = make_sketches(made.ids, made.groups, made.gradients, made.curvature, made.adaptation_curvature)
    with pytest.raises(UserError, match="left-out"):
        select(without, assess(without), "cross_fit")
    blank = make_sketches(made.ids, made.groups, 0 * made.gradients, 0 * made.curvature, made.adaptation_curvature)
    with pytest.raises(UserError, match="blank"):
        assess(blank)
    nothing = made.gradients * float("nan")
    broken = make_sketches(made.ids, made.groups, nothing, made.curvature, made.adaptation_curvature)
    with pytest.raises(UserError, match="not finite"):
        assess(broken)


def test_what_is_added_by_hand_of_a_harmful_group_pushes_no_harmless_image_out(made, assessed):
    nearest = {name for name, group in zip(made.ids, made.groups.tolist()) if group == 0 and int(name.split()[1]) < 10}
    others = tuple(name for name, group in zip(made.ids, made.groups.tolist()) if group != 1 and name not in nearest)
    harmful = tuple(name for name, group in zip(made.ids, made.groups.tolist()) if group == 1)
    assert assessed.verdicts("albat")[1] == "harmful"
    found = select(made, assessed, excluded=others, forced=harmful[:20])
    assert set(found.chosen) == nearest | set(harmful[:20])

"""The choice: saved and loaded unchanged, pruned by hand, predictions recomputed from the sketches alone."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from bat_ui.albat.selection import assess, make_sketches, select
from bat_ui.albat.strength import HIGHEST, MOST, most_strength
from bat_ui.choice import (
    Candidate,
    Choice,
    apply_selection,
    by_rule,
    mark_group,
    predicted_error,
    revise,
    save_sketches,
    toggle,
)
from bat_ui.errors import UserError
from bat_ui.settings import TrainingSettings


@pytest.fixture()
def made(tmp_path):
    """Twelve candidates in three groups with random sketches, and the choice that ALBAT makes of them."""
    rng = torch.Generator().manual_seed(0)
    ids = tuple(f"c{i}" for i in range(12))
    gradients = 0.1 * torch.randn(12, 16, generator=rng)
    curvature = torch.randn(12, 1, 16, generator=rng)
    subject = torch.randn(3, 2, 16, generator=rng)
    sketches = make_sketches(
        ids,
        torch.arange(12) // 4,
        gradients,
        curvature,
        subject,
    )
    save_sketches(sketches, tmp_path / "sketches.safetensors")
    rows = tuple(Candidate(i, f"picture {i}", 0.5) for i in ids)
    choice = apply_selection(Choice("without_validity", rows, 4), sketches, assess(sketches))
    return choice, sketches, tmp_path / "sketches.safetensors"


def test_saved_and_loaded_it_is_the_same(made, tmp_path):
    choice = made[0]
    choice.save(tmp_path / "selection.json")
    assert asdict(Choice.load(tmp_path / "selection.json")) == json.loads(json.dumps(asdict(choice))) | {
        key: value for key, value in asdict(choice).items() if isinstance(value, tuple)
    }


def test_candidates_carry_what_the_mathematics_found(made):
    choice, sketches, _ = made
    found = select(sketches, assess(sketches), "without_validity", 4)
    assert [c.id for c in choice.candidates] == [sketches.ids[i] for i in found.order]
    assert {c.id for c in choice.chosen} == set(found.chosen)
    assert [c.gain for c in choice.candidates] == pytest.approx((found.gains / found.errors[0]).tolist())
    assert choice.errors[0] == 1


def test_a_dropped_picture_is_replaced_by_the_next_best(made):
    choice, sketches, path = made
    first = choice.candidates[0].id
    pruned = toggle(choice, first, path)
    assert first not in {c.id for c in pruned.chosen} and len(pruned.chosen) == 4
    expected = select(sketches, assess(sketches), "without_validity", 4, excluded=(first,))
    assert {c.id for c in pruned.chosen} == set(expected.chosen)


def test_a_kept_picture_takes_the_place_of_the_last(made):
    choice, _, path = made
    last = choice.candidates[-1].id
    kept = toggle(choice, last, path)
    assert last in {c.id for c in kept.chosen} and len(kept.chosen) == 4


def test_whose_place_was_taken_by_a_farther_one_by_hand_says_so(made):
    choice, _, path = made
    rows = tuple(replace(c, class_similarity=0.9 - 0.01 * int(c.id[1:])) for c in choice.candidates)
    choice = toggle(replace(choice, candidates=rows), "c11", path)
    said = {c.id: choice.reason(c).partition(";")[0] for c in choice.candidates if not c.chosen}
    assert said.pop("c3") == "Left out: farther ones that you took by hand have its place."
    assert set(said) == {f"c{i}" for i in range(4, 11)} and set(said.values()) == {"Left out: nearer ones are enough"}


@pytest.mark.parametrize("place", [0, -1])
def test_two_toggles_change_nothing(made, place):
    choice, _, path = made
    id = choice.candidates[place].id
    assert toggle(toggle(choice, id, path), id, path) == choice


def test_rules_without_sketches_are_pruned_too(tmp_path):
    rows = tuple(Candidate(f"c{i}", "", 0.1 * i, rank=i + 1, chosen=i < 2) for i in range(4))
    choice = toggle(toggle(Choice("nearest", rows, 2), "c0", tmp_path / "none"), "c3", tmp_path / "none")
    assert {c.id for c in choice.chosen} == {"c1", "c3"}


def test_unknown_pictures_are_refused(made):
    choice, _, path = made
    with pytest.raises(UserError, match="not among the candidates"):
        revise(choice, path, dropped=["nonsense"], kept=[], num_backbone=4)


def test_every_candidate_says_why_it_is_taken_or_left_out():
    def said(choice, **facts):
        return choice.reason(Candidate("a/1", "cat", 0.5, **facts))

    ranked = Choice("albat", (), errors=(1.0, 0.5))
    assert said(ranked, verdict="valid", rank=1, chosen=True).startswith(
        "Taken: among the nearest to your class; its kind is close"
    )
    assert said(ranked, verdict="valid", rank=70).startswith("Left out: nearer ones are enough; its kind is close")
    assert said(ranked, verdict="harmful", rank=3).startswith("Left out: its kind pulls the model away")
    assert said(ranked, verdict="doubtful", rank=3, chosen=True).startswith(
        "Taken: among the nearest to your class; its kind may pull"
    )
    assert "too few" in said(ranked, verdict="too small to judge")
    assert "teach more" in said(replace(ranked, rule="by_group"), verdict="valid")
    assert "not asked for" in said(replace(ranked, rule="without_validity"), verdict="harmful")
    assert "by hand" in said(replace(ranked, dropped=("a/1",)), verdict="valid", gain=0.1, rank=1)
    assert "by hand" in said(replace(ranked, kept=("a/1",)), verdict="harmful", chosen=True)
    assert "number 7" in said(Choice("nearest", ()), rank=7, chosen=True)
    assert said(Choice("random", ()), rank=7).startswith("Left out: drawn by lot")


def test_a_group_is_dropped_and_taken_at_once_and_none_of_it_moves_up(made):
    choice, _, path = made
    members = {c.id for c in choice.candidates if c.group == choice.candidates[0].group}
    dropped = mark_group(choice, choice.candidates[0].group, False, path)
    assert not members & {c.id for c in dropped.chosen} and len(dropped.chosen) == 4
    taken = mark_group(dropped, choice.candidates[0].group, True, path)
    assert members <= {c.id for c in taken.chosen} and taken.dropped == ()
    with pytest.raises(UserError, match="no such group"):
        mark_group(choice, 99, True, path)


def test_other_rules_choose_as_many_from_the_same_candidates_as_they_would_alone(made):
    choice, sketches, path = made
    rows = tuple(replace(c, similarity=0.1 * int(c.id[1:])) for c in choice.candidates)
    choice = replace(choice, candidates=rows, groups=({"group": 0},))
    found = {rule: {c.id for c in by_rule(choice, rule, path).chosen} for rule in choice.comparable}
    assert found["nearest"] == {"c8", "c9", "c10", "c11"}
    for rule in ("albat", "by_group", "without_validity"):
        assert found[rule] == set(select(sketches, assess(sketches), rule, 4).chosen)
    assert len(found["random"]) == 4 and by_rule(choice, "random", path) == by_rule(choice, "random", path)
    nearest = by_rule(choice, "nearest", path)
    assert all(c.gain is None for c in nearest.candidates) and nearest.errors == ()
    assert len(toggle(nearest, "c11", path).chosen) == 3
    assert by_rule(nearest, "without_validity", path).candidates == choice.candidates


def test_rules_that_need_sketches_are_not_offered_without_them(tmp_path):
    rows = tuple(Candidate(f"c{i}", "", 0.1 * i, rank=i + 1, chosen=i < 2) for i in range(4))
    choice = Choice("random", rows, 2)
    assert choice.comparable == ("nearest", "random")
    with pytest.raises(UserError, match="search of its own"):
        by_rule(choice, "albat", tmp_path / "none")
    assert predicted_error(choice, tmp_path / "none") is None


def test_the_predicted_error_of_a_set_is_that_of_the_curve_whatever_the_order(made):
    choice, sketches, path = made
    choice = replace(choice, groups=({"group": 0},))
    for rule in ("albat", "by_group"):
        for size in (1, 2, 12):  # the curve is exact there
            sized = apply_selection(replace(choice, rule=rule, num_backbone=size), sketches, assess(sketches))
            turned = replace(sized, candidates=sized.candidates[::-1])
            assert predicted_error(turned, path) == pytest.approx(sized.errors[size], rel=1e-4)


def test_albat_hands_weights_and_strength_on_and_other_rules_none(made):
    choice, sketches, path = made
    albat = apply_selection(replace(choice, rule="albat", groups=({"group": 0},)), sketches, assess(sketches))
    found = select(sketches, assess(sketches), "albat", 4)
    assert {c.id: c.weight for c in albat.chosen} == pytest.approx(dict(zip(found.chosen, found.weights.tolist())), abs=1e-5)
    assert albat.strength == pytest.approx(found.strength, abs=1e-5)
    random = by_rule(albat, "random", path)
    assert random.strength == MOST and {c.weight for c in random.candidates} == {1.0}


def strength(choice: Choice, steps: int) -> float:
    return choice.suggested(TrainingSettings(steps=steps)).strength


def test_lambda_in_the_last_step_grows_with_the_run_where_left_out_pictures_said_when(made):
    choice = replace(made[0], strength=3.0)
    assert strength(choice, 400) == strength(choice, 800) == 3
    asked = replace(choice, subject_steps=80, most_strength=4.0, left_out=({"step": 80, "loss": 0.1},))
    assert strength(asked, 400) == strength(asked, 800) == 3  # what the pictures bear is no matter of the run
    assert strength(asked, 240) == pytest.approx(240 / 80 - 1)
    full = replace(asked, strength=4.0)
    assert strength(full, 400) == 4 and strength(full, 800) == pytest.approx(800 / 80 - 1)
    assert by_rule(asked, "random", made[2]).strength == 4


@pytest.mark.parametrize("turning", (30, 60, 90))
def test_what_the_run_asks_for_is_known_as_such_for_any_number_of_pictures(turning, made):
    choice, sketches, path = made
    bound = most_strength(400, turning)
    assessment = assess(sketches)
    assessment = replace(assessment, strengths=dict.fromkeys(assessment.strengths, HIGHEST))
    choice = replace(choice, rule="albat", subject_steps=turning, most_strength=bound, left_out=({"step": 80, "loss": 0.1},))
    wanted = pytest.approx(most_strength(800, turning), rel=1e-4)
    for number in range(1, 13):
        assert strength(apply_selection(replace(choice, num_backbone=number), sketches, assessment), 800) == wanted
    assert strength(by_rule(replace(choice, groups=({"group": 0},)), "random", path), 800) == wanted

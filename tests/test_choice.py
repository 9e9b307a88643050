"""The choice: saved and loaded unchanged, pruned by hand, predictions recomputed from the sketches alone."""

import json
from dataclasses import asdict

import pytest
import torch

from bat_ui.albat.selection import assess, make_sketches, select
from bat_ui.choice import Candidate, Choice, apply_selection, revise, save_sketches, toggle
from bat_ui.errors import UserError


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
        start_gradients=torch.randn(3, 16, generator=rng),
        start_curvature=torch.randn(3, 2, 16, generator=rng),
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

"""How good the recommended checkpoint is, against rows whose truth is put in by hand."""

import pytest

from bat_ui.evaluation.checkpoints import regrets


def row(step, rule="none", *, clip_i, clip_t, seed=0, **truth):
    """What a person's run measures of the given pictures, and the truth, which no way to choose may see."""
    run = {"style": "flat", "subject": "cat", "seed": seed, "rule": rule, "step": step}
    shown = {"clip_i": clip_i, "clip_t": clip_t, "pres": 0.5, "diversity": 0.2}
    return run | truth | {"validation": shown, "clip_i": 1 - step / 1000}


BARE = row(0, "backbone", clip_i=0.5, clip_t=0.3, heldout_loss=0.5, clip_member=0.5)


def test_each_way_pays_what_its_step_is_worse_than_the_best():
    # Step 100 is nearly as like as step 200, which no longer listens to the prompt: it has the best balance.
    early = row(50, clip_i=0.55, clip_t=0.3, heldout_loss=0.40, clip_member=0.6)
    balanced = row(100, clip_i=0.89, clip_t=0.3, heldout_loss=0.36, clip_member=0.8)
    late = row(200, clip_i=0.90, clip_t=0.1, heldout_loss=0.45, clip_member=0.7)
    found = regrets([BARE, late, early, balanced])
    run = ("flat", "cat", 0, "none")
    loss = {way: values[run] for way, values in found["heldout_loss"].items()}
    assert loss == pytest.approx({"recommended": 0, "highest CLIP-I": 0.09, "last step": 0.09, "first step": 0.04})
    likeness = {way: values[run] for way, values in found["clip_member"].items()}
    assert likeness == pytest.approx({"recommended": 0, "highest CLIP-I": 0.1, "last step": 0.1, "first step": 0.2})


def test_a_run_without_a_choice_says_nothing():
    alone = row(50, clip_i=0.6, clip_t=0.3, heldout_loss=0.4, clip_member=0.6)
    unmeasured = row(100, clip_i=None, clip_t=None, heldout_loss=0.3, clip_member=None)
    assert not any(values for ways in (regrets([BARE, alone, unmeasured]),) for values in ways["heldout_loss"].values())


def test_where_none_can_be_recommended_the_last_step_is_kept():
    # Neither step looks more like the subject than the backbone alone.
    first = row(50, clip_i=0.4, clip_t=0.3, heldout_loss=0.40, clip_member=0.6)
    last = row(100, clip_i=0.3, clip_t=0.3, heldout_loss=0.45, clip_member=0.5)
    [value] = regrets([BARE, first, last])["heldout_loss"]["recommended"].values()
    assert value == pytest.approx(0.05)


def test_a_run_is_compared_with_the_backbone_as_it_draws_its_own_pictures():
    # Other pictures are given at another seed; beside seed 1's the first step is no better than nothing.
    other = row(0, "backbone", seed=1, clip_i=0.58, clip_t=0.3, heldout_loss=0.5, clip_member=0.5)
    early = row(50, clip_i=0.57, clip_t=0.3, heldout_loss=0.40, clip_member=0.6)
    late = row(100, clip_i=0.59, clip_t=0.1, heldout_loss=0.45, clip_member=0.5)
    [value] = regrets([BARE, other, early, late])["heldout_loss"]["recommended"].values()
    assert value == 0

"""When an adapter turns to learning by heart: losses of pictures that it was not trained on."""

import statistics
from dataclasses import replace

import pytest
import torch

from bat_ui import left_out
from bat_ui.albat.strength import HIGHEST, LEAST, MOST, most_strength
from bat_ui.errors import UserError
from bat_ui.evaluation.metrics import denoising_loss
from bat_ui.left_out import DRAWS, STREAM, LeftOut, left_out_losses, steps_alone, surrogate_steps
from bat_ui.project import silent
from bat_ui.seeds import step_generator
from bat_ui.settings import SelectionSettings, TrainingSettings
from bat_ui.training.loop import new_optimizer, train
from bat_ui.training.lora import lora

SETTINGS = TrainingSettings(steps=8, rank=2, batch_size=4, learning_rate=0.01, seed=3)


def loss_of(backbone, subject, others, left, steps):
    """Mean loss of the pictures `left` after training on `others` alone for so many steps."""
    settings = replace(SETTINGS, steps=steps)
    with lora(backbone, 2, 3) as weights:
        list(train(backbone, weights, new_optimizer(weights, settings), subject[torch.tensor(others)], None, settings))
        draws = backbone.draw(DRAWS, step_generator(3, -STREAM))
        return denoising_loss(backbone, subject[torch.tensor(left)], draws).sum().item()


def test_each_half_is_judged_by_an_adapter_of_the_other_half(backbone, pictures, monkeypatch):
    """A run of 8 is alone for 4 steps at most; half of the pictures are learned in half the steps, each half on its own."""
    monkeypatch.setattr(left_out, "PAST", 1000)
    subject = pictures(5, 0)
    found = left_out_losses(backbone, subject, SETTINGS, silent)
    assert found.steps[-1] == 4
    for step, mean in zip(found.steps, found.means):
        halves = (([1, 3], [0, 2, 4]), ([0, 2, 4], [1, 3]))
        twin = sum(loss_of(backbone, subject, others, left, max(step // 2, 1)) for others, left in halves)
        assert mean == pytest.approx(twin / 5, rel=1e-4)


def test_three_pictures_are_left_out_one_at_a_time(backbone, pictures, monkeypatch):
    monkeypatch.setattr(left_out, "PAST", 1000)
    subject = pictures(3, 0)
    found = left_out_losses(backbone, subject, replace(SETTINGS, steps=6), silent)
    twin = sum(loss_of(backbone, subject, [i for i in range(3) if i != left], [left], 2) for left in range(3))
    assert found.steps[-1] == 3 and found.means[-1] == pytest.approx(twin / 3, rel=1e-4)


def test_a_trial_ends_when_the_loss_was_lowest_long_ago(backbone, pictures, monkeypatch):
    losses = iter([0.5, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9])
    monkeypatch.setattr(left_out, "denoising_loss", lambda backbone, images, draws: torch.full((2,), next(each)))
    each = iter([loss for loss in losses for _ in range(2)])  # of both halves
    found = left_out_losses(backbone, pictures(4, 0), replace(SETTINGS, steps=80), silent)
    steps = [round(part * 80) for part in left_out.PARTS]
    assert found.steps[-1] >= left_out.PAST * steps[1] > found.steps[-2]


def test_a_trial_goes_on_while_its_pictures_cannot_tell_that_the_loss_rose(backbone, pictures, monkeypatch):
    """The mean was lowest early, but two of four pictures are better off later: that step may be an accident."""
    each = iter([loss for losses in zip([0.5, 0.30, *[0.40] * 8], [0.5, 0.36, *[0.30] * 8]) for loss in losses])
    monkeypatch.setattr(left_out, "denoising_loss", lambda backbone, images, draws: torch.full((2,), next(each)))
    found = left_out_losses(backbone, pictures(4, 0), replace(SETTINGS, steps=80), silent)
    steps = [round(part * 80) for part in left_out.PARTS]
    assert (found.lowest, found.turning, found.steps[-1]) == (steps[1], 40, 40)


def test_losses_that_are_no_numbers_are_said_so(backbone, pictures, monkeypatch):
    monkeypatch.setattr(left_out, "denoising_loss", lambda backbone, images, draws: torch.full((2,), float("nan")))
    with pytest.raises(UserError, match="smaller learning rate"):
        left_out_losses(backbone, pictures(4, 0), SETTINGS, silent)


def test_a_single_picture_cannot_be_left_out(backbone, pictures):
    assert left_out_losses(backbone, pictures(1, 0), SETTINGS, silent) is None


def test_the_subject_is_alone_until_the_loss_of_left_out_pictures_is_lowest():
    found = LeftOut((10, 20, 40, 80), ((0.4, 0.6), (0.3, 0.5), (0.2, 0.4), (0.4, 0.6)))  # all pictures alike: no doubt
    assert steps_alone(SelectionSettings(), SETTINGS, found) == 40
    assert steps_alone(SelectionSettings(surrogate_steps=7), SETTINGS, None) == 7


@pytest.mark.parametrize("alone, given, steps", [(40, None, 40), (180, None, 100), (40, 7, 7)])
def test_the_surrogate_is_as_long_but_a_quarter_of_the_run_at_most(alone, given, steps):
    assert surrogate_steps(SelectionSettings(surrogate_steps=given), TrainingSettings(steps=400), alone) == steps


def test_of_steps_that_the_pictures_cannot_tell_apart_the_last_is_taken():
    """One standard error of the pictures' differences from the lowest mean, one by one."""
    steps = (10, 20, 40, 80, 160)
    losses = [(0.50, 0.70, 0.60), (0.29, 0.52, 0.41), (0.30, 0.50, 0.40), (0.28, 0.54, 0.41), (0.35, 0.53, 0.41)]
    as_good = []
    for step, row in zip(steps, losses):
        apart = [a - b for a, b in zip(row, losses[2])]
        if statistics.fmean(apart) <= statistics.stdev(apart) / 3**0.5:
            as_good.append(step)
    assert as_good == [20, 40, 80] and LeftOut(steps, losses).turning == 80


def test_the_earlier_left_out_pictures_turn_the_more_lambda_may_reach():
    for turning in (30, 80, 200):
        assert 1 / (1 + most_strength(400, turning)) == pytest.approx(turning / 400)  # the subject's part of the sum
    assert most_strength(400, 1) == HIGHEST and most_strength(100, 100) == LEAST and most_strength(400, None) == MOST


def test_without_left_out_pictures_a_fifth_of_the_run_is_the_subjects_alone():
    assert steps_alone(SelectionSettings(), TrainingSettings(steps=400), None) == 80

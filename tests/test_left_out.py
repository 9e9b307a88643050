"""When an adapter turns to learning by heart: losses of pictures that it was not trained on."""

import math
import statistics
from dataclasses import replace

import pytest
import torch

from bat_ui.albat.strength import HIGHEST, LEAST, MOST, most_strength
from bat_ui.evaluation.metrics import denoising_loss
from bat_ui.left_out import DRAWS, STREAM, LeftOut, left_out_losses, surrogate_steps
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


def test_each_half_is_judged_by_an_adapter_of_the_other_half(backbone, pictures):
    """A run of 8 is alone for 4 steps at most; half of the pictures are learned in half the steps."""
    subject = pictures(5, 0)
    found = left_out_losses(backbone, subject, SETTINGS, silent)
    twin = loss_of(backbone, subject, [1, 3], [0, 2, 4], 2) + loss_of(backbone, subject, [0, 2, 4], [1, 3], 2)
    assert found.steps[-1] == 4 and found.means[-1] == pytest.approx(twin / 5, rel=1e-4)


def test_three_pictures_are_left_out_one_at_a_time(backbone, pictures):
    subject = pictures(3, 0)
    found = left_out_losses(backbone, subject, replace(SETTINGS, steps=6), silent)
    twin = sum(loss_of(backbone, subject, [i for i in range(3) if i != left], [left], 2) for left in range(3))
    assert found.steps[-1] == 3 and found.means[-1] == pytest.approx(twin / 3, rel=1e-4)


def test_a_single_picture_cannot_be_left_out(backbone, pictures):
    assert left_out_losses(backbone, pictures(1, 0), SETTINGS, silent) is None


def test_the_surrogate_ends_where_the_loss_of_left_out_pictures_is_lowest():
    found = LeftOut((10, 20, 40, 80), ((0.4, 0.6), (0.3, 0.5), (0.2, 0.4), (0.4, 0.6)))  # all pictures alike: no doubt
    assert surrogate_steps(SelectionSettings(), SETTINGS, found) == 40
    assert surrogate_steps(SelectionSettings(surrogate_steps=7), SETTINGS, found) == 7


def test_every_step_counts_as_much_as_it_is_likely_to_be_the_lowest():
    """Likelihood of Student's t of the pictures' differences from the lowest mean, one by one."""
    steps, losses = (10, 20, 40, 80), [(0.50, 0.70, 0.60), (0.29, 0.52, 0.41), (0.30, 0.50, 0.40), (0.35, 0.53, 0.40)]
    logs, weights = [], []
    for step, row in zip(steps, losses):
        apart = [a - b for a, b in zip(row, losses[2])]
        t = 0.0 if step == 40 else statistics.fmean(apart) / (statistics.stdev(apart) / 3**0.5)
        weights.append((1 + t**2 / 2) ** -1.5)
        logs.append(math.log(step) * weights[-1])
    found = LeftOut(steps, losses).turning
    assert found == round(math.exp(sum(logs) / sum(weights))) and 20 < found < 40


def test_pictures_that_do_not_agree_leave_the_step_in_the_middle():
    losses = [(0.5, 0.1), (0.1, 0.5), (0.5, 0.1), (0.1, 0.5)]
    assert LeftOut((10, 20, 40, 80), losses).turning == round((10 * 20 * 40 * 80) ** 0.25)


def test_the_earlier_left_out_pictures_turn_the_more_lambda_may_reach():
    for turning in (30, 80, 200):
        assert 1 / (1 + most_strength(400, turning)) == pytest.approx(turning / 400)  # the subject's part of the sum
    assert most_strength(400, 1) == HIGHEST and most_strength(100, 100) == LEAST and most_strength(400, None) == MOST


def test_without_left_out_pictures_a_fifth_of_the_run_is_the_subjects_alone():
    assert surrogate_steps(SelectionSettings(), TrainingSettings(steps=400), None) == 80

"""How long the subject's pictures teach an adapter before it learns them by heart, asked of the pictures themselves.

In: a backbone, the encoded subject pictures, the run's settings.  Out: `LeftOut`, the loss of pictures that an adapter was
not trained on, over its steps.  What to do at the turning point is the training's business (theory.md, When).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from bat_ui.backbones.encoded import Encoded
from bat_ui.backbones.stable_diffusion import Backbone
from bat_ui.errors import UserError
from bat_ui.evaluation.metrics import denoising_loss
from bat_ui.project import Progress
from bat_ui.seeds import step_generator
from bat_ui.settings import SelectionSettings, TrainingSettings
from bat_ui.training.loop import new_optimizer, train
from bat_ui.training.lora import lora

DRAWS = 16  # timesteps and noises, the same for every picture and step
STREAM = 3  # of these draws, apart from those that sketch
PARTS = (0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)  # of the run, where the loss is taken
PAST = 3  # times the step of lowest loss, from where on a trial ends when it plainly learns by heart


@dataclass(frozen=True)
class LeftOut:
    """Loss of each left-out picture, losses[s][i], after steps[s] on the others, counted as if all had been there."""

    steps: Sequence[int]
    losses: Sequence[Sequence[float]]

    @property
    def means(self) -> list[float]:
        """Mean loss over the pictures at each step."""
        return [statistics.fmean(row) for row in self.losses]

    @property
    def lowest(self) -> int:
        """The step of lowest mean loss."""
        return self.steps[int(np.argmin(self.means))]

    @property
    def turning(self) -> int:
        """Where an adapter of all pictures begins to learn them by heart: the last step as good as the best one.

        That is the last whose mean loss is above the lowest by one standard error of the pictures' differences or less
        (the one-standard-error rule, Breiman et al., Classification and Regression Trees, 1984).
        """
        losses = np.asarray(self.losses)
        apart = losses - losses[np.argmin(self.means)]
        error = apart.std(1, ddof=1) / losses.shape[1] ** 0.5
        return self.steps[int(np.flatnonzero(apart.mean(1) <= error)[-1])]


def steps_alone(settings: SelectionSettings, training: TrainingSettings, found_out: LeftOut | None) -> int:
    """How long a run should be the subject's alone: to the turning point, else as long as the surrogate's, else as set."""
    if found_out:
        return found_out.turning
    return settings.surrogate_steps or max(round(training.steps_alone), 1)


def surrogate_steps(settings: SelectionSettings, training: TrainingSettings, alone: int) -> int:
    """Length of the surrogate's run: as given, else as long as the subject is alone, a quarter of the run at most."""
    return settings.surrogate_steps or min(alone, max(training.steps // 4, 1))


def left_out_losses(backbone: Backbone, subject: Encoded, training: TrainingSettings, progress: Progress) -> LeftOut | None:
    """Train on a part of the subject's pictures and take the loss of the rest, in turn; None for a single picture.

    Raises UserError if a loss is not a finite number.

    Halves, or from three pictures down one at a time.  An adapter sees each of fewer pictures oftener, so it turns earlier:
    steps are counted in proportion to the pictures that it has (theory.md, When), to half of the run at most.  A trial ends
    at PAST times the step of lowest mean loss, unless its loss is within the standard error of that even there.
    """
    count = len(subject)
    if count < 2:
        return None
    folds = 2 if count > 3 else count
    longer = folds / (folds - 1)  # all pictures beside those of one fold
    measured = {max(round(part * training.steps / longer), 1): max(round(part * training.steps), 1) for part in PARTS}
    settings = training.subject_alone(max(measured))
    draws = backbone.draw(DRAWS, step_generator(training.seed, -STREAM))
    found: dict[int, list[float]] = {}
    with lora(backbone, settings.rank, settings.seed) as weights:
        trials = [_Trial(fold, folds, count, weights, settings) for fold in range(folds)]
        for begin, end in pairwise((0, *measured)):
            part, losses = replace(settings, steps=end), torch.zeros(count)
            for trial in trials:
                done = folds * begin + trial.fold * (end - begin)
                with trial.at(weights):
                    for step in train(backbone, weights, trial.optimizer, subject[trial.others], None, part, begin):
                        progress("Leaving pictures out", done + step.number - begin, folds * settings.steps)
                    losses[trial.left] = denoising_loss(backbone, subject[trial.left], draws)
            if not losses.isfinite().all():
                raise UserError("The losses of left-out pictures are not finite: train with a smaller learning rate.")
            found[measured[end]] = losses.tolist()
            so_far = LeftOut(tuple(found), tuple(found.values()))
            if so_far.turning < measured[end] >= PAST * so_far.lowest:
                break
    return so_far


class _Trial:
    """One fold: which pictures are left out, and an adapter of the others while it is not its turn."""

    def __init__(self, fold: int, folds: int, count: int, weights: dict[str, nn.Parameter], settings: TrainingSettings):
        self.fold, self.left = fold, torch.arange(fold, count, folds)
        self.others = torch.tensor([i for i in range(count) if i % folds != fold])
        self.optimizer = new_optimizer(weights, settings)
        self.values = [weight.detach().clone() for weight in weights.values()]

    @contextmanager
    def at(self, weights: dict[str, nn.Parameter]) -> Iterator[None]:
        """The fold's adapter in place of `weights`, and taken back with what it has learned."""
        for weight, value in zip(weights.values(), self.values):
            weight.data.copy_(value)
        yield
        for weight, value in zip(weights.values(), self.values):
            value.copy_(weight.data)

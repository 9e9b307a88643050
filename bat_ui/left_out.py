"""How long the subject's pictures teach an adapter before it learns them by heart, asked of the pictures themselves.

In: a backbone, the encoded subject pictures, the run's settings.  Out: `LeftOut`, the loss of pictures that an adapter was
not trained on, over its steps.  What to do at the turning point is the training's business (theory.md, When).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bat_ui.backbones.encoded import Encoded
from bat_ui.backbones.stable_diffusion import Backbone
from bat_ui.evaluation.metrics import denoising_loss
from bat_ui.project import Progress
from bat_ui.seeds import step_generator
from bat_ui.settings import SelectionSettings, TrainingSettings
from bat_ui.training.loop import new_optimizer, train
from bat_ui.training.lora import lora

DRAWS = 16  # timesteps and noises, the same for every picture and step
STREAM = 3  # of these draws, apart from those that sketch
PARTS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)  # of the longest run, where the loss is taken


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
    def turning(self) -> int:
        """Where an adapter of all pictures begins to learn them by heart.

        The step of lowest mean loss, as far as the pictures agree on it: the geometric mean of all steps, each weighed by
        the likelihood that its mean is as low, Student's (1 + t^2 / (n - 1))^(-n / 2) of n pictures' differences.
        """
        losses = np.asarray(self.losses)
        count, apart = losses.shape[1], losses - losses[np.argmin(self.means)]
        noise = apart.var(1, ddof=1) / count
        total = noise + apart.mean(1) ** 2 / (count - 1)
        likely = np.divide(noise, total, out=np.ones_like(total), where=total > 0) ** (count / 2)
        return round(float(np.exp(np.average(np.log(self.steps), weights=likely))))


def surrogate_steps(settings: SelectionSettings, training: TrainingSettings, found_out: LeftOut | None) -> int:
    """Length of the surrogate's run: as given, else to the turning point, else as a run on its own would be alone."""
    return settings.surrogate_steps or (found_out.turning if found_out else max(round(training.steps_alone), 1))


def left_out_losses(backbone: Backbone, subject: Encoded, training: TrainingSettings, progress: Progress) -> LeftOut | None:
    """Train on a part of the subject's pictures and take the loss of the rest, in turn; None for a single picture.

    Halves, or from three pictures down one at a time.  An adapter sees each of fewer pictures oftener, so it turns earlier:
    steps are counted in proportion to the pictures that it has (theory.md, When), to half of the run at most.
    """
    count = len(subject)
    if count < 2:
        return None
    folds = 2 if count > 3 else count
    longer = folds / (folds - 1)  # all pictures beside those of one fold
    most = training.steps / 2
    measured = {max(round(part * most / longer), 1): max(round(part * most), 1) for part in PARTS}
    settings = training.subject_alone(max(measured))
    draws = backbone.draw(DRAWS, step_generator(training.seed, -STREAM))
    losses = {step: torch.zeros(count) for step in measured}
    for fold in range(folds):
        left = torch.arange(fold, count, folds)
        others = subject[torch.tensor([i for i in range(count) if i % folds != fold])]
        with lora(backbone, settings.rank, settings.seed) as weights:
            for step in train(backbone, weights, new_optimizer(weights, settings), others, None, settings):
                progress(f"Leaving pictures out, {fold + 1} of {folds}", step.number, settings.steps)
                if step.number in measured:
                    losses[step.number][left] = denoising_loss(backbone, subject[left], draws)
    return LeftOut(tuple(measured.values()), tuple(row.tolist() for row in losses.values()))

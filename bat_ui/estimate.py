"""How long a training will take and how much memory, before it is started.

In: its settings, and how fast earlier work of the same project went on this machine.  Out: an `Estimate`, or None where
nothing was measured yet: by the last run that came far enough, else by the surrogate of the search.
"""

from __future__ import annotations

from dataclasses import dataclass

from bat_ui.files import read_json
from bat_ui.project import Project
from bat_ui.settings import TrainingSettings, ValidationSettings
from bat_ui.subject import read_caption

# UNet passes of a picture: a training step goes forth and, at twice the cost, back; guidance takes two to draw a step.
TRAINED, DRAWN = 3, 2


@dataclass(frozen=True)
class Estimate:
    """`seconds` from the worker's start to its end; `memory` in bytes, of ram and gpu, none where batch or rank are others
    than was measured; `measured` says in what."""

    seconds: float
    memory: dict[str, int]
    measured: str


def estimate(project: Project, training: TrainingSettings, validation: ValidationSettings) -> Estimate | None:
    """What a run of the project with these settings will take."""
    for run in reversed(project.runs):
        status, was, drew = run.status("train"), run.remembered(TrainingSettings), run.remembered(ValidationSettings)
        step, prompt = _seconds(status, "Training"), _seconds(status, "Drawing samples")
        if step:
            pictures = drew.validation_images * drew.validation_steps
            drawn = prompt / pictures if prompt and pictures else None
            return _estimate(project, training, validation, was, status, step / was.batch_size, drawn, "the run before")
    status, was = project.status("select"), project.remembered(TrainingSettings)
    step = _seconds(status, "Training the surrogate")
    return _estimate(project, training, validation, was, status, step / was.batch_size, None, "step 2") if step else None


def _estimate(
    project: Project,
    training: TrainingSettings,
    validation: ValidationSettings,
    was: TrainingSettings,
    status: dict,
    trained: float,
    drawn: float | None,
    measured: str,
) -> Estimate:
    """`trained` and `drawn` are seconds for a picture in a step; without the latter it is reckoned from the former."""
    captions = [read_caption(project.subject / f"{name}.txt") or "" for name in read_json(project.subject_marker)["names"]]
    prompts = len(validation.prompts(captions)) + 1  # and one of the class
    checkpoints = 1 + -(-training.steps // training.checkpoint_every)  # and before the first step
    pictures = checkpoints * prompts * validation.validation_images * validation.validation_steps
    seconds = training.steps * training.batch_size * trained + pictures * (drawn or trained * DRAWN / TRAINED)
    alike = (training.batch_size, training.rank) == (was.batch_size, was.rank)  # what memory depends on
    return Estimate(_start(status) + seconds, (status.get("memory") or {}) if alike else {}, measured)


def _seconds(status: dict, part: str) -> float | None:
    """Seconds of one of what a part of the work counts."""
    pace = (status.get("parts") or {}).get(part, {}).get("pace")
    return 1 / pace if pace else None


def _start(status: dict) -> float:
    """Seconds in which the worker got ready."""
    parts = [part["since"] for name, part in status["parts"].items() if name != "Starting"]
    return max(min(parts) - status["started"], 0.0)

"""The plan: which subject, rule, seed, number and strength are run, and with which settings.

In: settings of an evaluation, and the rows of earlier ones, out of which each rule's tuned settings are read.  Out: jobs.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bat_ui.errors import UserError
from bat_ui.evaluation.rules import ABLATIONS, OWN_NUMBER, RULES, WITHOUT_NUMBER, WITHOUT_PICTURES
from bat_ui.evaluation.subjects import TUNING_FAMILIES, subject_names
from bat_ui.settings import SelectionSettings, TrainingSettings

DEFAULT_NUMBER, DEFAULT_STRENGTH = 40, 1.0
SCHEDULE = 4  # counts up when backbone pictures come in in another way; what the others were is said in the report
TUNING_NUMBERS, TUNING_STRENGTHS = (10, 40, 160, 640), (1.0, 4.0, 16.0)


@dataclass(frozen=True)
class EvaluationSettings:
    """What is run and measured; `numbers` and `strengths` empty: each rule's tuned ones, or the defaults."""

    seeds: tuple[int, ...] = (0, 1, 2)
    rules: tuple[str, ...] = RULES
    subjects: tuple[str, ...] = ()  # 'style/family' or 'family'; empty: all
    steps: tuple[int, ...] = (25, 50, 100, 200, 400)
    numbers: tuple[int | None, ...] = ()  # pictures; None: the rule's own suggestion, or all it has
    strengths: tuple[float, ...] = ()
    given: int = 4
    loss_draws: int = 48
    prior_pictures: int = 64
    prior_draws: int = 4
    sample_steps: tuple[int, ...] | None = None  # steps that draw samples too, which is dear; None: all of them
    prediction: bool = True  # sketch the other rules' pictures too and predict their error
    variant: str = ""  # a name for a change of the code, to tell its rows from others
    tuning: bool = False  # run the tuning subjects instead of the suite's
    selection: SelectionSettings = field(default_factory=SelectionSettings)
    training: TrainingSettings = TrainingSettings(subject_steps=80)  # where a rule does not find out when

    def run(self, seed: int) -> TrainingSettings:
        """The settings of one training run."""
        return replace(self.training, seed=seed, steps=max(self.steps))


@dataclass(frozen=True)
class Job:
    """One training run. `subject` is 'style/family'; number and strength are None where a rule has no use for them."""

    split: str
    subject: str
    seed: int
    rule: str
    number: int | None
    strength: float | None


def plan(settings: EvaluationSettings, rows: Sequence[dict] = (), photos: str | None = None) -> list[Job]:
    """The jobs of these settings, those of one subject and seed together.

    Raises UserError for unknown rules or subjects.  `rows` are the results so far: where numbers or strengths are not
    given, each rule takes what did best on the tuning subjects.  `photos` names a photo subject to run alone.
    """
    unknown = [r for r in settings.rules if r not in RULES + ABLATIONS]
    if unknown:
        raise UserError(f'There is no rule "{unknown[0]}": choose from {", ".join(RULES + ABLATIONS)}.')
    split = "photos" if photos else "tuning" if settings.tuning else "suite"
    names = [f"photos/{photos}"] if photos else _wanted(settings)
    jobs: dict[Job, None] = {}
    for name in names:
        for seed in settings.seeds:
            for rule in settings.rules:
                for number, strength in _grid(rule, settings, rows):
                    jobs[Job(split, name, seed, rule, number, strength)] = None
    return list(jobs)


def shard(jobs: Sequence[Job], index: int, count: int) -> list[Job]:
    """Part `index` of `count` (from 1): whole groups of one subject and seed, which share their sketches.

    Raises UserError unless 1 <= index <= count.
    """
    if not 1 <= index <= count:
        raise UserError(f"There is no part {index} of {count}: count the parts from 1.")
    groups = list(dict.fromkeys((j.subject, j.seed) for j in jobs))
    mine = set(groups[index - 1 :: count])
    return [j for j in jobs if (j.subject, j.seed) in mine]


def tuned(rows: Sequence[dict], rule: str) -> tuple[int | None, float] | None:
    """(number, strength) of lowest held-out loss, at the best and the last step alike, a mean over runs; None if not tuned.

    Only settings that ran on all tuning subjects, seeds and steps that any of the rule's settings ran on are compared.
    """
    runs: dict[tuple, dict[tuple, dict[int, float]]] = {}
    for row in rows:
        comparable = row["schedule"] in (None, SCHEDULE) and row["heldout_loss"] is not None
        if row["split"] == "tuning" and row["rule"] == rule and comparable:
            steps = runs.setdefault((row["number"], row["strength"]), {})
            steps.setdefault((row["subject"], row["style"], row["seed"]), {})[row["step"]] = row["heldout_loss"]
    measured = {key: sum(map(len, found.values())) for key, found in runs.items()}
    most = max(measured.values(), default=0)
    complete = {
        key: statistics.fmean(min(steps.values()) + steps[max(steps)] for steps in found.values())
        for key, found in runs.items()
        if measured[key] == most
    }
    return min(complete, key=complete.get) if complete else None


def picture_path(folder: Path, job: Job) -> Path:
    """Where a job's last samples are kept, side by side; `folder` is the cache's for its configuration."""
    settings = f"{job.number}-{job.strength}"
    return folder / f"{job.subject.replace('/', '-')}-{job.seed}-{job.rule}-{settings}.png"


def _wanted(settings: EvaluationSettings) -> list[str]:
    names = subject_names(settings.tuning)
    if not settings.subjects:
        return names
    unknown = [w for w in settings.subjects if not any(w in (n, n.partition("/")[2]) for n in names)]
    if unknown:
        kept = f" ({', '.join(TUNING_FAMILIES)} are for tuning only)" if not settings.tuning else ""
        raise UserError(f'There is no subject "{unknown[0]}" here: choose from {", ".join(names)}{kept}.')
    return [n for n in names if n in settings.subjects or n.partition("/")[2] in settings.subjects]


def _grid(rule: str, settings: EvaluationSettings, rows: Sequence[dict]) -> list[tuple[int | None, float | None]]:
    """The (number, strength) pairs that a rule runs with."""
    own = rule in OWN_NUMBER
    best = None if own or settings.tuning else tuned(rows, rule)
    number, strength = best or (None if own else DEFAULT_NUMBER, DEFAULT_STRENGTH)
    numbers = settings.numbers or (TUNING_NUMBERS if settings.tuning else (number,))
    strengths = settings.strengths or (TUNING_STRENGTHS if settings.tuning else (strength,))
    if rule in WITHOUT_NUMBER:
        numbers = (None,)
    if rule in WITHOUT_PICTURES:
        strengths = (None,)
    return [(n, s) for n in numbers for s in strengths]

"""Comparison: the checkpoints of runs beside each other, which one to recommend and why, which pictures are liked.

In: runs with the samples and metrics of validation.py.  Out: pairs of pictures with equal prompt and seed, a
recommendation, favourites.  Nothing is drawn or measured here.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bat_ui.adapters import saved_steps
from bat_ui.errors import UserError
from bat_ui.files import read_json, read_json_lines, write_json
from bat_ui.project import Run
from bat_ui.samples import steps_with_samples

NEAR = 0.95  # of the best score: checkpoints that are as good, of which the earliest is taken
FEW = 20  # pictures of the subject; with fewer, differences between neighbouring checkpoints may be chance
_marking = threading.Lock()  # marks are read, changed and written by one event at a time
Metrics = Mapping[str, float | None]


@dataclass(frozen=True)
class Recommendation:
    """The recommended step, None if none can be; `shares` by name (likeness, prompt, variety, class) in [0, 1]; why, in
    one sentence; and what to beware of."""

    step: int | None
    why: str
    shares: dict[str, float] = field(default_factory=dict)
    cautions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """Two pictures of one prompt, drawn from the same noise."""

    prompt: str
    seed: int
    of: str
    a: Path
    b: Path


def shares(now: Metrics, backbone: Metrics, most_alike: float) -> dict[str, float]:
    """What a checkpoint has gained and kept, each in [0, 1]; what was not measured is left out.

    likeness: the part of the run's best gain in CLIP-I, (i - i0) / (max i - i0).  The others compare with the backbone
    alone, and more than the backbone has is no merit: prompt: t / t0 of CLIP-T; variety: d / d0 of diversity; class:
    (1 - p) / (1 - p0) of PRES, the distance that the class keeps from the subject.
    """
    found = {"likeness": _share(now["clip_i"] - backbone["clip_i"], most_alike - backbone["clip_i"])}
    for name, key in (("prompt", "clip_t"), ("variety", "diversity")):
        if now.get(key) is not None and backbone.get(key) is not None:
            found[name] = _share(now[key], backbone[key])
    if now.get("pres") is not None and backbone.get("pres") is not None:
        found["class"] = _share(1 - now["pres"], 1 - backbone["pres"])
    return found


def recommend(rows: Sequence[Metrics], saved: Collection[int], pictures: int) -> Recommendation:
    """The checkpoint with the best balance, by `rows` of metrics.jsonl, of those with a file in `saved`.

    A longer training draws the subject more alike, but listens less to the prompt, repeats itself, and draws everything
    of the class as the subject.  CLIP-I alone would recommend the last, overtrained checkpoint; so each checkpoint's score
    is the product of its `shares`, by which losing a tenth of one weighs as much as losing a tenth of another.  Of those
    within NEAR of the best score the earliest is taken, as with the one-standard-error rule: less training copies less.
    The trade of likeness against prompt is that of Custom Diffusion (Kumari et al. 2023), PRES and diversity are
    DreamBooth's (Ruiz et al. 2023); that they weigh the same is a choice of ours.  `pictures` were measured at each step.
    """
    known = {row["step"]: row for row in rows if row.get("clip_i") is not None}
    if not known:
        return Recommendation(None, "Nothing was measured, so trust your eyes: compare the pictures below.")
    steps = sorted(step for step in known if step > 0 and step in saved)
    if not steps:
        return Recommendation(None, "No checkpoint is saved and measured yet: the first one will be compared here.")
    if 0 not in known:
        return Recommendation(
            None, "The backbone alone was not measured, so nothing can be compared with it: trust your eyes."
        )
    most = max(known[step]["clip_i"] for step in steps)
    if most <= known[0]["clip_i"]:
        return Recommendation(
            None, "No checkpoint looks more like your subject than the backbone alone does: train for more steps."
        )
    found = {step: shares(known[step], known[0], most) for step in steps}
    scores = {step: math.prod(values.values()) for step, values in found.items()}
    best = min(step for step in steps if scores[step] >= NEAR * max(scores.values()))
    cautions = []
    if len(steps) == 1:
        cautions.append("There is only one checkpoint: save more often to have a choice (step 3, Advanced).")
    if pictures < FEW:
        cautions.append(
            f"Only {pictures} picture{'s' * (pictures != 1)} of your subject were measured at each checkpoint, so small "
            "differences may be chance: trust your eyes, too."
        )
    if len(found[best]) < 4:
        cautions.append("Not everything could be measured: draw two or more pictures of each prompt for variety.")
    return Recommendation(best, _why(best, found[best], later=best < steps[-1]), found[best], tuple(cautions))


def recommendation(run: Run) -> Recommendation:
    """`recommend` for a run on disk."""
    drawn = steps_with_samples(run)
    count = max((sum(row["of"] == "subject" for row in rows) for rows in drawn.values()), default=0)
    return recommend(read_json_lines(run.metrics), saved_steps(run), count)


def pairs(a: Run, step_a: int, b: Run, step_b: int) -> list[Pair]:
    """The pictures of two checkpoints that have prompt and seed in common, in the order of the first."""
    others = {_what(row): row["file"] for row in _drawn(b, step_b)}
    return [Pair(*_what(row), row["file"], others[_what(row)]) for row in _drawn(a, step_a) if _what(row) in others]


def favourites(run: Run) -> list[dict]:
    """The pictures of a run that were marked, oldest mark first: as in its samples, with their `step`."""
    found = steps_with_samples(run)
    drawn = {(step, row["file"].name): {**row, "step": step} for step, rows in found.items() for row in rows}
    marked = [(mark["step"], mark["picture"]) for mark in read_json(_marks(run)) or []]
    return [drawn[mark] for mark in marked if mark in drawn]


def toggle_favourite(run: Run, step: int, picture: str) -> bool:
    """Mark a picture of the samples at `step`, or take its mark away; True if it is marked now.

    Raises UserError if there is no such picture; a name is never taken for a path.
    """
    if picture not in {row["file"].name for row in _drawn(run, step)}:
        raise UserError("There is no such picture in this run: choose one from the grid.")
    mark = {"step": step, "picture": picture}
    with _marking:
        marks = read_json(_marks(run)) or []
        write_json(_marks(run), [other for other in marks if other != mark] if mark in marks else [*marks, mark])
    return mark not in marks


def _why(step: int, found: Mapping[str, float], later: bool) -> str:
    kept = {"prompt": "of how well the backbone follows prompts", "variety": "of its variety"}
    kept["class"] = "of the difference between your subject and others of its kind"
    losses = [f"{found[name]:.0%} {words}" for name, words in kept.items() if name in found]
    gained = found["likeness"]
    likeness = "the greatest likeness of this run" if gained == 1 else f"{gained:.0%} of the likeness that this run reaches"
    keeps = f" and keeps {', '.join(losses[:-1])}{' and ' * (len(losses) > 1)}{losses[-1]}" if losses else ""
    end = "; training further brought no clearly better balance" if later else ""
    return f"Step {step:,} has {likeness}{keeps}{end}."


def _share(part: float, whole: float) -> float:
    return min(max(part / whole, 0.0), 1.0) if whole > 0 else 1.0


def _drawn(run: Run, step: int) -> list[dict]:
    return steps_with_samples(run).get(step, [])


def _what(row: Mapping) -> tuple[str, int, str]:
    return row["prompt"], row["seed"], row["of"]


def _marks(run: Run) -> Path:
    return run.folder / "favourites.json"

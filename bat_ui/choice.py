"""The choice: every candidate with what was found out about it, and which ones are taken.

In: a shortlist and, for ALBAT, sketches.  Out: `Choice`, saved as selection.json; dropping or keeping a picture gives a
new one from the saved sketches alone, without the model.  No score is ever made up: what a rule does not compute is None.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from threading import Lock

import numpy as np
from safetensors.numpy import load_file, save_file

from bat_ui.albat.selection import RULES, Assessment, Sketches, assess
from bat_ui.albat.selection import select as rank_candidates
from bat_ui.errors import UserError
from bat_ui.files import read_json, replacing, write_json

_judging = Lock()


@dataclass(frozen=True)
class Candidate:
    """One backbone picture.

    similarity: largest CLIP cosine to a subject picture; group: label of pictures alike in CLIP space; verdict: the
    group's (theory.md, Proposition 1); gain: by how much the picture lowers the predicted error, as a part of the error
    without any (Proposition 2); rank: place in the rule's order, from 1; chosen: whether training uses it; weight: how
    often, relative to the mean.
    """

    id: str
    caption: str
    similarity: float | None
    group: int | None = None
    verdict: str | None = None
    gain: float | None = None
    rank: int | None = None
    chosen: bool = False
    weight: float = 1.0


@dataclass(frozen=True)
class Choice:
    """All candidates, ranked ones first. `errors` is the predicted-error curve relative to no picture, `knee` its bend,
    `groups` the verdicts with their evidence, `dropped` and `kept` what the user changed by hand."""

    rule: str
    candidates: tuple[Candidate, ...]
    num_backbone: int | None = None
    errors: tuple[float, ...] = ()
    knee: int | None = None
    groups: tuple[dict, ...] = ()
    dropped: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    store: str = ""

    @property
    def chosen(self) -> tuple[Candidate, ...]:
        """The candidates that training will use."""
        return tuple(c for c in self.candidates if c.chosen)

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Choice:
        """Raises UserError if no choice was made yet."""
        record = read_json(path)
        if record is None:
            raise UserError("No backbone pictures are chosen yet: run the selection first.")
        record["candidates"] = tuple(Candidate(**c) for c in record["candidates"])
        return cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in record.items()})


def save_sketches(sketches: Sketches, path: Path) -> None:
    """The sketches' arrays as one safetensors file."""
    with replacing(path) as draft:
        save_file({k: np.ascontiguousarray(v) for k, v in sketches.to_arrays().items()}, draft)


def load_sketches(path: Path) -> Sketches:
    """Raises UserError if there are none."""
    if not path.is_file():
        raise UserError("The sketches of this selection are missing: run the selection again.")
    return Sketches.from_arrays(load_file(path))


def apply_selection(choice: Choice, sketches: Sketches, assessment: Assessment) -> Choice:
    """Rank the candidates by `choice.rule`, its number and what was dropped and kept by hand (theory.md, step 6)."""
    selection = rank_candidates(
        sketches, assessment, choice.rule, choice.num_backbone, excluded=choice.dropped, forced=choice.kept
    )
    unit = float(selection.errors[0]) if len(selection.errors) else 1.0
    rank_of = {sketches.ids[i]: rank for rank, i in enumerate(selection.order.tolist(), start=1)}
    gain_of = {sketches.ids[i]: float(gain) / unit for i, gain in zip(selection.order.tolist(), selection.gains)}
    place = {name: i for i, name in enumerate(sketches.ids)}
    chosen = set(selection.chosen)
    candidates = tuple(
        replace(
            c,
            group=int(sketches.groups[place[c.id]]),
            verdict=selection.verdicts[place[c.id]],
            gain=gain_of.get(c.id),
            rank=rank_of.get(c.id),
            chosen=c.id in chosen,
        )
        for c in choice.candidates
    )
    last = len(candidates)
    candidates = tuple(sorted(candidates, key=lambda c: (c.rank or last + 1, -(c.similarity or 0), c.id)))
    errors = tuple(float(e) / unit for e in selection.errors)
    return replace(choice, candidates=candidates, errors=errors, knee=int(selection.knee))


def judge(sketches_path: Path) -> tuple[Sketches, Assessment]:
    """The sketches in a file and what was found out about them, kept in memory for as long as the file is the same.

    Raises UserError if there are none.
    """
    changed = sketches_path.stat().st_mtime_ns if sketches_path.is_file() else 0
    with _judging:  # who asks second waits for the first one's answer
        return _judged(sketches_path, changed)


@lru_cache(maxsize=4)
def _judged(sketches_path: Path, changed: int) -> tuple[Sketches, Assessment]:
    sketches = load_sketches(sketches_path)
    return sketches, assess(sketches)


def revise(
    choice: Choice, sketches_path: Path, *, dropped: Iterable[str], kept: Iterable[str], num_backbone: int | None
) -> Choice:
    """The choice with just these pictures dropped and kept by hand and this number; ranks and predictions follow at once.

    Without a predicted-error curve `num_backbone` None leaves the number as it is.  Raises UserError for ids that are
    not candidates.
    """
    dropped, kept = set(dropped), set(kept)
    unknown = (dropped | kept) - {c.id for c in choice.candidates}
    if unknown:
        raise UserError(f"{sorted(unknown)[0]} is not among the candidates: choose one from the list.")
    choice = replace(choice, dropped=tuple(sorted(dropped)), kept=tuple(sorted(kept)))
    if choice.rule in RULES:
        return apply_selection(replace(choice, num_backbone=num_backbone), *judge(sketches_path))
    number = choice.num_backbone if num_backbone is None else num_backbone
    chosen = {c.id for c in choice.candidates if c.rank and c.rank <= (number or 0)} - dropped | kept
    candidates = tuple(replace(c, chosen=c.id in chosen) for c in choice.candidates)
    return replace(choice, candidates=candidates, num_backbone=number)


def toggle(choice: Choice, id: str, sketches_path: Path) -> Choice:
    """The choice with one picture dropped if it was chosen, taken if it was not.

    Where the rule by itself decides so, the picture is left to the rule again, so that two toggles change nothing.
    """
    wanted = id not in {c.id for c in choice.chosen}
    dropped, kept = set(choice.dropped) - {id}, set(choice.kept) - {id}
    free = revise(choice, sketches_path, dropped=dropped, kept=kept, num_backbone=choice.num_backbone)
    if (id in {c.id for c in free.chosen}) == wanted:
        return free
    (kept if wanted else dropped).add(id)
    return revise(choice, sketches_path, dropped=dropped, kept=kept, num_backbone=choice.num_backbone)

"""The choice: every candidate with what was found out about it, and which ones are taken.

In: a shortlist and, for ALBAT, sketches.  Out: `Choice`, saved as selection.json; dropping or keeping a picture gives a
new one from the saved sketches alone, without the model.  No score is ever made up: what a rule does not compute is None.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from bat_ui.albat import selection as albat
from bat_ui.albat.selection import RULES, Assessment, Sketches, assess
from bat_ui.albat.strength import MOST, most_strength
from bat_ui.errors import UserError
from bat_ui.files import read_json, replacing, write_json
from bat_ui.settings import TrainingSettings

SEARCH, ADDED, OWN = "search", "added", "own"  # where a candidate is from
COMPARABLE = ("albat", "by_group", "without_validity", "nearest", "random")
KINDS = {
    "valid": "its kind is close enough to your subject to help",
    "harmful": "its kind pulls the model away from your subject",
    "doubtful": "its kind may pull the model away from your subject",
    "too small to judge": "too few pictures are like it to tell whether its kind pulls the model away",
}

_judging = Lock()


@dataclass(frozen=True)
class Candidate:
    """One backbone picture.

    similarity: largest CLIP cosine to a subject picture; class_similarity: the one to the class prompt; group: label of
    pictures alike in CLIP space; verdict: the group's (theory.md, Proposition 1); gain: its part in the fall of the
    predicted error, by the curve that is reckoned at some sizes, over the error without any (Proposition 2); rank: place in
    the rule's order, from 1; chosen: whether training uses it; weight: how often, relative to the mean; origin: found by
    the search, added out of the store by hand, or the user's own picture; caption_fits: False where by CLIP many other
    candidates' captions say better what is on it.
    """

    id: str
    caption: str
    similarity: float | None = None
    group: int | None = None
    verdict: str | None = None
    gain: float | None = None
    rank: int | None = None
    chosen: bool = False
    weight: float = 1.0
    origin: str = SEARCH
    class_similarity: float | None = None
    caption_fits: bool = True

    @property
    def unchecked(self) -> bool:
        """True for a picture that a person added and no rule has looked at: it is taken or dropped by hand alone."""
        return self.origin != SEARCH and self.verdict is None and self.rank is None


@dataclass(frozen=True)
class Choice:
    """All candidates, ranked ones first.

    errors: the predicted-error curve relative to no picture, knee its default; groups: the verdicts with their evidence;
    strength: the lambda that the rule suggests for the last step (MOST where it suggests none); subject_steps: how long a
    run should be the subject's alone (None: the rule does not say); most_strength: what lambda may reach in a run as long as
    the selection was told; left_out: the losses of left-out pictures that say both, by step; dropped,
    kept: what the user changed by hand; store: what the store says of itself (StoreInfo.summary), with its `place` unless it
    is the backbone's own.
    """

    rule: str
    candidates: tuple[Candidate, ...]
    num_backbone: int | None = None
    errors: tuple[float, ...] = ()
    knee: int | None = None
    groups: tuple[dict, ...] = ()
    strength: float = MOST
    subject_steps: int | None = None
    most_strength: float = MOST
    left_out: tuple[dict, ...] = ()
    dropped: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    store: dict = field(default_factory=dict)

    def suggested(self, settings: TrainingSettings) -> TrainingSettings:
        """A run's settings with the lambda of its last step, however long the selection was told it would be, and when.

        What the pictures bear stays; where they bear all that the schedule asks for, it is what this run's length asks for.
        """
        strength = self.strength
        if self.left_out:
            most = most_strength(settings.steps, self.subject_steps)
            at_bound = strength >= self.most_strength * (1 - 1e-5)  # which is not rounded as lambda is
            strength = most if at_bound else min(strength, most)
        alone = self.subject_steps if settings.subject_steps is None else settings.subject_steps
        return replace(settings, strength=settings.strength * strength, subject_steps=alone)

    @property
    def chosen(self) -> tuple[Candidate, ...]:
        """The candidates that training will use."""
        return tuple(c for c in self.candidates if c.chosen)

    @property
    def looked_at(self) -> tuple[Candidate, ...]:
        """The candidates that the rule has looked at."""
        return tuple(c for c in self.candidates if not c.unchecked)

    @property
    def extra(self) -> tuple[Candidate, ...]:
        """The candidates that a person added and the rule has not looked at."""
        return tuple(c for c in self.candidates if c.unchecked)

    @property
    def comparable(self) -> tuple[str, ...]:
        """The rules that can choose from the same candidates at once, from what is known of them."""
        if not self.looked_at:
            return ()
        return COMPARABLE if self.groups else ("nearest", "random")

    def reason(self, c: Candidate) -> str:
        """Why a candidate is taken or left out, in one sentence for people who know pictures and not statistics."""
        if c.unchecked:
            by = "you added it" if c.origin == ADDED else "it is your own picture"
            return f"{'Taken' if c.chosen else 'Left out by hand'}: {by}. Not checked against your subject."
        if c.id in self.kept:
            return "Taken: you took it by hand."
        if c.id in self.dropped:
            return "Left out: you dropped it by hand."
        taken = "Taken" if c.chosen else "Left out"
        if self.rule == "random":
            return f"{taken}: drawn by lot."
        if self.rule == "nearest" and c.rank:
            return f"{taken}: number {c.rank:,} of those that look most like your pictures."
        place = ("among the nearest to your class", "nearer ones are enough")
        if self.rule == "by_group":
            place = ("its kind teaches much", "other kinds teach more")
        kind = "its kind was not asked for" if self.rule == "without_validity" else KINDS.get(c.verdict)
        if c.verdict == "harmful" and not c.chosen and self.rule != "without_validity":
            return f"Left out: {kind}."
        if self._displaced(c):
            return "Left out: farther ones that you took by hand have its place."
        return f"{taken}: {place[not c.chosen]}{f'; {kind}' if kind else ''}."

    def _displaced(self, c: Candidate) -> bool:
        """Whether it would be taken, had nobody taken by hand what is farther from the class."""
        if self.rule == "by_group" or c.chosen or not c.rank:
            return False
        farther = sum(similarity < (c.class_similarity or 0.0) for similarity in self._taken_by_hand)
        return farther > 0 and c.rank - farther <= self._number_taken

    @cached_property
    def _taken_by_hand(self) -> list[float]:
        """The class similarity of each."""
        kept = set(self.kept)
        return [c.class_similarity or 0.0 for c in self.looked_at if c.id in kept]

    @cached_property
    def _number_taken(self) -> int:
        return sum(c.chosen for c in self.looked_at)

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Choice:
        """Raises UserError if no choice was made yet."""
        record = read_json(path)
        if record is None:
            raise UserError("No backbone pictures are chosen yet: run the selection first.")
        return cls.from_record(record)

    @classmethod
    def from_record(cls, record: dict) -> Choice:
        """The inverse of `asdict`, also after a way through JSON."""
        record = dict(record)
        if isinstance(record.get("store"), str):  # a project from before stores said more than their title
            record["store"] = {"title": record["store"]}
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
    place = {name: i for i, name in enumerate(sketches.ids)}
    dropped, kept = (tuple(id for id in ids if id in place) for ids in (choice.dropped, choice.kept))
    options = {"excluded": dropped, "forced": kept, "most": choice.most_strength}
    selection = albat.select(sketches, assessment, choice.rule, choice.num_backbone, **options)
    unit = float(selection.errors[0]) if len(selection.errors) else 1.0
    rank_of = {sketches.ids[i]: rank for rank, i in enumerate(selection.order.tolist(), start=1)}
    gain_of = {sketches.ids[i]: float(gain) / unit for i, gain in zip(selection.order.tolist(), selection.gains)}
    weight_of = dict(zip(selection.chosen, selection.weights.tolist()))
    candidates = tuple(
        replace(
            c,
            group=int(sketches.groups[place[c.id]]),
            verdict=selection.verdicts[place[c.id]],
            gain=gain_of.get(c.id),
            rank=rank_of.get(c.id),
            chosen=c.id in weight_of,
            weight=round(weight_of.get(c.id, 1.0), 6),
        )
        for c in choice.candidates
        if c.id in place
    )
    last, others = len(candidates), tuple(c for c in choice.candidates if c.id not in place)
    candidates = tuple(sorted(candidates, key=lambda c: (c.rank or last + 1, -(c.similarity or 0), c.id))) + others
    errors = tuple(float(e) / unit for e in selection.errors)
    strength = round(selection.strength, 6)
    return replace(choice, candidates=candidates, errors=errors, knee=int(selection.knee), strength=strength)


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
    choice: Choice,
    sketches_path: Path,
    *,
    dropped: Iterable[str],
    kept: Iterable[str],
    num_backbone: int | None,
    extra: Iterable[Candidate] | None = None,
) -> Choice:
    """The choice with just these pictures dropped and kept by hand and this number; ranks and predictions follow at once.

    Without a predicted-error curve `num_backbone` None leaves the number as it is.  `extra` are the candidates that a
    person added, as before if None; they come on top of the number and are taken unless they are dropped.  Raises
    UserError for ids that are not candidates.
    """
    extra = choice.extra if extra is None else tuple(extra)
    known = {c.id for c in (*choice.looked_at, *extra)}
    dropped, kept = set(dropped), set(kept)
    _check_known(dropped | kept, known)
    extra = tuple(replace(c, chosen=c.id not in dropped) for c in extra)
    choice = replace(choice, candidates=choice.looked_at + extra, dropped=tuple(sorted(dropped)), kept=tuple(sorted(kept)))
    if choice.rule in RULES:
        return apply_selection(replace(choice, num_backbone=num_backbone), *judge(sketches_path))
    number = choice.num_backbone if num_backbone is None else num_backbone
    chosen = {c.id for c in choice.looked_at if c.rank and c.rank <= (number or 0)} - dropped | kept
    candidates = tuple(replace(c, chosen=c.id in chosen) for c in choice.looked_at)
    return replace(choice, candidates=candidates + extra, num_backbone=number)


def toggle(choice: Choice, id: str, sketches_path: Path) -> Choice:
    """The choice with one picture dropped if it was chosen, taken if it was not.

    Where the rule by itself decides so, the picture is left to the rule again, so that two toggles change nothing.
    """
    return mark(choice, [id], id not in {c.id for c in choice.chosen}, sketches_path)


def mark(choice: Choice, ids: Iterable[str], wanted: bool, sketches_path: Path) -> Choice:
    """The choice with these pictures taken, or with none of them; what the rule decides so by itself is left to it.

    Raises UserError for ids that are not candidates.
    """
    ids = set(ids)
    _check_known(ids, {c.id for c in choice.candidates})
    dropped, kept = set(choice.dropped) - ids, set(choice.kept) - ids
    free = revise(choice, sketches_path, dropped=dropped, kept=kept, num_backbone=choice.num_backbone)
    taken = {c.id for c in free.chosen}
    others = ids - taken if wanted else ids & taken
    if not others:
        return free
    # Whoever drops one picture frees a place for the next; of a group none may take it.
    (kept if wanted else dropped).update(ids if len(ids) > 1 else others)
    return revise(choice, sketches_path, dropped=dropped, kept=kept, num_backbone=choice.num_backbone)


def _check_known(ids: set[str], known: set[str]) -> None:
    if ids - known:
        raise UserError(f"{sorted(ids - known)[0]} is not among the candidates: choose one from the list.")


def mark_group(choice: Choice, group: int, wanted: bool, sketches_path: Path) -> Choice:
    """The choice with all pictures of a group taken, or with none.  Raises UserError if there is no such group."""
    ids = [c.id for c in choice.looked_at if c.group == group]
    if not ids:
        raise UserError("There is no such group: choose one from the list.")
    return mark(choice, ids, wanted, sketches_path)


def by_rule(choice: Choice, rule: str, sketches_path: Path) -> Choice:
    """What another rule would choose from the same candidates, as many as are taken now, without any change by hand.

    Nothing is computed anew but the order: `nearest` goes by the similarity that is known, `random` draws among these
    candidates.  Raises UserError for a rule that needs what this choice does not have.
    """
    if rule not in choice.comparable:
        raise UserError("This rule needs a search of its own: choose it above and find helpful pictures again.")
    number = sum(c.chosen for c in choice.looked_at)
    dropped = tuple(c.id for c in choice.extra if not c.chosen)
    blank = replace(choice, rule=rule, dropped=dropped, kept=(), num_backbone=number)
    blank = replace(blank, errors=(), knee=None, strength=choice.most_strength)
    if rule in RULES:
        return apply_selection(blank, *judge(sketches_path))
    rows = sorted(choice.looked_at, key=lambda c: c.id)
    if rule == "nearest":
        rows.sort(key=lambda c: -(c.similarity or 0))
    else:
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
        rows = [rows[i] for i in order]
    ranked = (replace(c, rank=n, gain=None, weight=1.0, chosen=n <= number) for n, c in enumerate(rows, start=1))
    return replace(blank, candidates=tuple(ranked) + choice.extra)


def predicted_error(choice: Choice, sketches_path: Path) -> float | None:
    """The predicted error with what is taken, as a part of the error without any; None where nothing predicts.

    The same measure whatever rule chose, for the weights that training gives; what no rule has looked at does not count.
    """
    if not choice.groups:
        return None
    ids = tuple(c.id for c in choice.looked_at if c.chosen)
    return albat.predicted_error(*judge(sketches_path), choice.rule, ids, choice.most_strength)

"""What each rule chooses out of a store for a project's subject, with what it found out about every candidate.

In: a project with a subject, a backbone, its store, settings.  Out: a `Choice`, not yet saved; ALBAT's sketches are, apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bat_ui.additions import brought_along, pictures_of
from bat_ui.albat.selection import assess
from bat_ui.albat.strength import most_strength
from bat_ui.albat.validity import GroupVerdict
from bat_ui.backbones.stable_diffusion import Backbone
from bat_ui.choice import SEARCH, Candidate, Choice, apply_selection, save_sketches
from bat_ui.errors import UserError
from bat_ui.left_out import left_out_losses, steps_alone, surrogate_steps
from bat_ui.project import Clock, Progress, Project, silent
from bat_ui.settings import SelectionSettings, TrainingSettings
from bat_ui.sketching import sketch_candidates
from bat_ui.store.catalogue import store_place
from bat_ui.store.shortlist import Shortlist, shortlist
from bat_ui.store.sticker import open_sticker_store
from bat_ui.store.table import Store
from bat_ui.subject import Subject

MISFIT, FEW = 0.25, 20  # of captions that a picture's own may stand behind; candidates below which nothing can be told
DEFAULT_NUMBER = 40  # pictures that the rules without a predicted-error curve take
RANDOM_PART = 0.25  # part of ALBAT's shortlist that is drawn from the whole store, so that it can reach beyond neighbours


def open_store(backbone: Backbone, progress: Progress = silent, store: str | None = None) -> Store:
    """The ingested store of that name or place, or the one that goes with the backbone, built first if need be.

    Raises UserError if there is no such store, if its vectors are not of the backbone's CLIP model, or where none is named
    for a backbone that comes without one.
    """
    if store:
        opened = Store.open(store_place(store))
        opened.check_encoder(backbone.clip.digest)
        return opened
    if backbone.photos:
        raise UserError(
            "This backbone comes without pictures of its own: give --store; `python -m bat_ui ingest` makes one."
        )

    def report(items, desc: str, total: int, unit: str):
        for i, item in enumerate(items):
            progress(desc, i, total)
            yield item

    return open_sticker_store(backbone.clip, report)


def find_candidates(
    store: Store, backbone: Backbone, subject: Subject, class_prompt: str, settings: SelectionSettings
) -> Shortlist:
    """ALBAT's candidates, those nearest to the class first: neighbours of the subject and its class, and RANDOM_PART from
    anywhere in the store."""
    num_random = round(settings.shortlist * RANDOM_PART)
    found = shortlist(
        store,
        backbone.clip,
        subject.images,
        subject.captions,
        class_prompt,
        settings.shortlist - num_random,
        num_random=num_random,
        seed=settings.seed,
        identifier=subject.identifier,
    )
    return found.class_first()


def choose_by_albat(
    project: Project,
    backbone: Backbone,
    store: Store,
    subject: Subject,
    settings: SelectionSettings,
    training: TrainingSettings,
    progress: Progress,
    clock: Clock,
) -> Choice:
    """Steps 1 to 5 of ALBAT (theory.md); the sketches are saved as `new_sketches`, so that step 6 needs no model."""
    progress("Searching the store", 0, 1)
    found = find_candidates(store, backbone, subject, backbone.class_prompt(subject.class_noun), settings)
    clock.lap("shortlist")
    further = [c for c in brought_along(project, store) if c.id not in set(found.ids)]
    added = pictures_of(project, further, store)
    images = store.pictures(found.ids) + added
    vectors = torch.cat([found.vectors, backbone.clip.embed_images(added)]) if further else found.vectors
    origins = {c.id: c.origin for c in further}
    ids, captions = (*found.ids, *origins), (*found.captions, *(c.caption for c in further))
    nearness = _known(backbone, vectors, captions, *_nearness(backbone, subject, vectors))
    rows = [Candidate(*row, origin=origins.get(row[0], SEARCH), **near) for *row, near in zip(ids, captions, nearness)]
    order = sorted(range(len(rows)), key=lambda i: -rows[i].class_similarity)
    rows, vectors = tuple(rows[i] for i in order), vectors[order]
    ids, captions = tuple(c.id for c in rows), tuple(c.caption for c in rows)
    candidates = backbone.encode([images[i] for i in order], captions)
    pictures, found_out = subject.encode(backbone), None
    if settings.surrogate_steps is None:
        found_out = left_out_losses(backbone, pictures, training, progress)
        clock.lap("left_out")
    alone = steps_alone(settings, training, found_out)
    surrogate = training.subject_alone(surrogate_steps(settings, training, alone))
    sketches = sketch_candidates(backbone, ids, vectors, candidates, pictures, settings, surrogate, progress)
    clock.lap("surrogate_and_sketches")
    progress("Checking validity and ranking", 0, 1)
    save_sketches(sketches, project.new_sketches)
    assessment = assess(sketches)
    groups = tuple(_group_record(g, assessment.strengths[g.group]) for g in assessment.validity.groups)
    losses = tuple({"step": s, "loss": x} for s, x in zip(found_out.steps, found_out.means)) if found_out else ()
    most = most_strength(training.steps, found_out and found_out.turning)
    when = {"subject_steps": alone, "most_strength": most, "left_out": losses}
    choice = Choice("albat", rows, settings.num_backbone, groups=groups, **when)
    choice = apply_selection(choice, sketches, assessment)
    clock.lap("ranking")
    return choice


def choose_nearest(
    project: Project,
    backbone: Backbone,
    store: Store,
    subject: Subject,
    settings: SelectionSettings,
    training: TrainingSettings,
    progress: Progress,
    clock: Clock,
) -> Choice:
    """The nearest to the subject in CLIP space."""
    number = settings.num_backbone or DEFAULT_NUMBER
    size = max(settings.shortlist, 2 * number)  # half of them are the nearest to the class
    found = shortlist(
        store,
        backbone.clip,
        subject.images,
        [],
        backbone.class_prompt(subject.class_noun),
        size,
        identifier=subject.identifier,
    )
    order = sorted(range(len(found)), key=lambda i: (-float(found.similarity[i]), found.ids[i]))
    near = _known(backbone, found.vectors, found.captions, found.similarity, found.class_similarity)
    rows = tuple(
        Candidate(found.ids[i], found.captions[i], rank=r, chosen=r <= number, **near[i])
        for r, i in enumerate(order, start=1)
    )
    clock.lap("shortlist")
    return Choice("nearest", rows, number)


def choose_at_random(
    project: Project,
    backbone: Backbone,
    store: Store,
    subject: Subject,
    settings: SelectionSettings,
    training: TrainingSettings,
    progress: Progress,
    clock: Clock,
) -> Choice:
    """A seeded draw from the whole store."""
    number = min(settings.num_backbone or DEFAULT_NUMBER, store.count)
    order = torch.randperm(store.count, generator=torch.Generator().manual_seed(settings.seed)).tolist()
    ids = store.ids_at(order[: max(number, min(settings.shortlist, store.count))])
    captions, vectors = store.captions_of(ids), store.vectors_of(ids)
    near = _known(backbone, vectors, captions, *_nearness(backbone, subject, vectors))
    rows = tuple(
        Candidate(i, caption, rank=r, chosen=r <= number, **n)
        for r, (i, caption, n) in enumerate(zip(ids, captions, near), start=1)
    )
    clock.lap("shortlist")
    return Choice("random", rows, number)


def fitting_captions(pictures: torch.Tensor, captions: torch.Tensor) -> list[bool]:
    """Whether each picture's caption says what is on it, from the unit CLIP vectors (n, d) of both.

    It hardly does if more than MISFIT of all captions are nearer to the picture than its own.  Among fewer than FEW
    candidates nothing can be told, and all count as fitting.
    """
    similarity = pictures @ captions.T
    nearer = (similarity > similarity.diagonal()[:, None]).float().mean(1)
    return [len(pictures) < FEW or part <= MISFIT for part in nearer.tolist()]


def _nearness(backbone: Backbone, subject: Subject, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines (n,) of CLIP vectors (n, d): the largest to a subject picture, and the one to the class prompt."""
    [prompt] = backbone.clip.embed_texts([backbone.class_prompt(subject.class_noun)])
    return (vectors @ backbone.clip.embed_images(subject.images).T).amax(1), vectors @ prompt


def _known(
    backbone: Backbone, vectors: torch.Tensor, captions: Sequence[str], to_subject: torch.Tensor, to_class: torch.Tensor
) -> list[dict]:
    """What CLIP says of candidates with these vectors (n, d) and captions, by the names that `Candidate` has for it."""
    fits = fitting_captions(vectors, backbone.clip.embed_texts(list(captions)))
    return [
        {"similarity": round(own, 6), "class_similarity": round(other, 6), "caption_fits": fit}
        for own, other, fit in zip(to_subject.tolist(), to_class.tolist(), fits)
    ]


def _group_record(verdict: GroupVerdict, strength: float) -> dict:
    return {
        "group": verdict.group,
        "size": verdict.size,
        "verdict": verdict.verdict,
        "disagreement": verdict.disagreement,
        "interval": list(verdict.interval),
        "tolerance": verdict.tolerance,
        "evidence": verdict.evidence,
        "strength": strength,
    }

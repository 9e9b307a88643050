"""Pictures that a person adds to a choice: found in the store by words, or their own.

In: a project with a choice, its store, its CLIP model; words and uploaded files, hostile until read.  Out: the choice with
these pictures as candidates that no rule has looked at (`Candidate.unchecked`), which the next search by ALBAT checks.
Own pictures lie in the project's own/, decoded and written anew, so that nothing of an upload but its pixels is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from PIL import Image

from bat_ui.choice import ADDED, OWN, SEARCH, Candidate, Choice, mark, revise
from bat_ui.clip_space import ClipSpace
from bat_ui.errors import UserError
from bat_ui.files import whole_folder
from bat_ui.pictures import read_picture
from bat_ui.project import Project, Run
from bat_ui.store.catalogue import store_place
from bat_ui.store.table import Store
from bat_ui.subject import Subject, check_caption, names_subject, unique_names

FOUND = 24  # pictures that a search by words shows
MAX_OWN = 100  # own pictures of a project
MAX_WORDS = 200  # characters of a search
PREFIX = "own:"  # of an own picture's id
THUMBNAIL = 192  # pixels, of what a card shows


@dataclass(frozen=True)
class Found:
    """A picture of the store that suits some words: `similarity` is the CLIP cosine between the two."""

    id: str
    caption: str
    similarity: float
    picture: Image.Image


def store_of(choice: Choice) -> Store:
    """The store that a choice was made from.  Raises UserError if there is none yet, or none any more."""
    place = choice.store.get("place") or store_place("sticker")
    try:
        return Store.open(place)
    except UserError as problem:
        raise UserError("There is no store to look in yet: find helpful pictures first.") from problem


@lru_cache(maxsize=2)
def clip_model(source: str) -> ClipSpace:
    """A CLIP model kept in memory.  Raises UserError rather than fetch one that nobody has agreed to."""
    from bat_ui.backbones.hub import needed_clip_downloads

    if needed_clip_downloads(source):
        raise UserError("The CLIP model of this backbone is not on this machine yet: find helpful pictures first.")
    return ClipSpace.load(source)


def search_store(
    store: Store, clip: ClipSpace, words: str, number: int = FOUND, template: str = "{class_noun}"
) -> list[Found]:
    """The pictures that suit the words best, best first; `template` makes a caption of them, as the model knows captions.

    Raises UserError for no words or too many, or if `clip` is not the model of the store.
    """
    words = " ".join(words.split())
    if not words:
        raise UserError("Say what to look for, such as “sleeping cat”.")
    if len(words) > MAX_WORDS:
        raise UserError(f"That is more than {MAX_WORDS} characters: say it shorter.")
    store.check_encoder(clip.digest)
    caption = " ".join(template.replace("{identifier}", "").replace("{class_noun}", words).split())
    [ids], [similarity] = store.nearest(clip.embed_texts([caption]), number)
    rows = zip(ids, store.captions_of(ids), similarity.tolist(), store.pictures(ids))
    return [Found(*row) for row in rows]


def add_from_store(project: Project, choice: Choice, store: Store, clip: ClipSpace, id: str) -> Choice:
    """The choice with a picture of its store taken: by hand if it is a candidate, else as one that nobody checked.

    Raises UserError if the store has no such picture.
    """
    if id in {c.id for c in choice.candidates}:
        return mark(choice, [id], True, project.sketches)
    try:
        [caption], [picture], vectors = store.captions_of([id]), store.pictures([id]), store.vectors_of([id])
    except KeyError as problem:
        raise UserError("The store has no such picture: search again.") from problem
    subject = clip.embed_images(Subject.load(project.subject).images)
    similarity = round(float((vectors @ subject.T).max()), 6)
    save_candidate(project, id, picture)
    return _with(project, choice, [Candidate(id, caption, similarity, chosen=True, origin=ADDED)])


def add_own(
    project: Project, choice: Choice, clip: ClipSpace, files: Sequence[Path], caption: str
) -> tuple[Choice, list[str]]:
    """The choice with every readable file as an own picture called `caption`, and a sentence for each that is not.

    Raises UserError, before any file is read, for too many pictures and a caption that is missing or names the subject.
    """
    caption = check_caption(caption)
    if not caption:
        raise UserError("Say what your own pictures show, such as “a photo of a cat”: the model learns them by that name.")
    subject = Subject.load(project.subject)
    if names_subject(caption, subject.identifier):
        raise UserError(
            f"Describe your own pictures without “{subject.identifier}”: that word is to mean your subject alone."
        )
    if sum(c.origin == OWN for c in choice.candidates) + len(files) > MAX_OWN:
        raise UserError(f"A project can have {MAX_OWN} pictures of your own: make a store of them with more.")
    pictures, problems = {}, []
    taken = [path.stem for path in project.own_pictures.glob("*.png")]  # those of undone changes, too
    for name, file in zip(unique_names(files, taken), files):
        try:
            pictures[name] = read_picture(file)
        except UserError as problem:
            problems.append(str(problem))
    if not pictures:
        return choice, problems
    near_to = clip.embed_images(subject.images)
    similarity = (clip.embed_images(list(pictures.values())) @ near_to.T).amax(1).tolist()
    rows = []
    for (name, picture), near in zip(pictures.items(), similarity):
        row = Candidate(PREFIX + name, caption, round(near, 6), chosen=True, origin=OWN)
        own_picture(project, row.id).parent.mkdir(exist_ok=True)
        picture.save(own_picture(project, row.id))
        save_candidate(project, row.id, picture)
        rows.append(row)
    return _with(project, choice, rows), problems


def own_picture(run: Run, id: str) -> Path:
    """Where an own picture lies."""
    return run.own_pictures / f"{id.removeprefix(PREFIX)}.png"


def pictures_of(run: Run, candidates: Iterable[Candidate], store: Store | None) -> list[Image.Image]:
    """The candidates' pictures in their order; `store` may be None if all of them are the user's own."""
    candidates = list(candidates)
    ids = [c.id for c in candidates if c.origin != OWN]
    stored = dict(zip(ids, store.pictures(ids))) if ids else {}
    return [read_picture(own_picture(run, c.id)) if c.origin == OWN else stored[c.id] for c in candidates]


def brought_along(project: Project, store: Store | None) -> tuple[Candidate, ...]:
    """What a person added to the last choice, for the next one: own pictures, and others if the store is still the same."""
    if not project.choice.is_file():
        return ()
    before = Choice.load(project.choice)
    same = store is not None and before.store.get("version") == store.info.version
    wanted = (c for c in before.candidates if c.origin == OWN or (c.origin == ADDED and same))
    return tuple(Candidate(c.id, c.caption, c.similarity, chosen=True, origin=c.origin) for c in wanted)


def store_of_added(project: Project) -> Store | None:
    """The store that pictures were added by hand from to the last choice; None if there are none, or it is gone."""
    if not project.choice.is_file():
        return None
    before = Choice.load(project.choice)
    if all(c.origin != ADDED for c in before.candidates):
        return None
    try:
        return store_of(before)
    except UserError:
        return None


def save_candidates(project: Project, candidates: Iterable[Candidate], store: Store | None) -> None:
    """Keep all candidates' pictures for people to look at, in place of those that were there, once all of them are saved."""
    candidates = list(candidates)
    pictures = pictures_of(project, candidates, store)
    with whole_folder(project.candidates) as folder:
        for candidate, picture in zip(candidates, pictures):
            save_candidate(project, candidate.id, picture, folder)


def save_candidate(project: Project, id: str, picture: Image.Image, folder: Path | None = None) -> None:
    """Keep a candidate's picture, and a small copy of a large one, so that hundreds of cards scroll smoothly.

    folder: what is to become the project's folder of candidates, if not that itself.
    """
    folder = folder or project.candidates
    folder.mkdir(parents=True, exist_ok=True)
    picture.save(folder / project.candidate_picture(id).name)
    if max(picture.size) > THUMBNAIL:
        small = picture.copy()
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        small.save(folder / project.candidate_thumbnail(id).name, quality=85)


def counts(choice: Choice) -> dict[str, int]:
    """How many pictures of each origin are taken, for the report."""
    names = {SEARCH: "found_by_the_search", ADDED: "added_by_hand", OWN: "own_pictures"}
    found = {name: sum(c.origin == origin for c in choice.chosen) for origin, name in names.items()}
    return found | {"not_checked": sum(c.unchecked for c in choice.chosen)}


def _with(project: Project, choice: Choice, rows: Sequence[Candidate]) -> Choice:
    """The choice with these pictures as further candidates that no rule has looked at."""
    given = {"dropped": choice.dropped, "kept": choice.kept, "num_backbone": choice.num_backbone}
    rows = [replace(row, chosen=True) for row in rows]
    return revise(choice, project.sketches, **given, extra=(*choice.extra, *rows))

"""The draft of a subject: the pictures that were uploaded so far, with captions and choices, before they are used.

In: uploaded files, hostile until read.  Out: `Draft`, saved as draft.json in a project; the pictures lie beside it in
originals/, decoded and written anew, so that nothing of an upload but its pixels is kept.  A bad file changes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from PIL import Image

from bat_ui.cut_out import is_on_white
from bat_ui.errors import UserError
from bat_ui.files import read_json, write_json
from bat_ui.pictures import read_picture
from bat_ui.project import Project
from bat_ui.subject import (
    CROPS,
    MAX_PICTURES,
    Box,
    Subject,
    filled,
    prepare_subject,
    read_caption,
    square_box,
    unique_names,
)

_changing = threading.RLock()  # a draft is read, changed and written by one event at a time
_previewing = threading.Lock()  # browsers that open a project at the same moment draw its previews once


@dataclass(frozen=True)
class Picture:
    """One uploaded picture; an empty caption means the one that the class noun gives; `crop` is one of CROPS;
    `whole`: it keeps its background though the others are cut out."""

    name: str
    on_white: bool
    caption: str = ""
    crop: str = "middle"
    whole: bool = False


@dataclass(frozen=True)
class Draft:
    """`cut_out` None: not yet decided by anybody; `used`: the project's subject was made from just this."""

    pictures: tuple[Picture, ...] = ()
    class_noun: str = ""
    identifier: str = "sks"
    cut_out: bool | None = None
    used: bool = False
    template: str = ""  # of captions; empty: the backbone's own

    @classmethod
    def load(cls, project: Project | None) -> Draft:
        record = read_json(project.folder / "draft.json") if project else None
        if record is None:
            return cls()
        return cls(**{**record, "pictures": tuple(Picture(**p) for p in record["pictures"])})

    def save(self, project: Project) -> None:
        write_json(project.folder / "draft.json", asdict(self))


def change(project: Project, **values) -> Draft:
    """Set fields of the draft; it counts as unused if that altered anything."""
    with _changing:
        draft = Draft.load(project)
        changed = replace(draft, **values)
        if changed != draft:
            changed = replace(changed, used=values.get("used", False))
            changed.save(project)
        return changed


def add_pictures(project: Project, files: Sequence[Path]) -> list[str]:
    """Add every readable picture, with the caption in NAME.txt beside it; returns a sentence for each that is not.

    Raises UserError, before any file is read, if there would be too many.
    """
    with _changing:
        draft = Draft.load(project)
        total = len(draft.pictures) + len(files)
        if total > MAX_PICTURES:
            raise UserError(f"{total} pictures are too many: choose the 3 to 10 best ones, at most {MAX_PICTURES}.")
        problems, added = [], list(draft.pictures)
        names = unique_names(files, taken=[p.name for p in draft.pictures])
        for name, file in zip(names, files):
            try:
                picture, caption = read_picture(file), read_caption(file.with_suffix(".txt")) or ""
            except UserError as problem:
                problems.append(str(problem))
                continue
            original(project, name).parent.mkdir(parents=True, exist_ok=True)
            picture.save(original(project, name), compress_level=1)
            added.append(Picture(name, is_on_white(picture), caption))
        change(project, pictures=tuple(added))
        return problems


def remove_picture(project: Project, name: str) -> None:
    """Take a picture out of the draft; names that it has not are ignored."""
    with _changing:
        pictures = Draft.load(project).pictures
        if name in {p.name for p in pictures}:
            change(project, pictures=tuple(p for p in pictures if p.name != name))
            original(project, name).unlink(missing_ok=True)


def set_captions(project: Project, captions: dict[str, str]) -> Draft:
    """Set the captions of the pictures named."""
    with _changing:
        pictures = Draft.load(project).pictures
        return change(project, pictures=tuple(replace(p, caption=captions.get(p.name, p.caption).strip()) for p in pictures))


def mark_used(project: Project, draft: Draft) -> None:
    """Note that the subject is made from `draft`, unless something was changed meanwhile."""
    with _changing:
        if Draft.load(project) == draft:
            change(project, used=True)


def set_crop(project: Project, name: str, crop: str) -> Draft:
    """Choose which square of a picture is used.  Raises UserError for a crop that there is not."""
    if crop not in CROPS:
        raise UserError(f"There is no such part of a picture: choose one of {', '.join(CROPS)}.")
    return _change_picture(project, name, crop=crop)


def set_whole(project: Project, name: str, whole: bool) -> Draft:
    """Choose whether a picture keeps its background though the others are cut out."""
    return _change_picture(project, name, whole=whole)


def _change_picture(project: Project, name: str, **values) -> Draft:
    with _changing:
        pictures = Draft.load(project).pictures
        return change(project, pictures=tuple(replace(p, **values) if p.name == name else p for p in pictures))


def crop_of(project: Project, picture: Picture, cut_out: bool, square: bool = True) -> Box | None:
    """The part of a picture that is used, None where there is nothing to choose: a square, a drawing, a cut-out."""
    with Image.open(original(project, picture.name)) as image:
        width, height = image.size
    if cut_out or picture.on_white or not square or width == height:
        return None
    return square_box(width, height, picture.crop)


def use_example(project: Project, folder: Path) -> None:
    """Make the draft an example subject: pictures with captions; the folder's last word is the class noun."""
    with _changing:
        for picture in Draft.load(project).pictures:
            remove_picture(project, picture.name)
        change(project, class_noun=folder.name.split("-")[-1], cut_out=False)
        add_pictures(project, sorted(folder.glob("*.png")))


def wants_cut_out(draft: Draft) -> bool:
    """The user's decision; until there is one, whether most of the pictures are photos with a background."""
    if draft.cut_out is not None:
        return draft.cut_out
    return 2 * sum(p.on_white for p in draft.pictures) < len(draft.pictures)


def cuts(draft: Draft, picture: Picture) -> bool:
    """Whether a picture is to be cut out."""
    return wants_cut_out(draft) and not picture.whole


def preview(project: Project, picture: Picture, cut_out: bool, square: bool = True) -> Path:
    """The folder that holds a picture as a subject of its own: NAME.png is how the model will see it.  Made once."""
    source, box = original(project, picture.name), crop_of(project, picture, cut_out, square)
    kind = ".cut-out" * cut_out + f".{picture.crop}" * (box is not None) + ".whole" * (not square)
    folder = project.folder / "previews" / f"{picture.name}{kind}"
    made = folder / "subject.json"
    with _previewing:
        if not made.is_file() or made.stat().st_mtime_ns < source.stat().st_mtime_ns:
            prepare_subject([source], "subject", cut_out=cut_out, crops=[box], square=square).save(folder)
    return folder


def as_subject(project: Project, draft: Draft, template: str, square: bool = True) -> Subject:
    """The subject that the draft would make, from its previews."""
    previews = [Subject.load(preview(project, p, cuts(draft, p), square)) for p in draft.pictures]
    return Subject(
        images=tuple(s.images[0] for s in previews),
        captions=tuple(p.caption or default_caption(draft, template) for p in draft.pictures),
        names=tuple(p.name for p in draft.pictures),
        class_noun=draft.class_noun,
        identifier=draft.identifier,
        cut_out=tuple(s.cut_out[0] for s in previews),
        square=square,
    )


def is_changed(project: Project, draft: Draft) -> bool:
    """Whether a subject was made and the draft changed since."""
    return bool(draft.pictures) and not draft.used and project.subject_marker.is_file()


def check_used(project: Project) -> None:
    """Raises UserError if step 1 was changed and the subject not made anew: nothing should learn the old one unnoticed."""
    if is_changed(project, Draft.load(project)):
        raise UserError("Something was changed in step 1: press “Use these pictures” there first.")


def default_caption(draft: Draft, template: str) -> str:
    """What a picture without a caption of its own is called; `template` is the backbone's."""
    return filled(draft.template or template, draft.identifier, draft.class_noun or "…")


def original(project: Project, name: str) -> Path:
    """Where an uploaded picture lies."""
    return project.folder / "originals" / f"{name}.png"


def sources(project: Project, draft: Draft) -> list[Path]:
    """The files that the subject is made from, in order."""
    return [original(project, p.name) for p in draft.pictures]

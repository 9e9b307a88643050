"""The subjects of the suite: families that the sticker backbone never saw, and folders of photos.

In: a subject's name and a seed, or a folder.  Out: `Case`, which has the given pictures as a `Subject` and, for held-out
families, all their other members as the truth.  `monkeys` is kept for tuning, beside families that the backbone knows in
other colours, so the suite has 12 subjects, 6 families in both styles.  (The clocks would not do: hardly anything overfits
on them, so nothing is to tune.)  What ALBAT is was decided on some of the suite's subjects as well (theory.md says which).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from zlib import crc32

import torch
from PIL import Image

from bat_ui.backbones.sticker import data
from bat_ui.errors import UserError
from bat_ui.evaluation import recoloured
from bat_ui.seeds import step_generator
from bat_ui.subject import Subject, prepare_subject, subject_files

IDENTIFIER = "sks"
TUNING_FAMILIES = ("monkeys", *recoloured.FAMILIES)
MOST_TRUTHS = 12  # of a family that is not held out
SIZE = 256  # pixels of the given pictures; the backbone reduces them to its own size


@dataclass(frozen=True, eq=False)
class Case:
    """One subject of the suite: the pictures given, and what is held out (empty for photos, whose truth is unknown).

    `relatives` are the ids of true relatives among the training pictures, nearest first (the oracle's choice).
    """

    name: str
    style: str
    given: Subject
    truths: tuple[Image.Image, ...]
    captions: tuple[str, ...]
    class_prompt: str
    relatives: tuple[str, ...] = ()


def subject_names(tuning: bool = False) -> list[str]:
    """'style/family' of the suite's 12 subjects, or of the 8 that tuning uses."""
    families = TUNING_FAMILIES if tuning else [f for f in data.held_out_families() if f not in TUNING_FAMILIES]
    return [f"{style}/{family}" for family in families for style in data.STYLES]


def load_case(name: str, seed: int, given: int = 4) -> Case:
    """The family `name` = 'style/family' with `given` members that depend on the seed, the same in both styles.

    Seeds take turns around one shuffled circle of members, so that each is given about as often.  At least two members
    stay held out, so small families give fewer.  Raises UserError for an unknown name.
    """
    known = subject_names() + subject_names(tuning=True)
    if name not in known:
        raise UserError(f'There is no subject "{name}": choose from {", ".join(known)}.')
    style, _, family = name.partition("/")
    held_out = family not in recoloured.FAMILIES
    found = _held_out(family, style) if held_out else recoloured.load_family(family, style)
    count = min(given, len(found.members) - 2)
    order = torch.randperm(len(found.members), generator=step_generator(0, crc32(family.encode()))).roll(-seed * count)
    order = order.tolist()
    most = None if held_out else MOST_TRUTHS
    shown, hidden = sorted(order[:count]), sorted(order[count:][:most])
    captions = [subject_caption(each, style, found.class_noun) for each in found.names]
    subject = Subject(
        images=tuple(found.render(found.members[i], SIZE) for i in shown),
        captions=tuple(captions[i] for i in shown),
        names=tuple(found.members[i].id.replace("/", "-") for i in shown),
        class_noun=found.class_noun,
        identifier=IDENTIFIER,
        size=SIZE,
    )
    return Case(
        name=family,
        style=style,
        given=subject,
        truths=tuple(found.render(found.members[i], data.SIZE) for i in hidden),
        captions=tuple(captions[i] for i in hidden),
        class_prompt=data.caption_of(found.class_noun, style),
        relatives=relatives(family, style) if held_out else (),
    )


def _held_out(family: str, style: str) -> recoloured.Family:
    members = tuple(s for s in _stickers() if s.family == family and s.style == style)
    noun = data.held_out_families()[family]["class_noun"]
    return recoloured.Family(noun, members, tuple(s.name for s in members), data.render)


def photo_case(folder: Path, class_noun: str, template: str) -> Case:
    """A folder of photos, all of them given.  Raises UserError as `prepare_subject` does, and for a single photo."""
    subject = prepare_subject(subject_files(folder), class_noun, IDENTIFIER, caption_template=template)
    if len(subject.images) < 2:
        raise UserError("One photo cannot be left out to judge by: give a folder with two or more.")
    prompt = " ".join(template.format(identifier="", class_noun=class_noun).split())
    return Case(folder.name, "photos", subject, (), (), prompt)


def subject_caption(name: str, style: str, noun: str, identifier: str = IDENTIFIER) -> str:
    """The sticker's caption with the identifier before the class noun: 'a flat sticker of sks cat with tears of joy'.

    A name without the noun follows it: 'a flat sticker of sks clock, one o'clock'.
    """
    words = name.split()
    if noun in words:
        words.insert(words.index(noun), identifier)
        return data.caption_of(" ".join(words), style)
    return data.caption_of(f"{identifier} {noun}, {name}", style)


def relatives(family: str, style: str) -> tuple[str, ...]:
    """Ids of the family's true relatives in the training data (relatives.json): those of its own style first."""
    codes = json.loads(files(data.__package__).joinpath("relatives.json").read_text(encoding="utf-8"))["families"][family]
    known = {s.id for s in data.training_stickers()}
    styles = [style, *(other for other in data.STYLES if other != style)]
    return tuple(i for s in styles for code in codes if (i := f"{s}/{code}") in known)


@cache
def _stickers() -> list[data.Sticker]:
    return data.load_stickers()

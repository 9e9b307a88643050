"""The subjects of the suite: families that the sticker backbone never saw, and folders of photos.

In: a subject's name and a seed, or a folder.  Out: `Case`, which has the given pictures as a `Subject` and, for held-out
families, all their other members as the truth.  `monkeys` is kept for tuning, so the suite has 12 subjects, 6 families in
both styles, of which tuning saw none.  (The clocks would not do: hardly anything overfits on them, so nothing is to tune.)
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
from bat_ui.seeds import step_generator
from bat_ui.subject import Subject, prepare_subject, subject_files

IDENTIFIER = "sks"
TUNING_FAMILIES = ("monkeys",)
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
    """'style/family' of the suite's 12 subjects, or of the 2 that tuning uses."""
    families = [f for f in data.held_out_families() if (f in TUNING_FAMILIES) == tuning]
    return [f"{style}/{family}" for family in families for style in data.STYLES]


def load_case(name: str, seed: int, given: int = 4) -> Case:
    """The held-out family `name` = 'style/family' with `given` members that depend on the seed, the same in both styles.

    Seeds take turns around one shuffled circle of members, so that each is given about as often.  At least two members
    stay held out, so small families give fewer.  Raises UserError for an unknown name.
    """
    style, _, family = name.partition("/")
    families = data.held_out_families()
    if style not in data.STYLES or family not in families:
        raise UserError(f'There is no subject "{name}": choose from {", ".join(subject_names() + subject_names(True))}.')
    noun = families[family]["class_noun"]
    members = [s for s in _stickers() if s.family == family and s.style == style]
    count = min(given, len(members) - 2)
    order = torch.randperm(len(members), generator=step_generator(0, crc32(family.encode()))).roll(-seed * count).tolist()
    shown, hidden = ([members[i] for i in sorted(part)] for part in (order[:count], order[count:]))
    subject = Subject(
        images=tuple(data.render(s, SIZE) for s in shown),
        captions=tuple(subject_caption(s.name, style, noun) for s in shown),
        names=tuple(s.id.replace("/", "-") for s in shown),
        class_noun=noun,
        identifier=IDENTIFIER,
        size=SIZE,
    )
    return Case(
        name=family,
        style=style,
        given=subject,
        truths=tuple(data.render(s) for s in hidden),
        captions=tuple(subject_caption(s.name, style, noun) for s in hidden),
        class_prompt=data.caption_of(noun, style),
        relatives=relatives(family, style),
    )


def photo_case(folder: Path, class_noun: str, template: str) -> Case:
    """A folder of photos, all of them given.  Raises UserError as `prepare_subject` does."""
    subject = prepare_subject(subject_files(folder), class_noun, IDENTIFIER, caption_template=template)
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

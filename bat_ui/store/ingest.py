"""Ingest: put the pictures of a source into a store, on this machine or by Ray on many.

In: a source, a place for the store, a CLIP model.  Out: the store and a `Report`.  Killed at any moment it goes on where
it was; done twice it adds nothing.  A picture that cannot be used is listed with the reason, in the ledger and in
broken.csv, and stops nothing.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import cpu_count
from pathlib import Path

import pyarrow as pa
from filelock import Timeout

from bat_ui.clip_space import ClipSpace
from bat_ui.errors import UserError, explained
from bat_ui.pictures import MAX_BYTES
from bat_ui.store.duplicates import mark_duplicates
from bat_ui.store.engine import AHEAD, Job, LocalEngine, Tally, chunks, records_of
from bat_ui.store.hub import HubPart
from bat_ui.store.index import build_indexes, drop_old, index_ids, update_by_id
from bat_ui.store.ledger import Entry, Ledger
from bat_ui.store.place import Place
from bat_ui.store.records import Options, Record
from bat_ui.store.shards import without_ending
from bat_ui.store.sources import FilesPart, find_parts
from bat_ui.store.table import (
    EXACT_ROWS,
    SCHEMA,
    StoreInfo,
    among,
    building_lock,
    open_table,
    read_info,
    rows_among,
    write_info,
)

ENGINES = ("local", "ray")
UNSTATED = "not stated"
ROWS_AT_ONCE = 100_000  # whose licence is corrected


@dataclass(frozen=True)
class Report:
    """Of one ingest: pictures that were added, that were there before, those of them with another caption than before, that
    took the place of another file of their name, that could not be used (reasons by file); and of the whole store: its
    duplicates."""

    info: StoreInfo
    added: int
    known: int
    recaptioned: int
    replaced: int
    broken: dict[str, str]
    exact: int
    near: int
    seconds: float


def ingest(
    source: str,
    store: str | Path,
    clip: ClipSpace,
    *,
    name: str | None = None,
    address: str | None = None,
    title: str | None = None,
    licence: str | None = None,
    caption_column: str | None = None,
    image_column: str | None = None,
    split: str = "train",
    link: bool = False,
    proxy: bool = False,
    engine: str = "local",
    workers: int | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Report:
    """Put `source` (sources.py) into the store at a path or URI, which is made if there is none.

    `name` begins the ids of the source's pictures, by default its last word; `address` says where the source is from if
    that is another place; `licence` is that of all pictures of this name, and by default stays what it was; `link` leaves a
    folder's pictures where they are; `proxy` labels the store as a stand-in for training data that is not public; `workers`
    decode pictures, or with `engine` 'ray' encode them.

    A picture is known if the store has its file as its id; then it takes the caption that it has by now.  Another file
    takes the place of what the store has, if that came from the same address; so the files of every part that is new or
    changed are read.  Raises UserError if the source cannot be read, the store is another's or in use, was made with another
    CLIP model, has other pictures of that name from elsewhere, or if no picture could be used.
    """
    started = time.monotonic()
    if engine not in ENGINES:
        raise UserError(f'There is no engine "{engine}": choose one of {", ".join(ENGINES)}.')
    place, address = Place.of(store), address or (Place.of(source).uri if _exists(source) else source)
    options = Options(name or _name_of(source), caption_column, image_column, split)
    parts = find_parts(source, options)
    if link and not all(isinstance(part, FilesPart) for part in parts):
        raise UserError("Only a folder of pictures can be linked to: leave out --link.")
    with _writing(place):
        info = _begin(place, clip, title, proxy)
        ledger = Ledger(place)
        named = [entry for entry in ledger.entries if entry.name == options.name]
        addresses, licences = {entry.address for entry in named}, [entry.licence for entry in named]
        if addresses - {address} and name is None:
            raise UserError(
                f"The store has pictures named '{options.name}' from elsewhere: rename these or name them with --name, or "
                f"go on with --name {options.name} if they are the same, moved."
            )
        if engine == "local":
            run = LocalEngine(clip, workers or cpu_count() or 1)
        else:
            from bat_ui.store.ray_engine import RayEngine

            run = RayEngine(clip, workers)
        done, number = {key: entry for key, entry in ledger.latest.items() if entry.complete}, ledger.next_number
        by_key = {part.key: part for part in parts}
        table = open_table(place)
        before = table.count_rows()
        index_ids(table)
        stated = licence or next(reversed(licences), UNSTATED)
        jobs = [
            Job(by_key[key], Entry(key, number + n, options.name, address, stated), place, table.version, link)
            for n, key in enumerate(key for key in by_key if key not in done)
        ]
        if addresses and address not in addresses:
            _refuse_others(jobs)
        if set(licences) - {stated}:
            _correct_licence(table, options.name, stated)
            ledger.correct_licence(options.name, stated)
        run(jobs, ledger, Tally(jobs, progress))
        of_split = parts[0].group if isinstance(parts[0], HubPart) else ""  # other splits are no less there
        ledger.forget(_gone(ledger, options.name, address, by_key, of_split))
        info, exact, near = _finish(place, info, ledger, progress)
    entries = [*(done[key] for key in by_key if key in done), *(job.entry for job in jobs)]
    read, recaptioned, replaced = (sum(each) for each in zip(*((e.pictures, e.recaptioned, e.replaced) for e in entries)))
    broken = {row["file"]: row["reason"] for entry in entries for row in entry.broken}
    known = read - (added := info.count - before) - replaced
    return Report(info, added, known, recaptioned, replaced, broken, exact, near, time.monotonic() - started)


def _begin(place: Place, clip: ClipSpace, title: str | None, proxy: bool) -> StoreInfo:
    """What the store is so far; a new one gets its marker, which says that nothing in it counts yet."""
    info = read_info(place)
    if info is None:
        if place.is_file() or (place.is_folder() and place.entries()):
            raise UserError(f"'{place.uri}' is not empty and no store of this version: choose another place for the store.")
        info = StoreInfo(place.name, title or place.name, "", "", "", clip.digest, 0, clip.dim, clip.source)
        write_info(place, info)
    elif info.snapshot and not Ledger.is_at(place):
        raise UserError(f"The store '{info.name}' is the program's own: choose another place for the pictures.")
    if info.encoder != clip.digest:
        raise UserError(
            f"The store '{info.name}' was made with another CLIP model, {info.clip}: use that one or a new store."
        )
    open_table(place, dim=info.dim)
    return replace(info, title=title or info.title, proxy=info.proxy or proxy)


def _finish(place: Place, info: StoreInfo, ledger: Ledger, progress: Callable) -> tuple[StoreInfo, int, int]:
    table = open_table(place)
    count = table.count_rows()
    broken = _still_broken(table, ledger.broken)
    _write_broken(place, broken)
    if count == 0:
        if not broken:
            raise UserError("There is no picture in it: give a source of captioned JPEG, PNG or WebP pictures.")
        reason = next(iter(broken.values()))
        raise UserError(f"No picture could be used; the first of {len(broken)} {reason.removeprefix('The picture ')}")
    progress("Indexing", 0, 1)
    build_indexes(table, with_vectors=count > EXACT_ROWS)
    progress("Looking for duplicates", 0, 1)
    exact, near = mark_duplicates(table)
    names = sorted({entry.name for entry in ledger.entries})
    licences = sorted({entry.licence for entry in ledger.entries})
    content = [sorted((entry.key, entry.pictures) for entry in ledger.entries), count, info.encoder, SCHEMA]
    had_old = info.snapshot > 0
    info = replace(
        info,
        source=", ".join(names),
        licence=", ".join(licences),
        version=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        count=count,
        snapshot=table.version,
    )
    write_info(place, info)
    if had_old:
        drop_old(table)
    return info, exact, near


def _gone(ledger: Ledger, name: str, address: str, keys: Collection[str], beginning: str) -> set[str]:
    """The parts of a source that are not among its present ones: if they come back as they were, they are read again."""
    entries = [entry for entry in ledger.entries if (entry.name, entry.address) == (name, address)]
    return {entry.key for entry in entries if entry.key.startswith(beginning)} - set(keys)


def _refuse_others(jobs: Sequence[Job]) -> None:
    """Raises UserError if the store has other pictures under the ids of these."""
    for job in jobs:
        for _, record, stored in records_of(job):
            if stored and not record.problem and not _is_file(record, stored.digest):
                raise UserError(
                    f"The store has another picture from elsewhere as '{record.id}': rename the source, or name it with "
                    "--name."
                )


def _correct_licence(table, name: str, licence: str) -> None:
    wrong = f"{among([name], 'source')} AND NOT {among([licence], 'licence')}"
    while len(ids := table.search().where(wrong).select(["id"]).limit(ROWS_AT_ONCE).to_arrow()):
        update_by_id(table, ids.append_column("licence", pa.array([licence] * len(ids))))


def _is_file(record: Record, digest: bytes) -> bool:
    """Whether a record's picture is the file with this digest."""
    try:
        file = Place(record.uri).read_bytes(MAX_BYTES + 1) if record.data is None else record.data
    except OSError:  # the engine lists it
        return False
    return hashlib.sha256(file).digest() == digest


def _still_broken(table, broken: dict[str, str]) -> dict[str, str]:
    """Without those that were repaired and are in the store by now."""
    for ids in chunks(list(broken), AHEAD):
        for id in rows_among(table, ids)["id"].to_pylist():
            del broken[id]
    return broken


def _write_broken(place: Place, broken: dict[str, str]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([("file", "reason"), *sorted(broken.items())])
    (place / "broken.csv").write_text(text.getvalue())


@contextmanager
def _writing(place: Place) -> Iterator[None]:
    """Nobody else writes to a store on disk meanwhile; for an object store that is the user's to see to."""
    if not place.is_local:
        yield
        return
    lock = building_lock(Path(place.uri))
    try:
        Path(place.uri).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"Another ingest is writing to '{place.name}': wait until it has ended.") from error
    except OSError as error:
        if explained(error):
            raise
        raise UserError(f"'{place.uri}' cannot be written ({error.strerror}): give another folder.") from error
    try:
        yield
    finally:
        lock.release()


def _exists(source: str) -> bool:
    place = Place.of(source)
    return place.is_folder() or place.is_file()


def _name_of(source: str) -> str:
    name = without_ending(str(source).rstrip("/").rsplit("/", 1)[-1].removeprefix("hf:"))
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "source"

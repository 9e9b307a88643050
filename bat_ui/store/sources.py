"""Sources of a store: a folder of captioned pictures, webdataset shards, parquet files, a Hugging Face dataset.

In: an address.  Out: parts, each of them a share of the source that one worker reads from beginning to end; `records()`
yields its pictures in order.  Parts are small and can be sent to other machines.  Nothing is decoded here, and nothing
that the source says is trusted: what cannot be used comes as a record with a problem.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import PurePosixPath

from bat_ui.errors import UserError
from bat_ui.pictures import MAX_BYTES, OTHER_SUFFIXES, SUFFIXES
from bat_ui.store.hub import hub_parts, is_hub_name
from bat_ui.store.place import Entry, Place
from bat_ui.store.records import (
    CAPTION_NAMES,
    MAX_CAPTION,
    NO_CAPTION,
    NO_UTF8,
    TOO_LARGE,
    UNREAD,
    NoUsualColumn,
    Options,
    Record,
    choose_column,
    clean,
    decoded,
)
from bat_ui.store.shards import SHARDS, ParquetPart, ShardPart, has_pictures, text_rows

FILE_NAMES = ("file_name", "filename", "file", "image", "image_name", "path", "image_path")
SHEETS = (".csv", ".tsv")
FILES_PER_PART = 1000


@dataclass(frozen=True)
class FilesPart:
    """Some of the picture files below a folder; captions are those of metadata files, the others lie beside the pictures."""

    folder: Place
    name: str
    entries: tuple[Entry, ...]
    captions: dict[str, str] = field(hash=False)
    beside: dict[str, Entry] = field(hash=False)  # a picture's NAME.txt

    @property
    def key(self) -> str:
        """Differs if pictures or captions come, go or change."""
        listing = []
        for entry in self.entries:
            text = self.beside.get(entry.path)
            captions = (self.captions.get(entry.path), text and (text.size, text.changed))
            listing.append((entry.path, entry.size, entry.changed, captions))
        return hashlib.sha256(json.dumps([self.name, listing]).encode()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(entry.size for entry in self.entries)

    @property
    def count(self) -> int:
        """Pictures."""
        return len(self.entries)

    def records(self) -> Iterator[Record]:
        """Pictures are not read here but where they are decoded."""
        for entry in self.entries:
            id = f"{self.name}/{entry.path}"
            caption = self.captions.get(entry.path, "")
            if not caption and entry.path in self.beside:
                text = self.folder / self.beside[entry.path].path
                try:
                    caption = clean(decoded(text.read_bytes(4 * MAX_CAPTION)))
                except UnicodeDecodeError:
                    yield Record(id, problem=NO_UTF8)
                    continue
                except OSError as error:
                    yield Record(id, problem=f"{UNREAD}: its caption ({error})")
                    continue
            if entry.size > MAX_BYTES:
                yield Record(id, problem=TOO_LARGE)
            elif not caption:
                yield Record(id, problem=NO_CAPTION)
            else:
                yield Record(id, caption, uri=(self.folder / entry.path).uri, size=entry.size)


def find_parts(source: str, options: Options) -> Sequence:
    """The parts of a source, in order.  Raises UserError if there is nothing there that can be read."""
    place = Place.of(source)
    if not place.is_folder() and not place.is_file():
        if is_hub_name(source):
            return hub_parts(source, options)
        raise UserError(f"There is no folder, file or data set '{source}': give one that is there.")
    if place.is_file():
        folder, entries = Place(place.uri.rsplit("/", 1)[0]), [place.entry()]
    else:
        folder, entries = place, place.entries()
    shards = [entry for entry in entries if entry.path.lower().endswith(SHARDS)]
    if shards:
        parts = [ShardPart(folder, entry, options) for entry in shards]
        _refuse_one_name(parts)
        return parts
    tables = [entry for entry in entries if entry.suffix == ".parquet"]
    if any(entry.suffix in SUFFIXES for entry in entries):  # which the others are only about
        tables = [entry for entry in tables if has_pictures(folder, entry)]
    if tables:
        parts = [ParquetPart(folder, entry, options) for entry in tables]
        parts[0].check_columns()  # before hours of work; another table without them stops nothing
        return parts
    if place.is_file():
        raise UserError(f"{place.name} is neither a .tar nor a .parquet file: give one of these or a folder of pictures.")
    return _files_parts(folder, entries, options)


def _refuse_one_name(parts: Sequence[ShardPart]) -> None:
    """Raises UserError if two shards can give pictures of one name: a.tar and a.tar.gz, or a.tar and a/b.tar."""
    by_stem = {part.stem: part for part in reversed(parts)}  # of one stem the first
    for part in parts:
        for stem in (part.stem, *map(str, PurePosixPath(part.stem).parents)):
            other = by_stem.get(stem, part)
            if other is not part:
                raise UserError(
                    f"{other.entry.path} and {part.entry.path} can have pictures of one name: remove one of them, or ingest "
                    "them one by one, each with a --name of its own."
                )


def _files_parts(folder: Place, entries: Sequence[Entry], options: Options) -> list[FilesPart]:
    pictures = [entry for entry in entries if entry.suffix in (*SUFFIXES, *OTHER_SUFFIXES)]  # what is broken is counted
    if not any(entry.suffix in SUFFIXES for entry in pictures):
        raise UserError(f"There is no picture in '{folder.uri}': give a folder of JPEG, PNG or WebP files.")
    texts = {entry.path[: -len(".txt")]: entry for entry in entries if entry.suffix == ".txt"}
    captions: dict[str, str] = {}
    for entry in entries:
        if entry.suffix in SHEETS or PurePosixPath(entry.path).name in ("metadata.jsonl", "metadata.parquet"):
            try:
                captions |= _metadata(folder, entry, options)
            except NoUsualColumn:
                if not texts:  # else it may say other things about the pictures
                    raise
    if captions and not texts and not any(entry.path in captions for entry in pictures):
        raise UserError(
            f"The captions are of other files, such as '{next(iter(captions))}', than '{pictures[0].path}' and the like: "
            "name each picture by its path from the caption file's folder."
        )
    parts = []
    for start in range(0, len(pictures), FILES_PER_PART):
        chunk = tuple(pictures[start : start + FILES_PER_PART])
        own = {entry.path: captions[entry.path] for entry in chunk if entry.path in captions}
        stems = {entry.path: str(PurePosixPath(entry.path).with_suffix("")) for entry in chunk}
        beside = {path: texts[stem] for path, stem in stems.items() if stem in texts}
        parts.append(FilesPart(folder, options.name, chunk, own, beside))
    return parts


def _metadata(folder: Place, entry: Entry, options: Options) -> dict[str, str]:
    """Captions by picture path, from a file with one line a picture, whose paths are relative to the file's folder."""
    columns, rows = _rows(folder, entry)
    if not columns:
        return {}
    wanted = options.image_column if options.image_column in columns else None
    if entry.suffix in SHEETS and not wanted and not set(FILE_NAMES) & {name.lower() for name in columns}:
        return {}  # a table about something else
    file = choose_column(columns, wanted, FILE_NAMES, "image")
    caption = choose_column(columns, options.caption_column, CAPTION_NAMES, "caption")
    above = entry.path.rpartition("/")[0]
    found = {}
    for row in rows:
        name = re.sub(r"^(\./)+", "", str(row.get(file) or "").replace("\\", "/"))
        found[f"{above}/{name}" if above else name] = clean(row.get(caption))
    return found


def _rows(folder: Place, entry: Entry) -> tuple[list[str], Iterable[dict]]:
    """The columns and the lines of a metadata file.  Raises UserError if it cannot be read, for a sheet on the way."""
    if entry.suffix == ".parquet":
        rows = text_rows(folder, entry)
        return _columns(rows), rows
    try:
        text = (folder / entry.path).read_text()
    except UnicodeDecodeError as error:
        raise UserError(f"{entry.path} is no UTF-8 text: save it as UTF-8.") from error
    if entry.suffix in SHEETS:
        lines = _sheet(text, entry.path)
        columns = next(lines, [])
        return columns, (dict(zip(columns, line)) for line in lines if line)
    try:
        rows = [json.loads(line) for line in text.split("\n") if line.strip()]  # other ends of a line may stand in a caption
    except (ValueError, RecursionError) as error:
        raise UserError(f"{entry.path} has a line that is no JSON: correct it or remove the file.") from error
    rows = [row for row in rows if isinstance(row, dict)]
    return _columns(rows), rows


def _sheet(text: str, where: str) -> Iterator[list[str]]:
    """The lines of a CSV file one by one: all of them with all columns may be far larger than the file."""
    separator = max(",;\t", key=text.split("\n", 1)[0].count)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    try:
        yield from csv.reader(io.StringIO(text), delimiter=separator)
    except csv.Error as error:
        raise UserError(f"{where} has a line that is no CSV: correct it or remove the file.") from error


def _columns(rows: Sequence[dict]) -> list[str]:
    return list(dict.fromkeys(chain.from_iterable(rows)))

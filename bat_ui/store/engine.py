"""The work of an ingest on one machine: read, decode, encode, write.

In: jobs, each a part of a source that is to go into a store.  Out: rows in the store's table, and the parts in its ledger.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import torch

from bat_ui.clip_space import ClipSpace
from bat_ui.errors import UserError
from bat_ui.pictures import MAX_BYTES, decode_picture
from bat_ui.store.index import update_by_id
from bat_ui.store.ledger import Entry, Ledger
from bat_ui.store.place import Place
from bat_ui.store.records import UNREAD, Record
from bat_ui.store.rows import arrow_table, picture_columns
from bat_ui.store.table import among, open_table, rows_among

BATCH = 64  # pictures that are encoded at once
AHEAD = 4 * BATCH  # pictures that are decoded ahead of the encoder, if their files have no more than MAX_HELD bytes
MAX_ROWS, MAX_HELD, MAX_SECONDS = 8192, 256_000_000, 30  # rows, bytes and time until what is done is written
KNOWN = "is in the store"
TWICE = "has the name of a picture before it"
PART_ROWS = 2**32  # numbers that a part's rows have to themselves


@dataclass(frozen=True)
class Job:
    """A part to read, for the store at `place` as it was at `version` of its table, when its ids were all indexed; `entry`
    is what the ledger will say of it."""

    part: object
    entry: Entry
    place: Place
    version: int
    link: bool

    def columns(self, position: int, record: Record) -> dict:
        """What is stored of a record beside its picture."""
        row = self.entry.number * PART_ROWS + position
        source = {"source": self.entry.name, "licence": self.entry.licence}
        return {"row": row, "id": record.id, "caption": record.caption} | source


@dataclass(frozen=True)
class Stored:
    """What the store has of a picture: the SHA-256 of its file, its caption."""

    digest: bytes
    caption: str


def records_of(job: Job) -> Iterator[tuple[int, Record, Stored | None]]:
    """The records of a part with their place in it and what the store had as their id before the ingest.

    A second record of an id has that as its problem.
    """
    table, seen = open_table(job.place), set()
    table.checkout(job.version)  # what was added since has other ids and is not indexed: looking there would cost n^2
    for chunk in chunks(enumerate(job.part.records()), AHEAD, lambda item: item[1].held):
        stored = stored_among(table, [record.id for _, record in chunk])
        for position, record in chunk:
            if record.id in seen:
                yield position, Record(record.id, problem=record.problem or TWICE), None
            else:
                seen.add(record.id)
                yield position, record, stored.get(record.id)


def stored_among(table, ids: Sequence[str]) -> dict[str, Stored]:
    """What the table has of those of the ids that it has."""
    rows = rows_among(table, ids, "digest", "caption").to_pylist() if table.count_rows() else []
    return {row["id"]: Stored(row["digest"], row["caption"]) for row in rows}


def new_caption(record: Record, stored: Stored | None) -> str | None:
    """The caption of a picture that the store has with another one."""
    return record.caption if stored and not record.problem and record.caption != stored.caption else None


def remove(table, ids: Sequence[str]) -> None:
    """Take rows out of the table; older snapshots keep them."""
    for some in chunks(ids, AHEAD):
        table.delete(among(some))


def recaption(table, captions: dict[str, str]) -> None:
    """Give rows of the table other captions, by their id."""
    if captions:
        update_by_id(table, pa.table({"id": list(captions), "caption": list(captions.values())}))


def chunks(items: Iterable, size: int, held: Callable[[object], int] = lambda item: 0) -> Iterator[list]:
    """The items in lists of `size`, or shorter ones that hold MAX_HELD bytes; the last one with what is left."""
    chunk, total = [], 0
    for item in items:
        chunk.append(item)
        total += held(item)
        if len(chunk) == size or total >= MAX_HELD:
            yield chunk
            chunk, total = [], 0
    if chunk:
        yield chunk


def prepare(
    record: Record, preprocess: Callable, link: bool, stored: Stored | None = None
) -> tuple[dict, torch.Tensor] | str:
    """A record's picture columns and what the encoder takes (3, size, size), or why it cannot be used.

    KNOWN if the file is the one that the store has as that id.
    """
    if record.problem:
        return KNOWN if stored else record.problem
    try:
        file = Place(record.uri).read_bytes(MAX_BYTES + 1) if record.data is None else record.data
        if stored and stored.digest == hashlib.sha256(file).digest():
            return KNOWN
        picture = decode_picture(file, "The picture")
    except UserError as problem:
        return str(problem)
    except FileNotFoundError:
        return "is not there any more"
    except OSError as problem:
        return f"{UNREAD}: {problem.strerror or problem}"
    return picture_columns(picture, file, record.uri if link else None), preprocess(picture)


class LocalEngine:
    """The engine of one machine: threads decode ahead, the encoder never waits for them if they can keep up."""

    def __init__(self, clip: ClipSpace, workers: int):
        self.clip, self.workers = clip, workers

    def __call__(self, jobs: Sequence[Job], ledger: Ledger, tally: Tally) -> None:
        if not jobs:
            return
        pending = _Pending(open_table(jobs[0].place), self.clip, ledger)
        with ThreadPoolExecutor(self.workers) as pool:
            for job, position, record, stored, result in self._prepared(jobs, pool):
                if record is None:
                    pending.end(job)
                    tally.end(job)
                    continue
                made = result.result()
                if made == KNOWN:
                    job.entry.pictures += 1
                    caption = new_caption(record, stored)
                    if caption is not None:
                        pending.recaption(record.id, caption)
                        job.entry.recaptioned += 1
                elif isinstance(made, str):
                    job.entry.broken.append({"file": record.id, "reason": made})
                else:
                    columns, pixels = made
                    pending.add(job.columns(position, record) | columns, pixels, replaces=stored is not None)
                    job.entry.pictures += 1
                    job.entry.replaced += stored is not None
                    tally.one()
            pending.write()

    def _prepared(
        self, jobs: Sequence[Job], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[Job, int, Record | None, Stored | None, Future | None]]:
        """Records in order, each with what is stored as its id and what becomes of it; a job ends with None."""
        window: deque = deque()
        held = 0
        for job in jobs:
            for position, record, stored in records_of(job):
                result = pool.submit(prepare, record, self.clip.preprocess, job.link, stored)
                window.append((job, position, record, stored, result))
                held += record.held
                while len(window) > AHEAD or held > MAX_HELD:
                    _, _, first, _, _ = oldest = window.popleft()
                    held -= first.held if first else 0
                    yield oldest
            window.append((job, 0, None, None, None))
        yield from window


class _Pending:
    """What is decoded but not encoded, what is encoded but not written, and which parts end with it."""

    def __init__(self, table, clip: ClipSpace, ledger: Ledger):
        self.table, self.clip, self.ledger = table, clip, ledger
        self.rows: list[dict] = []
        self.pixels: list[torch.Tensor] = []
        self.vectors: list[torch.Tensor] = []
        self.replaced: list[str] = []
        self.captions: dict[str, str] = {}
        self.ended: list[Entry] = []
        self.held, self.since = 0, time.monotonic()

    def add(self, row: dict, pixels: torch.Tensor, replaces: bool) -> None:
        """Take one picture, which `replaces` what the store has as its id; encodes and writes when there is enough."""
        self.rows.append(row)
        self.replaced += [row["id"]] if replaces else []
        self.pixels.append(pixels)
        self.held += len(row["image"] or b"")
        if len(self.pixels) == BATCH or self.held >= MAX_HELD:
            self._encode()
            late = time.monotonic() - self.since > MAX_SECONDS
            if late or len(self.rows) >= MAX_ROWS or self.held >= MAX_HELD:
                self.write()

    def recaption(self, id: str, caption: str) -> None:
        """A picture that is in the store has this caption by now."""
        self.captions[id] = caption
        if len(self.captions) >= MAX_ROWS:
            self.write()

    def end(self, job: Job) -> None:
        """The last picture of a part was taken."""
        self.ended.append(job.entry)

    def write(self) -> None:
        """Pictures first, then the parts that end with them."""
        self._encode()
        remove(self.table, self.replaced)  # killed after this, the next ingest finds them new
        if self.rows:
            self.table.add(arrow_table(self.rows, self.vectors, len(self.vectors[0])))
        recaption(self.table, self.captions)
        self.ledger.add(self.ended)
        self.rows, self.vectors, self.replaced, self.captions, self.ended = [], [], [], {}, []
        self.held, self.since = 0, time.monotonic()

    def _encode(self) -> None:
        if self.pixels:
            self.vectors += self.clip.embed_prepared(torch.stack(self.pixels))
            self.pixels = []


class Tally:
    """Reports progress in pictures; how many there will be, where the source does not say, is estimated from the size of
    the parts read so far."""

    def __init__(self, jobs: Sequence[Job], progress: Callable[[str, int, int], None]):
        self.progress, self.pictures, self.read = progress, 0, 0
        self.size = sum(job.part.size for job in jobs)
        counts = [getattr(job.part, "count", None) for job in jobs]  # a shard says it only when it is read
        self.total = None if None in counts else sum(counts)

    def one(self) -> None:
        """A picture was encoded."""
        self.pictures += 1
        if self.pictures % BATCH == 0:
            self._report()

    def end(self, job: Job, pictures: int = 0) -> None:
        """A part was read, and with it pictures that were not reported one by one."""
        self.read += job.part.size
        self.pictures += pictures
        self._report()

    def _report(self) -> None:
        total = self.total
        if total is None:
            total = round(self.pictures * self.size / self.read) if self.read else 0
        self.progress("Ingesting", self.pictures, max(total, self.pictures))

"""A backbone store: captioned pictures with their CLIP vectors, one LanceDB table in one folder or object store.

In: rows of picture, caption and vector.  Out: a `Store`, one unchanging snapshot of the table: rows in their order,
pictures by id, nearest neighbours.  `store.json` is written last and names the snapshot, so that a killed build or ingest
leaves nothing that could be mistaken for a store, and a store can be read while more is added to it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from filelock import FileLock
from PIL import Image

from bat_ui.errors import UserError
from bat_ui.pictures import MAX_BYTES, decode_picture
from bat_ui.store.index import search
from bat_ui.store.place import Place
from bat_ui.store.rows import Row, arrow_table, describe, matrix, schema, unit_vectors

SCHEMA = 2  # of the table and its store.json; a store of another schema has to be built anew
TABLE = "pictures"
MARKER = "store.json"
EXACT_ROWS = 100_000  # up to here all vectors are kept in memory and searched exactly
ROWS_PER_WRITE = 1024


@dataclass(frozen=True)
class StoreInfo:
    """What a store is: `version` changes whenever its content would, `encoder` is the digest of the CLIP model that
    made its vectors and `clip` its name, `source` and `licence` are for people.  `proxy` says that the pictures stand in
    for training data that is not public.  `snapshot` is the table's version that counts, 0 before there is any."""

    name: str
    title: str
    source: str
    licence: str
    version: str
    encoder: str
    count: int
    dim: int
    clip: str = ""
    proxy: bool = False
    snapshot: int = 0
    schema: int = SCHEMA

    @property
    def summary(self) -> dict:
        """What a selection, a report and a model card say about the store."""
        kept = ("name", "title", "count", "source", "licence", "proxy", "version")
        return {key: value for key, value in asdict(self).items() if key in kept}


class Store:
    """A complete store, read-only.  Every result is in the order of its rows or of the ids asked for.

    Raises UserError wherever its files turn out to be missing or damaged.
    """

    def __init__(self, place: Place, info: StoreInfo):
        self.place, self.info = place, info
        with _reading(info):
            self._table = open_table(place)
            try:
                self._table.checkout(info.snapshot)
            except ValueError as error:
                raise UserError(f"The store '{info.name}' is not complete: run its ingest again.") from error

    @classmethod
    def open(cls, place: str | Path) -> Store:
        """Raises UserError if there is no complete store of this schema at that path or URI."""
        place = Place.of(place)
        info = read_info(place)
        if info is None:
            raise UserError(f"'{place.uri}' holds no complete backbone store: build it again.")
        if not info.snapshot:
            raise UserError(f"The ingest of the store '{info.name}' has not come to its end: run it again, it goes on.")
        return cls(place, info)

    @classmethod
    def build(
        cls,
        folder: str | Path,
        rows: Iterable[Row],
        *,
        version: str,
        encoder: str,
        name: str,
        title: str,
        source: str,
        licence: str,
        clip: str = "",
    ) -> Store:
        """Write `rows` as a new store that takes the place of whatever store is in `folder`, which is on disk.

        Waits while another process builds there.  If `rows` raises, the store that was there before stays.
        Raises UserError for no rows, for an id that occurs twice and for vectors of different lengths.
        """
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        new, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
        with building_lock(folder):
            for leftover in (new, old):
                shutil.rmtree(leftover, ignore_errors=True)
            new.mkdir()
            try:
                count, dim, snapshot = _write_table(Place.of(new), rows)
                info = StoreInfo(name, title, source, licence, version, encoder, count, dim, clip, snapshot=snapshot)
                write_info(Place.of(new), info)
                if folder.exists():
                    folder.rename(old)
                new.rename(folder)
            finally:
                shutil.rmtree(new, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
        return cls(Place.of(folder), info)

    def check_encoder(self, digest: str) -> None:
        """Raises UserError if the vectors were not made by the CLIP model with that digest (ClipSpace.digest)."""
        if self.info.encoder != digest:
            raise UserError(
                f"The store '{self.info.title}' was made with another CLIP model than the backbone's: "
                "ingest its pictures with this backbone into a new store."
            )

    @property
    def folder(self) -> Path:
        """The folder of a store on disk."""
        return Path(self.place.uri)

    @property
    def count(self) -> int:
        """Number of rows n."""
        return self.info.count

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """All ids, in the order of the rows."""
        return tuple(self._columns["id"].to_pylist())

    @cached_property
    def captions(self) -> tuple[str, ...]:
        """All captions, in the order of the rows."""
        return tuple(self._columns["caption"].to_pylist())

    @cached_property
    def vectors(self) -> torch.Tensor:
        """All unit vectors (n, d), float32, in the order of the rows."""
        return unit_vectors(self._columns)

    def ids_at(self, places: Sequence[int]) -> list[str]:
        """Ids of the rows at these places, 0 to n - 1, without reading all the others of a large store."""
        if self.count <= EXACT_ROWS:
            return [self.ids[place] for place in places]
        wanted = sorted(set(places))
        with _reading(self.info):
            found = self._table.take_offsets(wanted).select(["id"]).to_arrow()["id"].to_pylist() if wanted else []
        id_at = dict(zip(wanted, found))
        return [id_at[place] for place in places]

    def captions_of(self, ids: Sequence[str]) -> list[str]:
        """Captions in the order of `ids`.  Raises KeyError for an id that is not in the store."""
        return self._fetch(ids, "caption")["caption"].to_pylist()

    def vectors_of(self, ids: Sequence[str]) -> torch.Tensor:
        """Unit vectors (len(ids), d), float32.  Raises KeyError for an id that is not in the store."""
        return unit_vectors(self._fetch(ids, "vector"))

    def pictures(self, ids: Sequence[str]) -> list[Image.Image]:
        """RGB pictures in the order of `ids`.  Raises KeyError for an id that is not in the store.

        Raises UserError if a picture that was left where it lay is not there any more.
        """
        found = self._fetch(ids, "image", "uri")
        return [_read(*row) for row in zip(ids, found["image"].to_pylist(), found["uri"].to_pylist())]

    def fingerprints_of(self, ids: Sequence[str]) -> np.ndarray:
        """What `fingerprint` gave for each picture, (len(ids), 768) float32.  Raises KeyError for an unknown id."""
        return matrix(self._fetch(ids, "fingerprint"), "fingerprint")

    def nearest(self, vectors: torch.Tensor, k: int) -> tuple[list[list[str]], torch.Tensor]:
        """The k rows nearest to each of the query vectors (q, d), nearest first.

        Returns ids, q lists of min(k, n), and their cosine similarities (q, min(k, n)), float32.  Exact up to
        EXACT_ROWS rows, where equals keep the order of the rows; above, by the table's index, if it has one.
        """
        k = min(k, self.count)
        queries = torch.nn.functional.normalize(vectors.float(), dim=1)
        if self.count > EXACT_ROWS:
            with _reading(self.info):
                return search(self._table, queries, k)
        similarity, rows = (queries @ self.vectors.T).sort(dim=1, descending=True, stable=True)
        return [[self.ids[r] for r in found] for found in rows[:, :k].tolist()], similarity[:, :k].contiguous()

    @cached_property
    def _columns(self) -> pa.Table:
        query = self._table.search().select(["row", "id", "caption", "vector"]).limit(self.count)
        with _reading(self.info):
            return query.to_arrow().sort_by([("row", "ascending"), ("id", "ascending")])

    def _fetch(self, ids: Sequence[str], *columns: str) -> pa.Table:
        wanted = list(dict.fromkeys(ids))
        if not wanted:
            return self._table.schema.empty_table().select(columns)
        with _reading(self.info):
            found = rows_among(self._table, wanted, *columns)
        place = {i: n for n, i in enumerate(found["id"].to_pylist())}
        return found.take([place[i] for i in ids]).select(columns)


def rows_among(table, ids: Sequence[str], *columns: str) -> pa.Table:
    """The id and other columns of those of the ids, one or more, that the table has, in any order."""
    return table.search().where(among(ids)).select(["id", *columns]).limit(len(ids)).to_arrow()


def among(ids: Iterable[str], column: str = "id") -> str:
    """The condition that a row's id is one of these, in SQL."""
    quoted = ", ".join("'" + i.replace("'", "''") + "'" for i in ids)
    return f"{column} IN ({quoted})"


def open_table(place: Place, name: str = TABLE, dim: int | None = None):
    """A table of the store; with `dim` the table of pictures is made if there is none."""
    import lancedb  # here, since it takes seconds to import and the page should be up before

    database = lancedb.connect(place.uri)
    return database.open_table(name) if dim is None else database.create_table(name, schema=schema(dim), exist_ok=True)


def read_info(place: Place | Path) -> StoreInfo | None:
    """What the marker of a store says, or None where there is no store of this schema."""
    place = place if isinstance(place, Place) else Place.of(place)
    try:
        info = StoreInfo(**json.loads((place / MARKER).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return info if info.schema == SCHEMA else None


def write_info(place: Place, info: StoreInfo) -> None:
    """Make `info` what the store is from now on."""
    (place / MARKER).write_text(json.dumps(asdict(info), indent=2, ensure_ascii=False))


def building_lock(folder: Path) -> FileLock:
    """The lock that a process holds while it builds the store at `folder`; the system frees it if the process dies."""
    return FileLock(folder.with_name(f".{folder.name}.lock"), is_singleton=True)


def _write_table(place: Place, rows: Iterable[Row]) -> tuple[int, int, int]:
    """Write `rows` chunk by chunk into a new table; returns the number of rows, the length of their vectors and the
    table's version."""
    rows, seen, table, dim = iter(rows), set(), None, 0
    while chunk := list(islice(rows, ROWS_PER_WRITE)):
        if table is None:
            dim = len(chunk[0].vector)
            table = open_table(place, dim=dim)
        described = [describe(row, len(seen) + n) for n, row in enumerate(chunk)]
        table.add(arrow_table(described, [row.vector for row in chunk], dim))
        before = len(seen)
        seen.update(row.id for row in chunk)
        if len(seen) != before + len(chunk):
            raise UserError("A backbone store needs a different id for every picture.")
    if table is None:
        raise UserError("A backbone store needs at least one picture.")
    return len(seen), dim, table.version


@contextmanager
def _reading(info: StoreInfo) -> Iterator[None]:
    """LanceDB meets missing and spoiled files with all three of these."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(f"The store '{info.name}' is damaged: ingest its pictures again, into a new store.") from error


def _read(id: str, image: bytes | None, uri: str | None) -> Image.Image:
    if image is None:
        try:
            image = Place.of(uri).read_bytes(MAX_BYTES + 1)
        except OSError as error:
            raise UserError(f"The picture {id} is not at {uri} any more: put it back or ingest without --link.") from error
    return decode_picture(image, id)

"""A backbone store: captioned pictures with their CLIP vectors, one LanceDB table in one folder.

In: rows of picture, caption and vector.  Out: a `Store` that is never changed afterwards: rows in their order,
pictures by id, nearest neighbours.  A store is built beside its place and moved there when complete, with `store.json`
as the marker, so that a killed build leaves nothing that could be mistaken for a store.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterable, Sequence
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

SCHEMA = 1  # of the table and its store.json; a store of another schema has to be built anew
TABLE = "pictures"
MARKER = "store.json"
GRID = 16  # of a fingerprint, width and height
EXACT_ROWS = 100_000  # up to here all vectors are kept in memory and searched exactly
ROWS_PER_WRITE = 1024


@dataclass(frozen=True)
class Row:
    """One picture to be stored; `vector` is its unit CLIP vector (d,), `source` and `licence` say where it is from."""

    id: str
    caption: str
    picture: Image.Image
    vector: np.ndarray | torch.Tensor
    source: str
    licence: str


@dataclass(frozen=True)
class StoreInfo:
    """What a store is: `version` changes whenever its content would, `encoder` is the digest of the CLIP model that
    made its vectors, `source` and `licence` are for people."""

    name: str
    title: str
    source: str
    licence: str
    version: str
    encoder: str
    count: int
    dim: int
    schema: int = SCHEMA


class Store:
    """A complete store on disk, read-only.  Every result is in the order of its rows or of the ids asked for."""

    def __init__(self, folder: Path, info: StoreInfo):
        import lancedb  # here, since it takes seconds to import and the page should be up before

        self.folder, self.info = folder, info
        self._table = lancedb.connect(folder).open_table(TABLE)

    @classmethod
    def open(cls, folder: str | Path) -> Store:
        """Raises UserError if the folder holds no complete store of this schema."""
        folder = Path(folder)
        info = read_info(folder)
        if info is None:
            raise UserError(f"'{folder}' holds no complete backbone store: build it again.")
        return cls(folder, info)

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
    ) -> Store:
        """Write `rows` as a new store that takes the place of whatever store is at `folder`.

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
                count, dim = _write_table(new, rows)
                info = StoreInfo(name, title, source, licence, version, encoder, count, dim)
                (new / MARKER).write_text(json.dumps(asdict(info), indent=2, ensure_ascii=False), encoding="utf-8")
                if folder.exists():
                    folder.rename(old)
                new.rename(folder)
            finally:
                shutil.rmtree(new, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
        return cls(folder, info)

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
        return _vectors(self._columns)

    def captions_of(self, ids: Sequence[str]) -> list[str]:
        """Captions in the order of `ids`.  Raises KeyError for an id that is not in the store."""
        return self._fetch(ids, "caption")["caption"].to_pylist()

    def vectors_of(self, ids: Sequence[str]) -> torch.Tensor:
        """Unit vectors (len(ids), d), float32.  Raises KeyError for an id that is not in the store."""
        return _vectors(self._fetch(ids, "vector"))

    def pictures(self, ids: Sequence[str]) -> list[Image.Image]:
        """RGB pictures in the order of `ids`.  Raises KeyError for an id that is not in the store."""
        return [_decode(png) for png in self._fetch(ids, "image")["image"].to_pylist()]

    def fingerprints_of(self, ids: Sequence[str]) -> np.ndarray:
        """What `fingerprint` gave for each picture, (len(ids), 768) float32.  Raises KeyError for an unknown id."""
        return _matrix(self._fetch(ids, "fingerprint"), "fingerprint")

    def nearest(self, vectors: torch.Tensor, k: int) -> tuple[list[list[str]], torch.Tensor]:
        """The k rows nearest to each of the query vectors (q, d), nearest first.

        Returns ids, q lists of min(k, n), and their cosine similarities (q, min(k, n)), float32.  Exact up to
        EXACT_ROWS rows, where equals keep the order of the rows; above, LanceDB searches, by an index if it has one.
        """
        k = min(k, self.count)
        queries = torch.nn.functional.normalize(vectors.float(), dim=1)
        if self.count <= EXACT_ROWS:
            similarity, rows = (queries @ self.vectors.T).sort(dim=1, descending=True, stable=True)
            return [[self.ids[r] for r in found] for found in rows[:, :k].tolist()], similarity[:, :k].contiguous()
        found = []
        for query in queries.numpy():
            search = self._table.search(query).distance_type("cosine").select(["id", "_distance"])
            found.append(search.limit(k).to_arrow())
        similarity = np.stack([1 - table["_distance"].to_numpy() for table in found])
        return [table["id"].to_pylist() for table in found], torch.from_numpy(similarity)

    @cached_property
    def _columns(self) -> pa.Table:
        query = self._table.search().select(["row", "id", "caption", "vector"]).limit(self.count)
        return query.to_arrow().sort_by("row")

    def _fetch(self, ids: Sequence[str], column: str) -> pa.Table:
        wanted = dict.fromkeys(ids)
        if not wanted:
            return self._table.schema.empty_table().select([column])
        quoted = ", ".join("'" + i.replace("'", "''") + "'" for i in wanted)
        query = self._table.search().where(f"id IN ({quoted})").select(["id", column]).limit(len(wanted))
        found = query.to_arrow()
        place = {i: n for n, i in enumerate(found["id"].to_pylist())}
        return found.take([place[i] for i in ids]).select([column])


def read_info(folder: Path) -> StoreInfo | None:
    """What the marker of a store says, or None where there is no complete store of this schema."""
    try:
        info = StoreInfo(**json.loads((folder / MARKER).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return info if info.schema == SCHEMA else None


def building_lock(folder: Path) -> FileLock:
    """The lock that a process holds while it builds the store at `folder`; the system frees it if the process dies."""
    return FileLock(folder.with_name(f".{folder.name}.lock"), is_singleton=True)


def fingerprint(picture: Image.Image) -> np.ndarray:
    """The picture's colours on a 16 x 16 grid, (768,) float32 in 0..255: nearly equal for the same picture at another
    size or compression.  The root mean square of a difference is in grey levels.

    Stands where hashes of a few bits would, since those confuse simple drawings (the flags of France and Belgium, or
    one face in two moods).
    """
    grid = picture.convert("RGB").resize((GRID, GRID), Image.Resampling.BOX)
    return np.asarray(grid, dtype=np.float32).ravel()


def _write_table(folder: Path, rows: Iterable[Row]) -> tuple[int, int]:
    """Write `rows` chunk by chunk into a new table; returns the number of rows and the length of their vectors."""
    import lancedb

    rows, seen, table, dim = iter(rows), set(), None, 0
    while chunk := list(islice(rows, ROWS_PER_WRITE)):
        if table is None:
            dim = len(chunk[0].vector)
            table = lancedb.connect(folder).create_table(TABLE, schema=_schema(dim))
        table.add(_batch(chunk, len(seen), dim))
        before = len(seen)
        seen.update(row.id for row in chunk)
        if len(seen) != before + len(chunk):
            raise UserError("A backbone store needs a different id for every picture.")
    if table is None:
        raise UserError("A backbone store needs at least one picture.")
    return len(seen), dim


def _schema(dim: int) -> pa.Schema:
    return pa.schema(
        [
            ("row", pa.int64()),
            ("id", pa.string()),
            ("caption", pa.string()),
            ("image", pa.binary()),  # PNG
            ("fingerprint", pa.list_(pa.uint8(), 3 * GRID * GRID)),
            ("vector", pa.list_(pa.float16(), dim)),
            ("source", pa.string()),
            ("licence", pa.string()),
        ]
    )


def _batch(chunk: list[Row], start: int, dim: int) -> pa.Table:
    lengths = {len(row.vector) for row in chunk} | {dim}
    if len(lengths) > 1:
        raise UserError(f"A backbone store needs vectors of one length, not of {sorted(lengths)}: use one CLIP model.")
    vectors = np.stack([np.asarray(row.vector, dtype=np.float32) for row in chunk])
    columns = {
        "row": np.arange(start, start + len(chunk)),
        "id": [row.id for row in chunk],
        "caption": [row.caption for row in chunk],
        "image": [_encode(row.picture) for row in chunk],
        "fingerprint": _lists(np.stack([fingerprint(row.picture) for row in chunk]).astype(np.uint8)),
        "vector": _lists(vectors.astype(np.float16)),
        "source": [row.source for row in chunk],
        "licence": [row.licence for row in chunk],
    }
    return pa.table(columns, schema=_schema(dim))


def _lists(matrix: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), matrix.shape[1])


def _matrix(table: pa.Table, column: str) -> np.ndarray:
    """A column of fixed-size lists as float32 (rows, size)."""
    lists = table[column].combine_chunks()
    return lists.flatten().to_numpy().astype(np.float32).reshape(len(lists), lists.type.list_size)


def _vectors(table: pa.Table) -> torch.Tensor:
    """The vectors (n, d), float32, of unit length again, which half precision took from them."""
    return torch.nn.functional.normalize(torch.from_numpy(_matrix(table, "vector")), dim=1)


def _encode(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def _decode(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png), formats=["PNG"]).convert("RGB")

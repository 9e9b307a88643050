"""The rows of a store's table: their schema, and what is computed of each picture beside its CLIP vector.

In: pictures, captions, vectors.  Out: an Arrow table that can be added to the store.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from bat_ui.errors import UserError

GRID = 16  # of a fingerprint, width and height


@dataclass(frozen=True)
class Row:
    """One picture to be stored; `vector` is its unit CLIP vector (d,), `source` and `licence` say where it is from."""

    id: str
    caption: str
    picture: Image.Image
    vector: np.ndarray | torch.Tensor
    source: str
    licence: str


def schema(dim: int) -> pa.Schema:
    """Columns of a store with CLIP vectors of length `dim`.

    row: the order; image: the picture file, or uri: where it lies; width, height: pixels of the upright picture; digest:
    SHA-256 of the file; hash: `perceptual_hash`; duplicate_of: id of the first row with the same picture, and duplicate:
    'exact' if their files are equal, 'near' if they only look the same.
    """
    return pa.schema(
        [
            ("row", pa.int64()),
            ("id", pa.string()),
            ("caption", pa.string()),
            ("image", pa.binary()),
            ("uri", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("digest", pa.binary(32)),
            ("hash", pa.int64()),
            ("fingerprint", pa.list_(pa.uint8(), 3 * GRID * GRID)),
            ("vector", pa.list_(pa.float16(), dim)),
            ("source", pa.string()),
            ("licence", pa.string()),
            ("duplicate_of", pa.string()),
            ("duplicate", pa.string()),
        ]
    )


def describe(row: Row, number: int) -> dict:
    """The columns of a row but its vector; the picture is stored as PNG."""
    buffer = io.BytesIO()
    row.picture.convert("RGB").save(buffer, "PNG")
    columns = {"row": number, "id": row.id, "caption": row.caption, "source": row.source, "licence": row.licence}
    return columns | picture_columns(row.picture, buffer.getvalue())


def picture_columns(picture: Image.Image, file: bytes, uri: str | None = None) -> dict:
    """What is stored of an upright RGB picture that came as `file`; with a `uri` the file stays where it is."""
    return {
        "image": file if uri is None else None,
        "uri": uri,
        "width": picture.width,
        "height": picture.height,
        "digest": hashlib.sha256(file).digest(),
        "hash": perceptual_hash(picture),
        "fingerprint": fingerprint(picture).astype(np.uint8),
    }


def arrow_table(rows: Sequence[dict], vectors: Sequence[np.ndarray | torch.Tensor], dim: int) -> pa.Table:
    """Rows from `describe` with their unit vectors, n of length `dim`.  Raises UserError for a vector of another length."""
    lengths = {len(vector) for vector in vectors} | {dim}
    if len(lengths) > 1:
        raise UserError(f"A backbone store needs vectors of one length, not of {sorted(lengths)}: use one CLIP model.")
    lists = {
        "fingerprint": _lists(np.stack([row["fingerprint"] for row in rows])),
        "vector": _lists(np.stack([np.asarray(vector, dtype=np.float32) for vector in vectors]).astype(np.float16)),
    }
    names = schema(dim).names
    columns = {name: lists[name] if name in lists else [row.get(name) for row in rows] for name in names}
    return pa.table(columns, schema=schema(dim))


def fingerprint(picture: Image.Image) -> np.ndarray:
    """The picture's colours on a 16 x 16 grid, (768,) float32 in 0..255: nearly equal for the same picture at another
    size or compression.  The root mean square of a difference is in grey levels.

    Decides where the few bits of `perceptual_hash` cannot, since those confuse simple drawings (the flags of France and
    Belgium, or one face in two moods).
    """
    grid = picture.convert("RGB").resize((GRID, GRID), Image.Resampling.BOX)
    return np.asarray(grid, dtype=np.float32).ravel()


def perceptual_hash(picture: Image.Image) -> int:
    """64 bits as a signed integer: which of the 8 x 8 lowest frequencies of the grey picture are above their median.

    The same picture at another size or compression has a hash that differs in few bits, which makes copies quick to
    find among millions.
    """
    grey = np.asarray(picture.convert("L").resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float32)
    low = cv2.dct(grey)[:8, :8].ravel()
    bits = low > np.median(low[1:])  # the first is the mean brightness
    return int(np.packbits(bits).view(">i8")[0])


def matrix(table: pa.Table, column: str) -> np.ndarray:
    """A column of fixed-size lists as float32 (rows, size)."""
    lists = table[column].combine_chunks()
    return lists.flatten().to_numpy().astype(np.float32).reshape(len(lists), lists.type.list_size)


def unit_vectors(table: pa.Table) -> torch.Tensor:
    """The vectors (n, d), float32, of unit length again, which half precision took from them."""
    return torch.nn.functional.normalize(torch.from_numpy(matrix(table, "vector")), dim=1)


def _lists(values: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])

"""Marks in a store which pictures it has twice: exact copies, and near ones such as another size or compression.

In: a table of pictures.  Out: its columns duplicate_of and duplicate (rows.py).  Pictures are compared where their
perceptual hashes differ in at most MAX_BITS bits; what decides is the fingerprint.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pyarrow as pa

from bat_ui.store.index import update_by_id
from bat_ui.store.rows import matrix

MAX_BITS = 4  # photographs saved again or at another size differ in no more
# A pair with no more different bits has three of these seven blocks of its hash in common.
BLOCKS = tuple(((1 << size) - 1) << start for start, size in [(0, 10), *((10 + 9 * n, 9) for n in range(6))])
COMMON = len(BLOCKS) - MAX_BITS
NEIGHBOURS = 4  # compared with each row among those that have the same blocks, sorted by hash
SAME_PICTURE = 4.0  # root mean square between fingerprints, in grey levels: resized and recompressed copies are below
ROWS_PER_READ = 4096


def mark_duplicates(table) -> tuple[int, int]:
    """Bring the marks up to date; returns the numbers of exact and of near duplicates.  Twice changes nothing."""
    marks = find_duplicates(table)
    before = table.search().where("duplicate_of IS NOT NULL").select(["id", "duplicate_of", "duplicate"])
    old = {
        row["id"]: (row["duplicate_of"], row["duplicate"]) for row in before.limit(table.count_rows()).to_arrow().to_pylist()
    }
    changed = {id: marks.get(id, (None, None)) for id in marks.keys() | old.keys() if marks.get(id) != old.get(id)}
    if changed:
        rows = [{"id": id, "duplicate_of": of, "duplicate": kind} for id, (of, kind) in sorted(changed.items())]
        fields = pa.schema([(name, pa.string()) for name in ("id", "duplicate_of", "duplicate")])
        update_by_id(table, pa.Table.from_pylist(rows, schema=fields))
    exact = sum(kind == "exact" for _, kind in marks.values())
    return exact, len(marks) - exact


def find_duplicates(table) -> dict[str, tuple[str, str]]:
    """(id of the first row with the picture, 'exact' or 'near') by id, for all rows but the first ones."""
    hashes = table.search().select(["hash"]).with_row_id(True).limit(table.count_rows()).to_arrow()
    row_ids = hashes["_rowid"].to_numpy()
    marks: dict[str, tuple[str, str]] = {}
    for family in _families(hashes["hash"].to_numpy()):
        rows = _read(table, row_ids[family])
        order = np.lexsort((rows["id"].to_numpy(zero_copy_only=False), rows["row"].to_numpy()))
        ids, digests, fingerprints = rows["id"].to_pylist(), rows["digest"].to_pylist(), matrix(rows, "fingerprint")
        firsts: list[int] = []
        for i in order.tolist():
            apart = np.sqrt(np.square(fingerprints[firsts] - fingerprints[i]).mean(axis=1)) if firsts else np.empty(0)
            if len(apart) and apart.min() < SAME_PICTURE:
                first = firsts[int(apart.argmin())]
                marks[ids[i]] = (ids[first], "exact" if digests[i] == digests[first] else "near")
            else:
                firsts.append(i)
    return marks


def _families(hashes: np.ndarray) -> Iterator[np.ndarray]:
    """Indices of rows that are linked by hashes MAX_BITS apart, directly or through others; two rows at least."""
    leader: dict[int, int] = {}

    def lead(i: int) -> int:
        while i in leader:
            i = leader[i]
        return i

    values = hashes.view(np.uint64)
    for blocks in combinations(BLOCKS, COMMON):
        mask = np.uint64(sum(blocks))
        order = np.lexsort((values, values & mask))
        ordered = values[order]
        for step in range(1, NEIGHBOURS + 1):
            one, other = ordered[:-step], ordered[step:]
            bits = np.bitwise_count(one ^ other)
            for at in np.flatnonzero(((one & mask) == (other & mask)) & (bits <= MAX_BITS)).tolist():
                a, b = sorted((lead(int(order[at])), lead(int(order[at + step]))))
                if a != b:
                    leader[b] = a
    families: dict[int, list[int]] = {}
    for i in leader:
        families.setdefault(lead(i), []).append(i)
    for first, others in sorted(families.items()):
        yield np.array([first, *others])


def _read(table, row_ids: np.ndarray) -> pa.Table:
    columns = ["row", "id", "digest", "fingerprint"]
    starts = range(0, len(row_ids), ROWS_PER_READ)
    return pa.concat_tables(
        [table.take_row_ids(row_ids[s : s + ROWS_PER_READ].tolist()).select(columns).to_arrow() for s in starts]
    )

"""The indexes of a large store and the search through them.

In: a LanceDB table with unit vectors.  Out: a BTREE over the ids; above EXACT_ROWS of table.py an IVF_PQ index over the
vectors, whose hits are measured again on the full vectors, since compressed distances alone put many in the wrong order.
"""

from __future__ import annotations

import math
from datetime import timedelta

import numpy as np
import pyarrow as pa
import torch

ROWS_PER_PARTITION = 4096
DIMENSIONS_PER_CODE = 4  # a byte stands for so many numbers of a vector
ITERATIONS = 12  # of k-means; more cost time and find nothing more
MIN_PROBES = 40  # partitions that are looked into
ROWS_PER_RESULT = 128  # rows that are looked at for each one asked for, at least
REFINE = 6  # hits measured on the full vectors for each one asked for
KEPT = timedelta(hours=1)  # that older snapshots stay readable
FOREVER = timedelta(days=36_500)


def build_indexes(table, with_vectors: bool) -> None:
    """Make the indexes that are missing and bring the others up to date; older snapshots stay as they are."""
    from lancedb.index import IvfPq

    known = {name for index in table.list_indices() for name in index.columns}
    if known:
        table.optimize(cleanup_older_than=FOREVER)
    index_ids(table)
    if with_vectors and "vector" not in known:
        dim = table.schema.field("vector").type.list_size
        config = IvfPq(
            distance_type="cosine",
            num_partitions=max(1, table.count_rows() // ROWS_PER_PARTITION),
            num_sub_vectors=max(1, dim // DIMENSIONS_PER_CODE),
            max_iterations=ITERATIONS,
        )
        table.create_index("vector", config=config)


def index_ids(table) -> None:
    """Make the index over the ids, anew if there are rows that it lacks; an empty table needs none."""
    from lancedb.index import BTree

    if not table.count_rows():
        return
    name = next((index.name for index in table.list_indices() if index.columns == ["id"]), None)
    if name is None or table.index_stats(name).num_unindexed_rows:
        table.create_index("id", config=BTree(), replace=True)


def update_by_id(table, values: pa.Table) -> None:
    """Give rows that the table has, found by their id, the values of the other columns."""
    index_ids(table)  # a merge reads whole rows, with their pictures, into memory where it finds no index
    table.merge_insert("id").when_matched_update_all().execute(values)
    index_ids(table)  # which has lost the rows' fragments by that


def drop_old(table) -> None:
    """Remove snapshots that have been old for a while."""
    table.optimize(cleanup_older_than=KEPT)


def search(table, queries: torch.Tensor, k: int) -> tuple[list[list[str]], torch.Tensor]:
    """Ids of the k rows nearest to each unit query (q, d), nearest first, and their cosines (q, k), float32.

    Approximate if the vectors are indexed, else exact.
    """
    probes = max(MIN_PROBES, math.ceil(k * ROWS_PER_RESULT / ROWS_PER_PARTITION))
    found = (
        table.search(queries.numpy(), vector_column_name="vector")
        .distance_type("cosine")
        .nprobes(probes)
        .refine_factor(REFINE)
        .select(["id", "_distance"])
        .limit(k)
        .to_arrow()
    )
    query = found["query_index"].to_numpy() if "query_index" in found.column_names else np.zeros(len(found), int)
    hits = [found.filter(query == q).sort_by("_distance") for q in range(len(queries))]
    shortest = min(len(hit) for hit in hits)
    similarity = np.stack([1 - hit["_distance"].to_numpy()[:shortest] for hit in hits]).astype(np.float32)
    return [hit["id"].to_pylist()[:shortest] for hit in hits], torch.from_numpy(similarity)

"""The indexes of a large store find what an exact search finds, also what was added later."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from bat_ui.store import index
from bat_ui.store.index import build_indexes, search, update_by_id
from bat_ui.store.place import Place
from bat_ui.store.rows import GRID, arrow_table
from bat_ui.store.table import open_table

DIM = 16


@pytest.fixture
def grow(tmp_path, monkeypatch):
    """grow(start, stop): add rows with clustered vectors and bring the indexes up to date; gives the table."""
    monkeypatch.setattr(index, "ROWS_PER_PARTITION", 128)
    monkeypatch.setattr(index, "MIN_PROBES", 6)
    table = open_table(Place.of(tmp_path / "store"), dim=DIM)

    def make(start: int, stop: int):
        rows = [
            {"row": n, "id": f"it's {n}", "fingerprint": np.zeros(3 * GRID * GRID, np.uint8)} for n in range(start, stop)
        ]
        table.add(arrow_table(rows, vectors(start, stop), DIM))
        build_indexes(table, with_vectors=True)
        return table

    return make


def vectors(start: int, stop: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((20, DIM))
    found = centres[rng.integers(20, size=2000)] + 0.5 * rng.standard_normal((2000, DIM))
    return (found / np.linalg.norm(found, axis=1, keepdims=True))[start:stop].astype(np.float32)


def recall(table, n: int, k: int = 30) -> float:
    queries = vectors(1500, 1520)
    ids, similarity = search(table, torch.from_numpy(queries), k)
    exact = queries @ vectors(0, n).T
    best = np.argsort(-exact, axis=1)[:, :k]
    assert similarity.shape == (20, k) and (similarity.diff(dim=1) <= 1e-6).all()
    np.testing.assert_allclose(similarity[:, 0], exact.max(axis=1), atol=2e-3)
    return float(np.mean([len({f"it's {i}" for i in row} & set(found)) / k for row, found in zip(best.tolist(), ids)]))


def test_recall_beside_brute_force(grow):
    table = grow(0, 1200)
    assert {i.index_type for i in table.list_indices()} == {"BTree", "IvfPq"}
    assert recall(table, 1200) >= 0.98


def test_rows_that_came_later_are_indexed_and_found(grow):
    grow(0, 1200)
    table = grow(1200, 1500)
    for found in table.list_indices():
        assert table.index_stats(found.name).num_unindexed_rows == 0
    assert recall(table, 1500) >= 0.98


def test_values_given_by_id_leave_everything_indexed(grow):
    table = grow(0, 1200)
    update_by_id(table, pa.table({"id": ["it's 3"], "caption": ["three"]}))
    assert table.search().where("caption = 'three'").to_arrow()["id"].to_pylist() == ["it's 3"]
    for found in table.list_indices():
        assert table.index_stats(found.name).num_unindexed_rows == 0

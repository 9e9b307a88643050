import json

import numpy as np
import pytest
import torch

from bat_ui.errors import UserError
from bat_ui.store import table
from bat_ui.store.rows import fingerprint
from bat_ui.store.table import Store


def unit(n, dim, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def vectors():
    return unit(40, 8)


@pytest.fixture
def store(build, picture, vectors):
    return build([(f"it's {i}", picture(i), vectors[i]) for i in range(40)])


def test_rows_keep_their_order_across_writes(build, picture, vectors, monkeypatch):
    monkeypatch.setattr(table, "ROWS_PER_WRITE", 7)
    names = [f"{(i * 17) % 40}" for i in range(40)]
    store = build([(name, picture(i), vectors[i]) for i, name in enumerate(names)])
    assert store.count == 40
    assert store.ids == tuple(names)
    assert store.captions == tuple(f"caption of {name}" for name in names)
    np.testing.assert_allclose(store.vectors.numpy(), vectors, atol=2e-3)


def test_vectors_have_unit_length_in_single_precision(store):
    assert store.vectors.dtype == torch.float32
    np.testing.assert_allclose(store.vectors.norm(dim=1).numpy(), 1, atol=1e-6)


def test_pictures_come_back_pixel_by_pixel_in_the_order_asked_for(store, picture):
    for n, image in zip((3, 1, 3), store.pictures(["it's 3", "it's 1", "it's 3"]), strict=True):
        assert image.mode == "RGB"
        assert image.tobytes() == picture(n).tobytes()


def test_captions_and_vectors_follow_the_ids(store):
    assert store.captions_of(["it's 5", "it's 2"]) == ["caption of it's 5", "caption of it's 2"]
    assert torch.equal(store.vectors_of(["it's 5", "it's 2"]), store.vectors[[5, 2]])
    assert store.captions_of([]) == []


def test_an_unknown_id_is_a_key_error(store):
    with pytest.raises(KeyError):
        store.captions_of(["it's 1", "nobody"])


def test_nearest_agrees_with_brute_force(store, vectors):
    queries = unit(3, 8, seed=1)
    ids, similarity = store.nearest(torch.from_numpy(queries * 5), 10)  # the length of a query does not count
    cosine = queries @ vectors.T
    for q in range(3):
        order = np.argsort(-cosine[q])[:10]
        assert ids[q] == [f"it's {i}" for i in order]
        np.testing.assert_allclose(similarity[q].numpy(), cosine[q, order], atol=2e-3)


def test_the_search_of_large_stores_agrees_with_the_exact_one(store, monkeypatch):
    queries = torch.from_numpy(unit(3, 8, seed=1))
    exact_ids, exact = store.nearest(queries, 10)
    monkeypatch.setattr(table, "EXACT_ROWS", 0)
    ids, similarity = store.nearest(queries, 10)
    assert ids == exact_ids
    np.testing.assert_allclose(similarity.numpy(), exact.numpy(), atol=2e-3)


def test_nearest_gives_no_more_than_there_is(store):
    ids, similarity = store.nearest(torch.eye(8)[:2], 1000)
    assert [len(found) for found in ids] == [40, 40]
    assert similarity.shape == (2, 40)


def test_equally_near_rows_keep_their_order(build, picture):
    store = build([(name, picture(i), [1.0, 0.0]) for i, name in enumerate("dbca")])
    assert store.nearest(torch.tensor([[1.0, 1.0]]), 3)[0] == [["d", "b", "c"]]


def test_what_was_built_can_be_opened_again(store):
    again = Store.open(store.folder)
    assert again.info == store.info
    assert again.ids == store.ids


def test_a_folder_without_the_marker_is_no_store(store):
    (store.folder / "store.json").unlink()
    with pytest.raises(UserError, match="build it again"):
        Store.open(store.folder)


def test_a_store_of_another_schema_is_not_opened(store):
    marker = store.folder / "store.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"schema": 0}))
    with pytest.raises(UserError):
        Store.open(store.folder)


def test_a_failing_build_leaves_the_store_that_was_there(store, picture, build):
    def rows():
        yield "new", picture(0), [1.0, 0.0]
        raise OSError("the source went away")

    with pytest.raises(OSError, match="went away"):
        build(rows(), folder=store.folder)
    assert Store.open(store.folder).ids == store.ids
    assert not [path for path in store.folder.parent.iterdir() if path.name.endswith((".new", ".old"))]


def test_a_build_replaces_the_store_and_clears_what_a_killed_one_left(store, picture, build):
    for leftover in (".store.new", ".store.old"):
        (store.folder.parent / leftover / "pictures.lance").mkdir(parents=True)
        (store.folder.parent / leftover / "pictures.lance" / "half").write_text("half a table")
    assert build([("only", picture(0), [1.0, 0.0])], folder=store.folder).ids == ("only",)
    assert Store.open(store.folder).ids == ("only",)
    assert {path.name for path in store.folder.parent.iterdir()} <= {"store", ".store.lock"}


def test_a_store_needs_rows_with_different_ids_and_vectors_of_one_length(build, picture):
    with pytest.raises(UserError, match="at least one"):
        build([])
    with pytest.raises(UserError, match="different id"):
        build([("a", picture(0), [1.0, 0.0]), ("a", picture(1), [0.0, 1.0])])
    with pytest.raises(UserError, match="length"):
        build([("a", picture(0), [1.0, 0.0]), ("b", picture(1), [0.0, 1.0, 0.0])])


def test_a_fingerprint_survives_resizing_but_not_another_picture(picture):
    def apart(a, b):
        return np.sqrt(np.square(fingerprint(a) - fingerprint(b)).mean())

    assert apart(picture(0), picture(0).resize((96, 96), 0)) < 1
    assert apart(picture(0), picture(1)) > 50

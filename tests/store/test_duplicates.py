import io

import numpy as np
import pytest
from PIL import Image

from bat_ui.store.duplicates import MAX_BITS, _families, find_duplicates, mark_duplicates
from bat_ui.store.ingest import ingest
from bat_ui.store.rows import perceptual_hash
from bat_ui.store.table import Store, open_table


def smooth(seed: int) -> Image.Image:
    """A picture with few frequencies, as photos have, so that its copies are near to it."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((128, 128), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    """a, b, c differ; a-copy is a's file, a-small a's picture at another size, b-jpeg b's with compression."""
    place = tmp_path / "pictures"
    place.mkdir()
    for seed, name in enumerate("abc"):
        smooth(seed).save(place / f"{name}.png")
    (place / "a-copy.png").write_bytes((place / "a.png").read_bytes())
    smooth(0).resize((80, 80), Image.Resampling.BICUBIC).save(place / "z-small.png")
    smooth(1).save(place / "z-jpeg.jpg", quality=85)
    for path in list(place.iterdir()):
        path.with_suffix(".txt").write_text(path.stem)
    return place


def marks(store) -> dict:
    table = open_table(Store.open(store).place)
    rows = table.search().select(["id", "duplicate_of", "duplicate"]).limit(100).to_arrow().to_pylist()
    return {row["id"].removeprefix("pictures/"): (row["duplicate_of"], row["duplicate"]) for row in rows if row["duplicate"]}


def test_exact_and_near_copies_are_marked_with_the_first_one(folder, real_clip, tmp_path):
    report = ingest(str(folder), tmp_path / "store", real_clip)
    assert (report.exact, report.near) == (1, 2)
    assert marks(tmp_path / "store") == {
        "a.png": ("pictures/a-copy.png", "exact"),
        "z-small.png": ("pictures/a-copy.png", "near"),
        "z-jpeg.jpg": ("pictures/b.png", "near"),
    }


def test_marks_follow_what_is_added_and_a_second_time_changes_nothing(folder, real_clip, tmp_path):
    kept = (folder / "z-small.png").read_bytes()
    (folder / "z-small.png").unlink()
    ingest(str(folder), tmp_path / "store", real_clip)
    (folder / "z-small.png").write_bytes(kept)
    assert ingest(str(folder), tmp_path / "store", real_clip).near == 2
    table = open_table(Store.open(tmp_path / "store").place)
    version = table.version
    assert mark_duplicates(table) == (1, 2) and table.version == version


def test_ids_are_indexed_before_marks_are_written_and_after(folder, real_clip, tmp_path, monkeypatch):
    """A merge into rows that are in no index reads all their pictures into memory."""

    def unindexed(table) -> list[int]:
        return [table.index_stats(i.name).num_unindexed_rows for i in table.list_indices() if i.columns == ["id"]]

    seen = []
    monkeypatch.setattr(
        "bat_ui.store.ingest.mark_duplicates", lambda table: (seen.append(unindexed(table)), mark_duplicates(table))[1]
    )
    ingest(str(folder), tmp_path / "store", real_clip)
    smooth(9).save(folder / "y.png")
    (folder / "y.txt").write_text("y")
    ingest(str(folder), tmp_path / "store", real_clip)
    assert seen == [[0], [0]] and unindexed(open_table(Store.open(tmp_path / "store").place)) == [0]


def test_hashes_of_copies_differ_in_few_bits_and_of_others_in_many():
    def apart(a, b):
        return bin((perceptual_hash(a) ^ perceptual_hash(b)) & (2**64 - 1)).count("1")

    for seed in range(20):
        image, buffer = smooth(seed), io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        assert apart(image, Image.open(buffer)) <= MAX_BITS
        assert apart(image, smooth(seed + 100)) > 8


def test_families_are_those_of_a_comparison_of_all_pairs():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 300, dtype=np.int64).view(np.uint64)
    for i in range(0, 120, 3):  # rows i + 1 and i + 2 are one and two bits away from row i
        hashes[i + 1] = hashes[i] ^ np.uint64(1 << int(rng.integers(64)))
        hashes[i + 2] = hashes[i + 1] ^ np.uint64(1 << int(rng.integers(64)))
    near = np.array([[bin(int(a ^ b)).count("1") <= MAX_BITS for b in hashes] for a in hashes])
    for _ in range(4):
        near = near @ near
    expected = {tuple(np.flatnonzero(row)) for row in near if row.sum() > 1}
    assert {tuple(sorted(family.tolist())) for family in _families(hashes.view(np.int64))} == expected


def test_pictures_of_one_hash_that_look_different_are_no_duplicates(build):
    flat = [(str(n), Image.new("RGB", (32, 32), (40 * n, 0, 0)), np.eye(8)[n]) for n in range(5)]
    store = build([*flat, ("again", Image.new("RGB", (48, 48), (80, 0, 0)), np.eye(8)[5])])
    assert find_duplicates(open_table(store.place)) == {"again": ("2", "near")}

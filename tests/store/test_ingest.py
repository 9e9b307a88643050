"""Ingest: what goes in, what is refused, and that neither a second run nor a killed one changes the outcome."""

import csv
import io
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from PIL import Image

from bat_ui.errors import UserError
from bat_ui.store import engine
from bat_ui.store.ingest import ingest
from bat_ui.store.place import Place
from bat_ui.store.table import Store, among, open_table, write_info


def content(store) -> list[dict]:
    """All rows, sorted by id, without the order that they were written in."""
    table = open_table(Store.open(store).place)
    return sorted(table.search().limit(table.count_rows()).to_arrow().drop(["row"]).to_pylist(), key=lambda row: row["id"])


def huge_png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_a_folder_becomes_a_store_with_captions_pictures_vectors_and_sizes(photos, picture, real_clip, tmp_path):
    report = ingest(str(photos(5)), tmp_path / "store", real_clip, licence="CC0", title="My photos")
    store = Store.open(tmp_path / "store")
    assert (report.added, report.known, report.broken) == (5, 0, {})
    assert store.ids == tuple(f"photos/{n:03d}.png" for n in range(5))
    assert store.captions == tuple(f"a photo of {n}" for n in range(5))
    assert all(image.tobytes() == picture(n).tobytes() for n, image in enumerate(store.pictures(store.ids)))
    expected = real_clip.embed_images([picture(n) for n in range(5)])
    np.testing.assert_allclose(store.vectors.numpy(), expected.numpy(), atol=2e-3)
    assert (store.info.title, store.info.source, store.info.licence) == ("My photos", "photos", "CC0")
    row = content(tmp_path / "store")[0]
    assert (row["width"], row["height"], row["source"], row["licence"]) == (32, 32, "photos", "CC0")
    assert row["image"] == (tmp_path / "photos" / "000.png").read_bytes()


def test_the_same_source_twice_adds_nothing(photos, real_clip, tmp_path):
    folder = photos(5)
    first = ingest(str(folder), tmp_path / "store", real_clip)
    before = content(tmp_path / "store")
    second = ingest(str(folder), tmp_path / "store", real_clip)
    assert (second.added, second.known) == (0, 5)
    assert content(tmp_path / "store") == before and second.info == first.info


def test_new_files_are_added_to_what_is_there(photos, picture, real_clip, tmp_path):
    folder = photos(3)
    first = ingest(str(folder), tmp_path / "store", real_clip)
    photos(5)
    second = ingest(str(folder), tmp_path / "store", real_clip)
    assert (second.added, second.known, second.info.count) == (2, 3, 5)
    assert second.info.version != first.info.version


def test_an_open_store_stays_as_it_was_while_more_is_added(photos, real_clip, tmp_path):
    folder = photos(3)
    ingest(str(folder), tmp_path / "store", real_clip)
    store = Store.open(tmp_path / "store")
    photos(5)
    ingest(str(folder), tmp_path / "store", real_clip)
    assert len(store.ids) == 3 and len(Store.open(tmp_path / "store").ids) == 5


def test_two_sources_live_in_one_store(photos, real_clip, tmp_path, picture):
    (tmp_path / "more").mkdir()
    picture(77).save(tmp_path / "more" / "x.png")
    (tmp_path / "more" / "x.txt").write_text("another")
    ingest(str(photos(2)), tmp_path / "store", real_clip, licence="CC0")
    report = ingest(str(tmp_path / "more"), tmp_path / "store", real_clip, licence="MIT")
    assert (report.info.source, report.info.licence, report.info.count) == ("more, photos", "CC0, MIT", 3)
    assert Store.open(tmp_path / "store").ids[-1] == "more/x.png"


def test_another_folder_of_the_same_name_needs_a_name_of_its_own(photos, real_clip, tmp_path):
    ingest(str(photos(2)), tmp_path / "store", real_clip)
    (tmp_path / "other").mkdir()
    other = photos(4, tmp_path / "other" / "photos")
    with pytest.raises(UserError, match="--name"):
        ingest(str(other), tmp_path / "store", real_clip)
    assert ingest(str(other), tmp_path / "store", real_clip, name="others").info.count == 6


def test_a_picture_that_was_replaced_takes_the_place_of_the_old_one(photos, picture, real_clip, tmp_path):
    folder = photos(3)
    ingest(str(folder), tmp_path / "store", real_clip)
    picture(50).save(folder / "001.png")
    (folder / "001.txt").write_text("a photo of 50")
    report = ingest(str(folder), tmp_path / "store", real_clip)
    assert (report.added, report.known, report.replaced, report.recaptioned, report.info.count) == (0, 2, 1, 0, 3)
    store = Store.open(tmp_path / "store")
    assert sorted(store.ids) == [f"photos/00{n}.png" for n in range(3)]
    assert store.captions_of(["photos/001.png", "photos/002.png"]) == ["a photo of 50", "a photo of 2"]
    assert store.pictures(["photos/001.png"])[0].tobytes() == picture(50).tobytes()
    expected = real_clip.embed_images([picture(50)])
    np.testing.assert_allclose(store.vectors_of(["photos/001.png"]).numpy(), expected.numpy(), atol=2e-3)


def test_a_replacement_that_was_killed_half_way_goes_on(photos, picture, real_clip, tmp_path, monkeypatch):
    folder = photos(3)
    ingest(str(folder), tmp_path / "store", real_clip)
    picture(50).save(folder / "001.png")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine, "arrow_table", killed)
        with pytest.raises(KeyboardInterrupt):
            ingest(str(folder), tmp_path / "store", real_clip)
    assert Store.open(tmp_path / "store").pictures(["photos/001.png"])[0].tobytes() == picture(1).tobytes()
    assert ingest(str(folder), tmp_path / "store", real_clip).info.count == 3
    assert Store.open(tmp_path / "store").pictures(["photos/001.png"])[0].tobytes() == picture(50).tobytes()


def test_other_pictures_under_a_name_from_elsewhere_are_refused_and_change_nothing(photos, picture, real_clip, tmp_path):
    folder = photos(3)
    ingest(str(folder), tmp_path / "store", real_clip, name="zip", address="/one.zip")
    before = content(tmp_path / "store")
    picture(50).save(folder / "001.png")
    (folder / "001.txt").write_text("a sleeping cat")
    (folder / "002.txt").write_text("another caption")
    with pytest.raises(UserError, match="another picture from elsewhere as 'zip/001.png'.*--name"):
        ingest(str(folder), tmp_path / "store", real_clip, name="zip", address="/two.zip")
    assert content(tmp_path / "store") == before
    picture(1).save(folder / "001.png")
    again = ingest(str(folder), tmp_path / "store", real_clip, name="zip", address="/two.zip")
    assert (again.added, again.known, again.recaptioned, again.replaced) == (0, 3, 2, 0)


def test_broken_pictures_are_listed_with_the_reason_and_stop_nothing(photos, real_clip, tmp_path):
    folder = photos(4)
    (folder / "000.png").write_bytes(b"no picture")
    (folder / "001.png").write_bytes(huge_png())
    (folder / "002.txt").unlink()
    report = ingest(str(folder), tmp_path / "store", real_clip)
    assert report.added == 1 and set(report.broken) == {f"photos/00{n}.png" for n in range(3)}
    assert "not a JPEG" in report.broken["photos/000.png"]
    assert "50 million pixels" in report.broken["photos/001.png"]
    assert "caption" in report.broken["photos/002.png"]
    listed = list(csv.reader(io.StringIO((tmp_path / "store" / "broken.csv").read_text())))
    assert dict(listed[1:]) == report.broken


def test_a_repaired_picture_goes_in_and_leaves_the_list(photos, picture, real_clip, tmp_path):
    folder = photos(2)
    (folder / "000.png").write_bytes(b"no picture")
    ingest(str(folder), tmp_path / "store", real_clip)
    picture(0).save(folder / "000.png")
    assert ingest(str(folder), tmp_path / "store", real_clip).added == 1
    assert (tmp_path / "store" / "broken.csv").read_text().splitlines() == ["file,reason"]


def test_a_broken_picture_that_is_gone_leaves_the_list(photos, picture, real_clip, tmp_path):
    folder = photos(3)
    (folder / "000.png").write_bytes(b"no picture")
    ingest(str(folder), tmp_path / "store", real_clip)
    (folder / "000.png").unlink()
    report = ingest(str(folder), tmp_path / "store", real_clip)
    assert (report.added, report.known, report.broken) == (0, 2, {})
    assert (tmp_path / "store" / "broken.csv").read_text().splitlines() == ["file,reason"]


def test_what_could_not_be_read_this_time_goes_in_the_next(photos, real_clip, tmp_path, monkeypatch):
    folder, read = photos(3), Place.read_bytes

    def hiccup(self, limit):
        if self.uri.endswith("001.png"):
            raise OSError("the network is away")
        return read(self, limit)

    with monkeypatch.context() as patch:
        patch.setattr(Place, "read_bytes", hiccup)
        first = ingest(str(folder), tmp_path / "store", real_clip)
    assert first.added == 2 and "the network is away" in first.broken["photos/001.png"]
    second, third = (ingest(str(folder), tmp_path / "store", real_clip) for _ in range(2))
    assert (second.added, second.known, second.broken) == (1, 2, {}) and (third.added, third.known) == (0, 3)
    assert (tmp_path / "store" / "broken.csv").read_text().splitlines() == ["file,reason"]


def test_captions_that_were_added_or_corrected_are_taken_up(photos, real_clip, tmp_path):
    folder = photos(3)
    (folder / "002.txt").unlink()
    ingest(str(folder), tmp_path / "store", real_clip)
    (folder / "002.TXT").write_text("a photo of a cat")
    (folder / "000.txt").write_text("a photo of a dog")
    report = ingest(str(folder), tmp_path / "store", real_clip)
    assert (report.added, report.known, report.recaptioned) == (1, 2, 1)
    store = Store.open(tmp_path / "store")
    assert store.captions_of([f"photos/{n:03d}.png" for n in range(3)]) == [
        "a photo of a dog",
        "a photo of 1",
        "a photo of a cat",
    ]
    assert (tmp_path / "store" / "broken.csv").read_text().splitlines() == ["file,reason"]


def test_a_licence_stays_until_another_one_is_given_and_is_then_that_of_all(photos, real_clip, tmp_path, monkeypatch):
    folder = photos(2)
    ingest(str(folder), tmp_path / "store", real_clip, licence="MIT")
    ingest(str(photos(1, tmp_path / "other")), tmp_path / "store", real_clip)
    photos(3)
    monkeypatch.setattr("bat_ui.store.ingest.ROWS_AT_ONCE", 2)
    assert ingest(str(folder), tmp_path / "store", real_clip).info.licence == "MIT, not stated"
    report = ingest(str(folder), tmp_path / "store", real_clip, licence="CC0")
    assert (report.added, report.known, report.info.licence) == (0, 3, "CC0, not stated")
    licences = {row["id"]: row["licence"] for row in content(tmp_path / "store")}
    assert licences == {"other/000.png": "not stated"} | {f"photos/00{n}.png": "CC0" for n in range(3)}


def test_a_second_run_says_again_what_is_broken(photos, picture, real_clip, tmp_path):
    folder = photos(2)
    picture(5).save(folder / "old.gif")
    (folder / "old.txt").write_text("a photo of 5")
    (folder / "000.png").write_bytes(b"no picture")
    first, second = (ingest(str(folder), tmp_path / "store", real_clip) for _ in range(2))
    assert set(first.broken) == {"photos/000.png", "photos/old.gif"} and second.broken == first.broken
    assert (second.added, second.known) == (0, 1) and "JPEG, PNG or WebP" in first.broken["photos/old.gif"]


def test_a_killed_ingest_leaves_the_store_as_it_was(photos, real_clip, tmp_path, monkeypatch):
    """However old it is: only when the new snapshot counts may the old one go."""
    folder = photos(3)
    ingest(str(folder), tmp_path / "store", real_clip)
    photos(5)
    monkeypatch.setattr("bat_ui.store.index.KEPT", timedelta(microseconds=1))

    def stops(place, info):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("bat_ui.store.ingest.write_info", stops)
        with pytest.raises(KeyboardInterrupt):
            ingest(str(folder), tmp_path / "store", real_clip)
    assert len(Store.open(tmp_path / "store").ids) == 3
    ingest(str(folder), tmp_path / "store", real_clip)
    assert len(Store.open(tmp_path / "store").ids) == 5


def test_a_store_whose_snapshot_is_gone_says_so(photos, real_clip, tmp_path):
    info = ingest(str(photos(2)), tmp_path / "store", real_clip).info
    write_info(Place.of(tmp_path / "store"), replace(info, snapshot=999))
    with pytest.raises(UserError, match="ingest again"):
        Store.open(tmp_path / "store")


def test_a_source_without_any_usable_picture_makes_no_store(photos, real_clip, tmp_path):
    folder = photos(1)
    (folder / "000.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="No picture could be used"):
        ingest(str(folder), tmp_path / "store", real_clip)
    with pytest.raises(UserError, match="ingest"):
        Store.open(tmp_path / "store")


@pytest.mark.parametrize("written", [0, 1, 3])
def test_after_an_interruption_the_same_command_ends_with_the_same_store(written, photos, real_clip, tmp_path, monkeypatch):
    monkeypatch.setattr("bat_ui.store.sources.FILES_PER_PART", 4)
    monkeypatch.setattr(engine, "BATCH", 2)
    monkeypatch.setattr(engine, "MAX_ROWS", 2)
    folder = photos(10)
    ingest(str(folder), tmp_path / "whole", real_clip)
    write, calls = engine._Pending.write, []

    def stops(self):
        if len(calls) == written:
            raise KeyboardInterrupt
        calls.append(None)
        write(self)

    with monkeypatch.context() as patch:
        patch.setattr(engine._Pending, "write", stops)
        with pytest.raises(KeyboardInterrupt):
            ingest(str(folder), tmp_path / "store", real_clip)
    with pytest.raises(UserError, match="run it again"):
        Store.open(tmp_path / "store")
    report = ingest(str(folder), tmp_path / "store", real_clip)
    assert report.added == 10 - 2 * written and report.known == 2 * written
    assert content(tmp_path / "store") == content(tmp_path / "whole")
    assert Store.open(tmp_path / "store").ids == Store.open(tmp_path / "whole").ids


def test_ids_are_looked_up_by_the_index_and_only_among_those_of_before(photos, real_clip, tmp_path, monkeypatch):
    plans, looked_up = [], engine.stored_among

    def explained(table, ids):
        plans.append((table.count_rows(), table.search().where(among(ids)).explain_plan()))
        return looked_up(table, ids)

    monkeypatch.setattr(engine, "stored_among", explained)
    monkeypatch.setattr("bat_ui.store.sources.FILES_PER_PART", 2)
    for name in ("AHEAD", "BATCH", "MAX_ROWS"):  # many looks, writes between them
        monkeypatch.setattr(engine, name, 2)
    both = tmp_path / "store"
    ingest(str(photos(6)), both, real_clip)
    assert [count for count, _ in plans] == [0] * 3
    plans.clear()
    ingest(str(photos(12)), both, real_clip)
    assert [count for count, _ in plans] == [6] * 6
    assert all("ScalarIndexQuery" in plan for _, plan in plans)


def test_large_pictures_are_held_by_bytes_not_by_number(photos, real_clip, tmp_path, monkeypatch):
    folder = photos(12)
    ingest(str(folder), tmp_path / "whole", real_clip)
    ahead, most, written = [], [], []
    prepare, add, write = engine.prepare, engine._Pending.add, engine._Pending.write

    def prepared(*args):
        ahead.append(1)
        return prepare(*args)

    def adds(self, *args, **named):
        most.append(len(ahead) - len(most))
        add(self, *args, **named)

    monkeypatch.setattr(engine, "MAX_HELD", 3 * max(file.stat().st_size for file in folder.glob("*.png")))
    monkeypatch.setattr(engine, "prepare", prepared)
    monkeypatch.setattr(engine._Pending, "add", adds)
    monkeypatch.setattr(engine._Pending, "write", lambda self: (written.append(len(self.rows)), write(self)))
    ingest(str(folder), tmp_path / "store", real_clip)
    assert max(most) <= 5 and max(written) <= 5 and sum(written) == 12
    assert content(tmp_path / "store") == content(tmp_path / "whole")


def test_a_store_of_another_clip_model_is_refused(photos, real_clip, tmp_path, monkeypatch):
    ingest(str(photos(2)), tmp_path / "store", real_clip)
    monkeypatch.setattr(real_clip, "digest", "other")
    with pytest.raises(UserError, match="another CLIP model"):
        ingest(str(tmp_path / "photos"), tmp_path / "store", real_clip)


def test_nothing_is_written_into_a_folder_of_something_else(photos, real_clip, tmp_path, build, picture):
    with pytest.raises(UserError, match="not empty"):
        ingest(str(photos(2)), tmp_path / "photos", real_clip)
    whole = build([("a", picture(0), np.eye(16)[0])], encoder=real_clip.digest, folder=tmp_path / "built")
    with pytest.raises(UserError, match="program's own"):
        ingest(str(tmp_path / "photos"), whole.folder, real_clip)


def test_only_one_ingest_writes_at_a_time(photos, real_clip, tmp_path):
    folder = photos(2)
    command = "import sys, time; from pathlib import Path; from bat_ui.store.table import building_lock\n"
    command += "lock = building_lock(Path(sys.argv[1])); lock.acquire(); print('held', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", command, str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="Another ingest"):
            ingest(str(folder), tmp_path / "store", real_clip)
    finally:
        other.kill()
        other.wait()


def test_linked_pictures_are_read_where_they_lie(photos, picture, real_clip, tmp_path):
    folder = photos(2)
    ingest(str(folder), tmp_path / "store", real_clip, link=True)
    store = Store.open(tmp_path / "store")
    assert store.pictures(["photos/001.png"])[0].tobytes() == picture(1).tobytes()
    assert content(tmp_path / "store")[0]["image"] is None
    (folder / "001.png").unlink()
    with pytest.raises(UserError, match="not at"):
        store.pictures(["photos/001.png"])


def test_a_proxy_stays_labelled(photos, real_clip, tmp_path):
    folder = photos(2)
    assert not ingest(str(folder), tmp_path / "plain", real_clip).info.proxy
    assert ingest(str(folder), tmp_path / "store", real_clip, proxy=True).info.proxy
    photos(3)
    assert ingest(str(folder), tmp_path / "store", real_clip).info.proxy


def test_progress_counts_pictures_and_ends_at_their_number(photos, real_clip, tmp_path, monkeypatch):
    monkeypatch.setattr("bat_ui.store.sources.FILES_PER_PART", 3)
    seen = []
    ingest(str(photos(9)), tmp_path / "store", real_clip, progress=lambda *step: seen.append(step))
    counts = [(done, total) for what, done, total in seen if what == "Ingesting"]
    assert counts[-1] == (9, 9) and counts == sorted(counts)
    assert all(abs(total - 9) <= 1 for _, total in counts)


def test_uploaded_photos_are_stored_upright(real_clip, tmp_path, picture):
    folder = tmp_path / "photos"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(0).resize((32, 64)).save(folder / "a.png", exif=exif)
    (folder / "a.txt").write_text("lying")
    ingest(str(folder), tmp_path / "store", real_clip)
    assert Store.open(tmp_path / "store").pictures(["photos/a.png"])[0].size == (64, 32)
    assert content(tmp_path / "store")[0]["width"] == 64

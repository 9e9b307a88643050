"""The engine of a cluster writes the same table as the engine of one machine."""

import sys

import numpy as np
import pytest

from bat_ui.errors import UserError
from bat_ui.store.ingest import ingest
from bat_ui.store.table import Store, open_table


def rows(store) -> list[dict]:
    table = open_table(Store.open(store).place)
    return sorted(table.search().limit(table.count_rows()).to_arrow().to_pylist(), key=lambda row: row["id"])


def test_without_ray_the_engine_says_what_to_install(photos, real_clip, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="requirements-scale.txt"):
        ingest(str(photos(1)), tmp_path / "store", real_clip, engine="ray")


@pytest.mark.slow
def test_two_workers_write_the_same_table_as_one_machine_and_go_on_where_they_were(
    photos, picture, real_clip, tmp_path, monkeypatch
):
    ray = pytest.importorskip("ray")
    pytest.importorskip("lance_ray")
    monkeypatch.setattr("bat_ui.store.sources.FILES_PER_PART", 8)

    def lost(*_):
        raise UserError("The connection is lost: go on.")
        yield

    folder = photos(20)
    (folder / "003.png").write_bytes(b"no picture")
    (folder / "004.txt").unlink()
    expected = ingest(str(folder), tmp_path / "local", real_clip)
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        found = ingest(str(folder), tmp_path / "ray", real_clip, engine="ray", workers=2)
        again = ingest(str(folder), tmp_path / "ray", real_clip, engine="ray", workers=2)
        photos(24)
        more = ingest(str(folder), tmp_path / "ray", real_clip, engine="ray", workers=2)
        ingest(str(folder), tmp_path / "local", real_clip)
        (folder / "000.txt").write_text("another caption")
        picture(50).save(folder / "001.png")
        changed = ingest(str(folder), tmp_path / "ray", real_clip, engine="ray", workers=2)
        monkeypatch.setattr("bat_ui.store.ray_engine._read", lost)
        with pytest.raises(UserError, match="^The connection is lost: go on[.]$"):
            ingest(str(folder), tmp_path / "ray", real_clip, engine="ray", workers=2, name="lost")
    finally:
        ray.shutdown()
    assert (found.added, found.broken) == (expected.added, expected.broken) == (18, expected.broken)
    assert len(found.broken) == 2 and found.info.count == 18
    assert (again.added, again.known, again.info.snapshot) == (0, 18, found.info.snapshot)
    assert (more.added, more.info.count) == (6, 24)  # four new ones and the two that were made good
    assert (changed.added, changed.recaptioned, changed.replaced) == (0, 1, 1)
    store = Store.open(tmp_path / "ray")
    assert store.captions_of(["photos/000.png"]) == ["another caption"]
    assert store.pictures(["photos/001.png"])[0].tobytes() == picture(50).tobytes()
    ingest(str(folder), tmp_path / "local", real_clip)
    for one, other in zip(rows(tmp_path / "ray"), rows(tmp_path / "local"), strict=True):
        np.testing.assert_allclose(one.pop("vector"), other.pop("vector"), atol=2e-3)
        assert one == other

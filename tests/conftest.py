"""Shared by all tests: a tiny backbone with random weights, in the real formats, and a data folder of the tests' own."""

import functools
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from bat_ui.backbones import load_backbone
from bat_ui.backbones.encoded import Encoded
from bat_ui.backbones.sticker import data
from bat_ui.store import sticker
from bat_ui.store.table import write_info
from tests import tiny_models, tiny_sticker
from tests.page_server import Server

EVERYTHING = data.training_stickers()


if "PYTEST_XDIST_WORKER" in os.environ:  # the cores are shared out by files: threads would only get in one another's way
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Beside one another run whole files, whose fixtures are dear, and all tests of the browser, who share a project."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "browser" if "/browser/" in file else file

    return ByFile(config, log)


@pytest.fixture(scope="session", autouse=True)
def data_folder(tmp_path_factory):
    """No test touches the user's data folder."""
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("data")
    patch.setenv("BAT_UI_DATA", str(folder))
    patch.setattr(data, "training_stickers", lambda: EVERYTHING[::20])  # a store that is built in a moment
    yield folder
    patch.undo()


@pytest.fixture(scope="session")
def tiny_backbone_folder(tmp_path_factory) -> Path:
    return tiny_sticker.write_folder(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def backbone(tiny_backbone_folder):
    """The tiny backbone, loaded."""
    return load_backbone(str(tiny_backbone_folder))


@pytest.fixture(scope="session")
def photo_backbone_folders(tmp_path_factory) -> dict[str, Path]:
    """A tiny diffusers folder of each family of backbones for photographs: sd15, sd21, sdxl."""
    folder = tmp_path_factory.mktemp("families")
    return {family: tiny_models.write_folder(family, folder / family) for family in ("sd15", "sd21", "sdxl")}


@pytest.fixture(scope="module")
def photo_backbone(photo_backbone_folders, tiny_clip_folder):
    """A function that gives the tiny backbone of a family, loaded once for a module's tests."""

    @functools.cache
    def load(family: str):
        return load_backbone(str(photo_backbone_folders[family]), "cpu", clip=str(tiny_clip_folder))

    return load


@pytest.fixture(scope="session")
def tiny_config_folder(tmp_path_factory) -> Path:
    """Configurations for single files of the same tiny models, laid out as the package's own."""
    folder = tmp_path_factory.mktemp("configs")
    for family in ("sd15", "sd21", "sdxl"):
        tiny_models.write_configs(family, folder / family)
    return folder


@pytest.fixture(scope="session")
def tiny_clip_folder(tmp_path_factory) -> Path:
    """A CLIP model for photographs, in open_clip's folder format."""
    return tiny_models.write_clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture(scope="session")
def pictures():
    """A function that makes `count` encoded pictures for the tiny backbone out of a seed."""

    def make(count: int, seed: int) -> Encoded:
        rng = torch.Generator().manual_seed(seed)
        return Encoded(torch.randn(count, 4, 16, 16, generator=rng), torch.randn(count, 24, 16, generator=rng))

    return make


@pytest.fixture()
def subject_folder(tmp_path) -> Path:
    """Four drawings of a face with different mouths, one with a caption of its own."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(4):
        image = Image.new("RGB", (96, 96), "white")
        pen = ImageDraw.Draw(image)
        pen.ellipse((8, 8, 88, 88), fill="gold", outline="black")
        pen.rectangle((30, 55 + 2 * i, 66, 60 + 5 * i), fill="black")
        image.save(folder / f"face{i}.png")
    (folder / "face0.txt").write_text("a flat sticker of sks face, smiling", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def faces(tmp_path_factory) -> list[Path]:
    """Four drawings of a face with different mouths."""
    folder = tmp_path_factory.mktemp("faces")
    for i in range(4):
        image = Image.new("RGB", (96, 96), "white")
        pen = ImageDraw.Draw(image)
        pen.ellipse((8, 8, 88, 88), fill="gold", outline="black")
        pen.rectangle((30 - 4 * i, 50 + 4 * i, 66, 56 + 7 * i), fill=("black", "red", "navy", "green")[i])
        image.save(folder / f"face{i}.png")
    return sorted(folder.glob("*.png"))


@pytest.fixture(scope="session")
def running_server(tmp_path_factory, tiny_backbone_folder):
    """A server on the tiny backbone that tests may kill and start again."""
    server = Server(tmp_path_factory.mktemp("server"), tiny_backbone_folder)
    clip = load_backbone(str(tiny_backbone_folder)).clip
    store = sticker.open_sticker_store(clip, lambda items, **_: items, server.data)
    # Workers know nothing of the patch above: told that a twentieth is all there is, they do not build the rest.
    write_info(store.place, replace(store.info, version=sticker._version(EVERYTHING, clip)))
    server.start()
    yield server
    server.end()


@pytest.fixture(scope="session")
def server(running_server) -> str:
    """The address of a page of its own, with a data folder of its own."""
    return running_server.address

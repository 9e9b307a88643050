"""A CLIP stand-in whose vectors the test chooses, and stores of a few synthetic pictures."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from bat_ui.clip_space import ClipSpace
from bat_ui.store.rows import Row
from bat_ui.store.table import Store


class FakeClip:
    """Vectors by lookup: pictures by their pixels, texts by themselves; anything unknown gets a vector of its own."""

    def __init__(self, dim: int = 8, digest: str = "fake"):
        self.dim, self.digest = dim, digest
        self.known: dict = {}
        self.embedded = 0  # pictures

    def knows(self, item: Image.Image | str, vector) -> None:
        self.known[self._key(item)] = torch.nn.functional.normalize(torch.as_tensor(vector, dtype=torch.float32), dim=0)

    def embed_images(self, images):
        self.embedded += len(images)
        return self._vectors(images)

    def embed_texts(self, texts):
        return self._vectors(texts)

    def _vectors(self, items):
        keys = [self._key(i) for i in items]
        return torch.stack([self.known[key] if key in self.known else self._own(key) for key in keys])

    def _own(self, key) -> torch.Tensor:
        seed = hashlib.sha256(f"{self.digest}{key!r}".encode()).digest()
        vector = np.random.default_rng(list(seed)).standard_normal(self.dim)
        return torch.nn.functional.normalize(torch.tensor(vector, dtype=torch.float32), dim=0)

    @staticmethod
    def _key(item):
        return item if isinstance(item, str) else item.convert("RGB").tobytes()


@pytest.fixture
def clip():
    return FakeClip()


@pytest.fixture
def new_clip():
    return FakeClip


@pytest.fixture
def picture():
    """picture(seed): an RGB picture of 32 x 32 coloured blocks that no other seed resembles."""

    def make(seed: int) -> Image.Image:
        blocks = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        return Image.fromarray(blocks.repeat(2, axis=0).repeat(2, axis=1))

    return make


@pytest.fixture
def build(tmp_path):
    """build([(id, picture, vector)], encoder): a store of these rows, captioned 'caption of ID'."""

    def make(items, encoder: str = "fake", folder=None) -> Store:
        rows = (Row(i, f"caption of {i}", image, np.asarray(v), "somewhere", "CC0") for i, image, v in items)
        return Store.build(
            folder or tmp_path / "store",
            rows,
            version="1",
            encoder=encoder,
            name="test",
            title="Test",
            source="somewhere",
            licence="CC0",
        )

    return make


@pytest.fixture(scope="session")
def real_clip(tiny_backbone_folder):
    """A CLIP model in the real format, with random weights."""
    return ClipSpace.load(tiny_backbone_folder / "clip")


@pytest.fixture
def photos(tmp_path, picture):
    """photos(count): a folder of PNG files 000.png, 001.png, ... with captions 'a photo of N' beside them."""

    def make(count: int, folder=None):
        folder = folder or tmp_path / "photos"
        folder.mkdir(exist_ok=True)
        for n in range(count):
            picture(n).save(folder / f"{n:03d}.png")
            (folder / f"{n:03d}.txt").write_text(f"a photo of {n}", encoding="utf-8")
        return folder

    return make

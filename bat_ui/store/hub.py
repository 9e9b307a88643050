"""A Hugging Face dataset as a source, streamed: nothing of it is kept on disk but what the store takes.

In: `OWNER/NAME`, also as `hf:OWNER/NAME`.  Needs the package `datasets` (requirements-scale.txt).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from bat_ui.errors import UserError, in_one_line
from bat_ui.pictures import MAX_BYTES
from bat_ui.store.records import CAPTION_NAMES, Options, Record, choose_column, clean
from bat_ui.store.shards import IMAGE_NAMES, URL_NAMES, only_addresses, picture_record

SCHEME = "hf:"


@dataclass(frozen=True)
class HubPart:
    """One of the files that a dataset is kept in."""

    dataset: str
    revision: str
    shard: int
    shards: int
    image: str
    caption: str
    options: Options

    @property
    def key(self) -> str:
        """Differs if the dataset changes, or what is read of it."""
        return f"{self.group}{self.revision} {self.shard}/{self.shards}{self.options.columns}"

    @property
    def group(self) -> str:
        """What the keys of all parts of its split begin with."""
        return f"{self.options.name}/{self.dataset} {self.options.split} "

    @property
    def size(self) -> int:
        """All parts count as equally large."""
        return 1

    def records(self) -> Iterator[Record]:
        """Raises UserError if the connection is lost."""
        import datasets

        rows, _ = _load(self.dataset, self.options.split, self.revision)
        rows = rows.shard(num_shards=self.shards, index=self.shard)
        rows = rows.select_columns([self.image, self.caption]).cast_column(self.image, datasets.Image(decode=False))
        try:
            for number, row in enumerate(rows):
                id = f"{self.options.name}/{self.options.split}/{self.shard}/{number}"
                yield picture_record(id, self._file(row[self.image]), clean(row[self.caption]))
        except (OSError, RuntimeError) as error:
            raise UserError(f"The connection to '{self.dataset}' was lost: start the ingest again, it goes on.") from error

    def _file(self, image: dict | None) -> dict | bytes | None:
        """A picture's bytes if it is a file of its own in the dataset, of which a row has the address only."""
        import fsspec

        address = image and not image.get("bytes") and image.get("path")
        if not address or not re.match(rf"((zip|tar)://[^:]*::)*hf://datasets/{re.escape(self.dataset)}[@/]", address):
            return image  # what the row says is not trusted: it may name any file of this machine
        try:
            with fsspec.open(address, "rb") as file:
                return file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return None


def is_hub_name(source: str) -> bool:
    """Whether `source` can be the name of a dataset on the hub."""
    return source.startswith(SCHEME) or bool(re.fullmatch(r"[\w.-]+/[\w.-]+", source))


def hub_parts(source: str, options: Options) -> list[HubPart]:
    """Raises UserError without the package, without connection, and for a dataset without pictures or captions."""
    dataset = source.removeprefix(SCHEME)
    rows, revision = _load(dataset, options.split)
    if rows.features is None:
        raise UserError(f"The dataset '{dataset}' does not say what columns it has: download it and ingest its files.")
    import datasets

    images = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)]
    if not images and {name.lower() for name in rows.features} & set(URL_NAMES):
        raise only_addresses(f"The dataset '{dataset}'")
    texts = [name for name, kind in rows.features.items() if getattr(kind, "dtype", None) in ("string", "large_string")]
    one = images[0] if len(images) == 1 and options.image_column is None else None
    image = one or choose_column(images, options.image_column, IMAGE_NAMES, "image")
    caption = choose_column(texts, options.caption_column, CAPTION_NAMES, "caption")
    return [HubPart(dataset, revision, n, rows.num_shards, image, caption, options) for n in range(rows.num_shards)]


def _load(dataset: str, split: str, revision: str | None = None) -> tuple:
    """A split as a stream, and the revision that it is of, by default the newest."""
    try:
        import datasets
    except ImportError as error:
        raise UserError("Hugging Face datasets need one more package: pip install -r requirements-scale.txt.") from error
    from datasets.exceptions import DatasetNotFoundError

    try:
        builder = datasets.load_dataset_builder(dataset, revision=revision)
        return builder.as_streaming_dataset(split=split), builder.hash
    except (ConnectionError, TimeoutError, datasets.exceptions.DefunctDatasetError) as error:
        raise UserError(f"The Hugging Face hub does not answer: go online to stream '{dataset}'.") from error
    except DatasetNotFoundError as error:
        raise UserError(f"There is no dataset '{dataset}' on the Hugging Face hub, or it needs `hf auth login`.") from error
    except ValueError as error:
        raise UserError(f"The dataset '{dataset}' cannot be streamed: {in_one_line(error)}") from error

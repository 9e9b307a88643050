"""Sources in large files: webdataset shards (what img2dataset writes) and parquet files with the pictures inside."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from bat_ui.errors import UserError
from bat_ui.pictures import MAX_BYTES, SUFFIXES
from bat_ui.store.place import Entry, Place
from bat_ui.store.records import (
    CAPTION_NAMES,
    NO_CAPTION,
    NO_UTF8,
    TOO_LARGE,
    UNREAD,
    Options,
    Record,
    choose_column,
    clean,
    decoded,
    listed,
)

SHARDS = (".tar", ".tar.gz", ".tgz")
IMAGE_NAMES = ("image", "jpg", "jpeg", "png", "webp", "img", "picture", "image_bytes", "bytes")
URL_NAMES = ("url", "image_url", "uri", "link")
MAX_TEXT = 1_000_000  # bytes of a shard's text or JSON file
DOTTED = "has pictures with a dot in their names, which are taken for one of several kinds: name cat.0.jpg cat-0.jpg"
NO_PICTURE = "has no JPEG, PNG or WebP picture beside its text: pack it again with tar --sort=name"


def without_ending(path: str) -> str:
    """The name of a shard or table without what says that it is one."""
    ending = next((e for e in (*SHARDS, ".parquet") if path.lower().endswith(e)), "")
    return path[: len(path) - len(ending)]


@dataclass(frozen=True)
class _FilePart:
    folder: Place
    entry: Entry
    options: Options

    @property
    def key(self) -> str:
        """Differs if the file changes, or what is read of it."""
        return f"{self.options.name}/{self.entry.path} {self.entry.size} {self.entry.changed}{self.options.columns}"

    @property
    def size(self) -> int:
        """Bytes."""
        return self.entry.size

    @property
    def stem(self) -> str:
        """What the ids of its pictures begin with."""
        return f"{self.options.name}/{without_ending(self.entry.path)}"


class _Member(tarfile.TarInfo):
    """As in tarfile, which takes a header that it cannot read for the archive's end; here only two empty blocks are it."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError as error:
            if archive.fileobj.read(tarfile.BLOCKSIZE).strip(tarfile.NUL):
                raise tarfile.ReadError(str(error)) from error
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


class ShardPart(_FilePart):
    """One .tar, packed or not; members with the same name before the first dot belong together: a picture, .txt, .json."""

    def records(self) -> Iterator[Record]:
        """A shard that is cut short, or cannot be read further, ends with a record that says so."""
        sample: dict[str, bytes | str] = {}
        key = None
        try:
            with (
                (self.folder / self.entry.path).stream() as stream,
                tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Member) as archive,
            ):
                for member in archive:
                    if not member.isfile():
                        continue
                    folder, _, name = member.name.removeprefix("./").rpartition("/")
                    stem, _, suffix = name.partition(".")
                    stem, suffix = f"{folder}/{stem}" if folder else stem, f".{suffix.lower()}"
                    if stem != key:
                        yield from self._record(key, sample)
                        key, sample = stem, {}
                    if suffix in SUFFIXES:
                        large = member.size > MAX_BYTES
                        sample["image"] = TOO_LARGE if large else archive.extractfile(member).read()
                    elif suffix.endswith(SUFFIXES):
                        sample.setdefault("image", DOTTED)
                    elif suffix in (".txt", ".json") and member.size <= MAX_TEXT:
                        sample[suffix] = archive.extractfile(member).read()
        except (tarfile.TarError, EOFError) as error:
            yield from self._record(key, sample)
            yield Record(self.stem, problem=f"is cut short or damaged from here on ({error})")
            return
        except OSError as error:  # the picture at hand may be half read
            yield Record(self.stem, problem=f"{UNREAD} from here on ({error})")
            return
        yield from self._record(key, sample)

    def _record(self, key: str | None, sample: dict) -> Iterator[Record]:
        if key is None or not sample:
            return
        id, image, caption = f"{self.stem}/{key}", sample.get("image"), ""
        if self.options.caption_column is None:
            try:
                caption = clean(decoded(sample.get(".txt", b"")))
            except UnicodeDecodeError:
                yield Record(id, problem=NO_UTF8)
                return
        if not caption:
            try:
                known = json.loads(sample.get(".json", b"{}"))
            except ValueError:
                known = {}
            names = (self.options.caption_column,) if self.options.caption_column else CAPTION_NAMES
            caption = next((clean(known[n]) for n in names if isinstance(known, dict) and n in known), "")
        if not isinstance(image, bytes):
            yield Record(id, problem=image or NO_PICTURE)
        elif not caption:
            yield Record(id, problem=NO_CAPTION)
        else:
            yield Record(id, caption, data=image)


class ParquetPart(_FilePart):
    """One .parquet with a column of picture files, as bytes or as Hugging Face's struct of bytes and path."""

    ROWS = 64  # read at once

    def records(self) -> Iterator[Record]:
        """A file that is damaged, has not the columns, or cannot be read further, ends with a record that says so."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with (self.folder / self.entry.path).open() as file:
                table = pq.ParquetFile(file)
                image, caption = self._columns(table.schema_arrow)
                number = 0
                for batch in table.iter_batches(self.ROWS, columns=[image, caption]):
                    for data, text in zip(batch[image], batch[caption]):
                        yield picture_record(f"{self.stem}/{number}", data.as_py(), clean(text.as_py()))
                        number += 1
        except pa.ArrowException as error:
            yield Record(self.stem, problem=f"is damaged or no parquet file ({error})")
        except OSError as error:
            yield Record(self.stem, problem=f"{UNREAD} from here on ({error})")
        except UserError as error:
            yield Record(self.stem, problem=f"cannot be used: {error}")

    def check_columns(self) -> None:
        """Raises UserError if it has no column of pictures or captions; what is damaged is told by `records`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with (self.folder / self.entry.path).open() as file:
                self._columns(pq.read_schema(file))
        except (pa.ArrowException, OSError):
            return

    def _columns(self, schema) -> tuple[str, str]:
        """Of pictures and captions.  Raises UserError if there are none."""
        image = _image_column(schema, self.options, self.entry.path)
        return image, choose_column(_text_columns(schema), self.options.caption_column, CAPTION_NAMES, "caption")


def has_pictures(folder: Place, entry: Entry) -> bool:
    """Whether a .parquet has a column of picture files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with (folder / entry.path).open() as file:
            return bool(_file_columns(pq.read_schema(file)))
    except (pa.ArrowInvalid, OSError):
        return False


def text_rows(folder: Place, entry: Entry) -> list[dict]:
    """The rows of a .parquet, its columns of text only.  Raises UserError if it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with (folder / entry.path).open() as file:
            table = pq.ParquetFile(file)
            return table.read(columns=_text_columns(table.schema_arrow)).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{entry.path} is damaged or no parquet file: copy it again or remove it.") from error


def picture_record(id: str, image: object, caption: str) -> Record:
    """A record of bytes, or of Hugging Face's dictionary of bytes and path."""
    data = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(data, bytes):
        return Record(id, problem="has no picture file in it")
    if len(data) > MAX_BYTES:
        return Record(id, problem=TOO_LARGE)
    return Record(id, caption, data=data) if caption else Record(id, problem=NO_CAPTION)


def only_addresses(where: str) -> UserError:
    """What to say of a source that holds the addresses of pictures only."""
    return UserError(
        f"{where} holds web addresses, not pictures: download them with img2dataset (--output_format webdataset) "
        "and ingest the folder that it writes."
    )


def _text_columns(schema) -> list[str]:
    import pyarrow as pa

    return [n for n, t in zip(schema.names, schema.types) if pa.types.is_string(t) or pa.types.is_large_string(t)]


def _file_columns(schema) -> list[str]:
    import pyarrow as pa

    def holds_files(kind) -> bool:
        if pa.types.is_struct(kind):
            return any(child.name == "bytes" for child in kind)
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    return [name for name, kind in zip(schema.names, schema.types) if holds_files(kind)]


def _image_column(schema, options: Options, where: str) -> str:
    names = _file_columns(schema)
    lower = {name.lower() for name in schema.names}
    if not names and lower & set(URL_NAMES):
        raise only_addresses(where)
    if not names:
        raise UserError(f"{where} has no column of picture files: its columns are {listed(schema.names)}.")
    if options.image_column is None and len(names) == 1:
        return names[0]
    return choose_column(names, options.image_column, IMAGE_NAMES, "image")

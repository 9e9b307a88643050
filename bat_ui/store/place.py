"""Where a store or its source lies: a folder on disk or in an object store such as s3://, by the same calls.

In: a path or a URI.  Out: a `Place` that lists, reads and writes files through pyarrow's file systems; an object store's
credentials are found as its own tools find them (for S3 the AWS_* variables or profile).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import quote, unquote

from pyarrow import ArrowInvalid, fs

from bat_ui.errors import UserError, in_one_line
from bat_ui.files import replacing

PATIENCE = "?retry_limit_seconds=20"  # for Google's store, which is else tried for a quarter of an hour


@dataclass(frozen=True)
class Entry:
    """A file below a place: its path relative to it, size in bytes and time of its last change in ns."""

    path: str
    size: int
    changed: int

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.path).suffix.lower()


@dataclass(frozen=True)
class Place:
    """A file or folder; `uri` is an absolute path or `scheme://...`, in which odd characters are quoted."""

    uri: str

    @classmethod
    def of(cls, text: str | Path) -> Place:
        """Raises UserError for a scheme that is not known, or a place that cannot be reached."""
        if "://" not in str(text):
            return cls(os.path.abspath(text))
        place = cls(str(text).rstrip("/"))
        with place._reaching():
            return place

    @property
    def is_local(self) -> bool:
        return "://" not in self.uri

    @property
    def name(self) -> str:
        name = PurePosixPath(self.uri).name
        return name if self.is_local else unquote(name)

    def __truediv__(self, path: str) -> Place:
        return Place(f"{self.uri.rstrip('/')}/{path if self.is_local else quote(path)}")

    def is_file(self) -> bool:
        """Raises UserError if the place cannot be reached, as `is_folder` and `entries` do."""
        return self._type() == fs.FileType.File

    def is_folder(self) -> bool:
        return self._type() == fs.FileType.Directory

    def entries(self) -> list[Entry]:
        """All files below this folder, sorted by path; those with a leading dot in any part of the path are left out.

        Raises UserError if they cannot be listed, and for a file name that is no text.
        """
        with self._reaching() as (files, root):
            found = [_entry(file, root) for file in files_below(root)] if self.is_local else _objects(files, root)
        return sorted(found, key=lambda entry: entry.path)

    def entry(self) -> Entry:
        """This file as an entry of its folder."""
        with self._reaching() as (files, path):
            info = files.get_file_info(path)
        return Entry(self.name, info.size, info.mtime_ns or 0)

    def stream(self) -> BinaryIO:
        """The file's bytes from first to last."""
        files, path = self._resolve()
        return files.open_input_stream(path, compression=None)

    def open(self) -> BinaryIO:
        """The file for reading at any offset."""
        files, path = self._resolve()
        return files.open_input_file(path)

    def read_bytes(self, limit: int) -> bytes:
        """At most `limit` bytes."""
        with self.stream() as stream:
            return stream.read(limit)

    def read_text(self) -> str:
        """Raises OSError if there is no such file."""
        with self.stream() as stream:
            return stream.read().decode("utf-8-sig")

    def write_text(self, text: str) -> None:
        """Write so that a reader never sees half a file."""
        files, path = self._resolve()
        if self.is_local:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with replacing(Path(path)) as draft:
                draft.write_text(text, encoding="utf-8")
        else:  # an object appears when it is complete
            with files.open_output_stream(path) as stream:
                stream.write(text.encode())

    def _type(self) -> fs.FileType:
        with self._reaching() as (files, path):
            return files.get_file_info(path).type

    @contextmanager
    def _reaching(self) -> Iterator[tuple[fs.FileSystem, str]]:
        try:
            yield self._resolve()
        except OSError as error:
            said = f"'{self.uri}' cannot be reached ({in_one_line(error)}): check connection and rights."
            raise UserError(said) from error

    def _resolve(self) -> tuple[fs.FileSystem, str]:
        if self.is_local:
            return fs.LocalFileSystem(), self.uri
        patience = PATIENCE if self.uri.startswith(("gs://", "gcs://")) and "?" not in self.uri else ""
        try:
            return fs.FileSystem.from_uri(self.uri + patience)
        except (ArrowInvalid, NotImplementedError) as error:
            raise UserError(f"'{self.uri}' is no address that can be read: give a folder, a file or s3://...") from error


def files_below(root: str, check: Callable[[str], None] = lambda link: None) -> Iterator[os.DirEntry]:
    """The files below a folder of this machine, through links, of which `check` is told first; each folder's once.

    Those with a leading dot in any part of the path are left out.
    """
    folders, seen = deque([root]), set()
    while folders:
        folder = folders.popleft()
        if (real := os.path.realpath(folder)) in seen:
            continue
        seen.add(real)
        for entry in os.scandir(folder):
            if entry.name.startswith("."):
                continue
            if entry.is_symlink():
                check(entry.path)
            if not os.path.isdir(entry.path):
                if os.path.isfile(entry.path):
                    yield entry
            elif entry.is_symlink():
                folders.append(entry.path)  # after all others, which keep the paths that they really have
            else:
                folders.appendleft(entry.path)


def _objects(files: fs.FileSystem, root: str) -> list[Entry]:
    found = []
    for info in files.get_file_info(fs.FileSelector(root, recursive=True)):
        path = info.path[len(root) :].lstrip("/")
        if info.type == fs.FileType.File and not any(part.startswith(".") for part in path.split("/")):
            found.append(Entry(path, info.size, info.mtime_ns or 0))
    return found


def _entry(file: os.DirEntry, root: str) -> Entry:
    path, stat = Path(file.path).relative_to(root).as_posix(), file.stat()
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"The name of the file {ascii(path)} is no UTF-8 text: rename it.") from error
    return Entry(path, stat.st_size, stat.st_mtime_ns)

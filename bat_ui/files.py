"""Files that are complete or absent, and logs that are read as far as they are written."""

from __future__ import annotations

import json
import os
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

DRAFT = ".draft"  # how the names of unfinished folders end


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it takes the name `path` when the block ends, and is deleted if the block fails."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill; it takes the name `path` when all of it is on disk, and is deleted if the block fails."""
    draft = path.with_name(f".{path.name}{DRAFT}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        for part in (*draft.rglob("*"), draft):
            _flush(part)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(draft, path)
        _flush(path.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def remove_drafts(folder: Path) -> None:
    """Delete what killed processes left unfinished in a folder that nobody else fills."""
    for stale in folder.glob(f".*{DRAFT}"):
        shutil.rmtree(stale, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict | None:
    """The object in a JSON file, or None if there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def write_json(path: Path, value: dict | list) -> None:
    """Write so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as draft:
        draft.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


def write_zip(path: Path, contents: Mapping[str, Path | str]) -> None:
    """Write a zip, by name in it the file or the text that it holds; a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as draft, zipfile.ZipFile(draft, "w") as file:
        for name, content in contents.items():
            file.writestr(name, content) if isinstance(content, str) else file.write(content, name)


def read_json_lines(path: Path) -> list[dict]:
    """The complete lines of a log of JSON objects, none if there is no such file; half a line at its end is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def keep_json_lines(path: Path, wanted: Callable[[dict], bool]) -> list[dict]:
    """Drop all other lines of a log, and half a line at its end, so that it can be added to; returns what is left."""
    kept = [row for row in read_json_lines(path) if wanted(row)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as draft:
        draft.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    return kept

"""The stores that there are, and how people bring in pictures: a zip that they upload, a folder on the server.

In: names, uploaded files, paths that people typed; all of them hostile until checked.  Out: places, descriptions of stores,
folders that can be ingested.
"""

from __future__ import annotations

import lzma
import os
import re
import secrets
import shutil
import stat
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from PIL import Image

from bat_ui.errors import UserError, explained
from bat_ui.pictures import MAX_BYTES, OTHER_SUFFIXES, SUFFIXES
from bat_ui.processes import SLACK, started_at
from bat_ui.project import data_folder
from bat_ui.store.place import files_below
from bat_ui.store.table import Store, StoreInfo, read_info
from bat_ui.subject import LONGEST_NAME

MAX_FILES = 50_000  # in a zip
MAX_UNPACKED = 20_000_000_000  # bytes of a zip, all files together
MAX_TEXT = 10_000_000  # bytes of a text file in a zip
TEXTS = (".txt", ".jsonl", ".csv", ".tsv")
SAMPLES = 6
ROOT = "BAT_UI_INGEST_ROOT"  # the variable that names the server's folder below which people may ingest
KEPT = 24 * 3600  # seconds for which an upload waits for its ingest
LONGEST_TITLE = 80  # characters
OWN_STORE = "sticker"  # the name of the built-in backbone's store


@dataclass(frozen=True)
class Listed:
    """A store that can be chosen: its name or place, what it says of itself, and a few of its pictures."""

    place: str
    info: StoreInfo
    samples: tuple[Image.Image, ...]


def stores_folder() -> Path:
    """Where stores with a plain name are kept."""
    return data_folder() / "stores"


def store_place(store: str) -> str:
    """The place of a store that is called by its name, whatever lies in the working directory, or given as a folder with
    a separator (./cats) or a URI."""
    if "/" in store or "\\" in store or store in ("", ".", ".."):
        return store
    return str(stores_folder() / store)


def place_to_write(store: str) -> str:
    """As `store_place`.  Raises UserError for the built-in backbone's own store."""
    if store.strip().lower() == OWN_STORE:
        raise UserError("The model's own pictures are called so: give your store another name.")
    return store_place(store)


def clean_title(title: str) -> str:
    """A title in one line, as stores keep it."""
    return " ".join(title.split())[:LONGEST_TITLE]


def new_store_name(title: str) -> str:
    """The name of a store called `title`, letters of all languages in it.

    Raises UserError for a title without any, the program's own store, or one whose name another title's store has.
    """
    name = re.sub(r"[^\w.-]+", "-", title).strip(".-")[:LONGEST_NAME].rstrip(".-")
    if not name:
        raise UserError("Give the store a name, such as “cats of the street”.")
    info = read_info(Path(place_to_write(name)))
    if info is not None and info.title != clean_title(title):
        raise UserError(f"The name is too much like that of the store “{info.title}”: give another one.")
    return name


def ingest_root() -> Path | None:
    """The server's folder below which people may ingest; None if there is none."""
    root = os.environ.get(ROOT)
    return Path(root).resolve() if root else None


def keep_upload(file: Path) -> Path:
    """A copy of an uploaded file that waits for its ingest, under a name of ours; those that nobody wants are deleted."""
    _remove_leftovers()
    kept = _work_folder() / f"{secrets.token_hex(8)}.zip"
    shutil.copyfile(file, kept)
    return kept


def is_upload(source: str) -> bool:
    """Whether it is a file that `keep_upload` kept."""
    return Path(source).parent == _work_folder()


@contextmanager
def opened_source(source: str) -> Iterator[str]:
    """What can be ingested: a zip unpacked for as long as the block lasts, anything else as it is.

    A zip that was uploaded is deleted at the end.  Raises UserError as `unpacked` does.
    """
    path = Path(source)
    if path.suffix.lower() != ".zip":
        yield source
        return
    try:
        with unpacked(path) as folder:
            yield str(folder)
    finally:
        if is_upload(source):
            path.unlink(missing_ok=True)


def list_stores(samples: int = SAMPLES) -> list[Listed]:
    """The complete stores in the stores' folder, sorted by title, each with pictures from all over it."""
    found = []
    folders = sorted(stores_folder().iterdir()) if stores_folder().is_dir() else []
    for folder in folders:
        info = read_info(folder) if not folder.name.startswith(".") else None
        if info is not None and info.snapshot:
            try:
                pictures = tuple(sample_pictures(Store.open(folder), samples))
            except UserError:  # damaged, or its pictures were left where they were and are gone; a search says it
                pictures = ()
            found.append(Listed(str(folder), info, pictures))
    return sorted(found, key=lambda listed: listed.info.title)


def sample_pictures(store: Store, number: int = SAMPLES) -> list[Image.Image]:
    """Pictures at even distances through the store."""
    number = min(number, store.count)
    return store.pictures(store.ids_at([i * store.count // number for i in range(number)]))


def folder_under(root: Path, asked: str) -> Path:
    """The folder that a person may have ingested: `asked`, from `root` on.

    Raises UserError if it is not below `root`, or if something in it leads out of there by a link.
    """
    root = root.resolve()
    folder = (root / asked).resolve()
    if not folder.is_relative_to(root):
        raise UserError("This folder is not among those that may be ingested: choose one below the allowed folder.")
    if not folder.is_dir():
        raise UserError("There is no such folder below the allowed one: check its name.")

    def stays_below(link: str) -> None:
        if not Path(os.path.realpath(link)).is_relative_to(root):
            raise UserError(f"{Path(link).relative_to(folder)} leads out of the allowed folder: remove this link.")

    for _ in files_below(str(folder), stays_below):
        pass
    return folder


@contextmanager
def unpacked(archive: Path) -> Iterator[Path]:
    """A folder with the pictures and captions of a zip, gone when the block ends; other files in it are left out.

    Raises UserError for what is not there, is no zip, is encrypted, has names that lead elsewhere, links, too many files, or
    grows to more than MAX_UNPACKED bytes, whatever its directory says.
    """
    _remove_leftovers()
    with TemporaryDirectory(prefix=f"ingest-{os.getpid()}-", dir=_work_folder()) as folder:
        try:
            with zipfile.ZipFile(archive) as opened:
                _unpack(opened, Path(folder))
        except FileNotFoundError as error:
            if archive.parent != _work_folder():
                raise UserError(f"There is no zip '{archive}': give one that is there.") from error
            raise UserError("The upload has waited too long and is gone: upload it again.") from error
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, EOFError, OSError, ValueError) as error:
            if explained(error):  # a sentence of ours, or a full disk
                raise
            raise UserError("This is no zip file, or it is damaged: pack the pictures and captions again.") from error
        yield Path(folder)


def _unpack(archive: zipfile.ZipFile, folder: Path) -> None:
    files = [member for member in archive.infolist() if not member.is_dir()]
    if len(files) > MAX_FILES:
        raise UserError(f"The zip has more than {MAX_FILES} files: split it.")
    files = [member for member in files if _is_wanted(PurePosixPath(member.filename))]
    names = [_checked_name(member) for member in files]
    if len({name.lower() for name in names}) < len(names):
        raise UserError("Two files in the zip have the same name: give each its own.")
    left = MAX_UNPACKED
    for member, name in zip(files, names):
        path = PurePosixPath(name)
        limit = min(left, MAX_TEXT if path.suffix.lower() in TEXTS else MAX_BYTES)
        with archive.open(member) as packed:
            data = packed.read(limit + 1)
        if len(data) > limit:
            raise UserError(f"{path.name[:80]} in the zip is too large, or all of it together is: leave it out.")
        left -= len(data)
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def _is_wanted(path: PurePosixPath) -> bool:
    """Whether it is a picture or text, and none of what systems put beside people's files."""
    of_systems = (part.startswith((".", "__MACOSX")) and part != ".." for part in path.parts)
    return path.suffix.lower() in (*SUFFIXES, *OTHER_SUFFIXES, *TEXTS) and not any(of_systems)


def _checked_name(member: zipfile.ZipInfo) -> str:
    name, kind = member.filename, stat.S_IFMT(member.external_attr >> 16)
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not name.isprintable() or len(name) > 500:
        raise UserError("The zip has a file whose name leads elsewhere or cannot be used: pack it again.")
    if kind not in (0, stat.S_IFREG):
        raise UserError("The zip has a link in it: pack the files themselves.")
    if member.flag_bits & 0x1:
        raise UserError("The zip is encrypted: pack it without a password.")
    return name


def _remove_leftovers() -> None:
    """Delete uploads that nobody wants any more, and what ingests unpacked that were killed since."""
    for left in _work_folder().iterdir():
        with suppress(FileNotFoundError):  # somebody else was faster
            if left.suffix == ".zip" and time.time() - left.stat().st_mtime > KEPT:
                left.unlink()
            if left.name.startswith("ingest-") and not _has_owner(left):
                shutil.rmtree(left, ignore_errors=True)


def _has_owner(folder: Path) -> bool:
    """Whether the process that unpacks there still runs, and is not a later one with its number."""
    owner = folder.name.split("-")[1]
    began = started_at(int(owner)) if owner.isdecimal() else None
    return began is not None and began < folder.stat().st_mtime + SLACK


def _work_folder() -> Path:
    folder = data_folder() / "incoming"
    folder.mkdir(parents=True, exist_ok=True)
    return folder

"""What all sources have in common: records, how to read them, the names that columns usually have."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

from bat_ui.errors import UserError
from bat_ui.pictures import MAX_BYTES

CAPTION_NAMES = ("caption", "text", "txt", "prompt", "title", "alt", "description")
MAX_CAPTION = 2000  # characters
MAX_LISTED, MAX_NAME = 20, 60  # columns that a message names, letters of each
NO_CAPTION = "has no caption"
UNREAD = "could not be read"  # this time: a part with such a picture is read again by the next ingest
NO_UTF8 = "has a caption that is no UTF-8 text"
TOO_LARGE = f"is larger than {MAX_BYTES // 1_000_000} MB"


@dataclass(frozen=True)
class Options:
    """How a source is read.  `name` begins every id; columns are found by their usual names if they are not given."""

    name: str
    caption_column: str | None = None
    image_column: str | None = None
    split: str = "train"  # of a Hugging Face dataset

    @property
    def columns(self) -> str:
        """Those that are given, for the keys of parts: with others a part is read again."""
        return "".join(f" {name}" for name in (self.image_column, self.caption_column) if name)


@dataclass(frozen=True)
class Record:
    """One picture as the source has it: the file's bytes, or in `uri` where they are and in `size` how many; `problem` says
    why it has neither."""

    id: str
    caption: str = ""
    data: bytes | None = None
    uri: str | None = None
    problem: str | None = None
    size: int = 0

    @property
    def held(self) -> int:
        """Bytes that its file takes in memory, now or when it is read."""
        return self.size if self.data is None else len(self.data)


def decoded(text: bytes) -> str:
    """The first 4 * MAX_CAPTION bytes of a UTF-8 text.  Raises UnicodeDecodeError for any other coding."""
    start = text[: 4 * MAX_CAPTION]
    return codecs.getincrementaldecoder("utf-8-sig")().decode(start, final=len(start) < 4 * MAX_CAPTION)


def clean(caption: object) -> str:
    """A caption as one line of printable characters, cut at MAX_CAPTION; empty for anything but text."""
    if not isinstance(caption, str):
        return ""
    words = "".join(c if c.isprintable() else " " for c in caption[: 2 * MAX_CAPTION]).split()
    return " ".join(words)[:MAX_CAPTION]


def listed(columns: Sequence[str]) -> str:
    """Columns in a sentence, which stays one whatever the file says."""
    more = len(columns) - MAX_LISTED
    return ", ".join(column[:MAX_NAME] for column in columns[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


class NoUsualColumn(UserError):
    """No column was named, and none has a usual name."""


def choose_column(columns: Sequence[str], wanted: str | None, usual: Sequence[str], what: str) -> str:
    """The column that is `wanted`, or else the first with a usual name.

    Raises UserError if there is none that is `wanted`, NoUsualColumn if none is usual.
    """
    if wanted is not None:
        if wanted not in columns:
            raise UserError(f"There is no column '{wanted}': choose the {what}s among {listed(columns)}.")
        return wanted
    lower = {column.lower(): column for column in reversed(columns)}
    found = next((lower[name] for name in usual if name in lower), None)
    if found is None:
        raise NoUsualColumn(
            f"No column is named as {what}s usually are: name it with --{what}-column, of {listed(columns)}."
        )
    return found

"""The ledger of a store: which parts of which sources are in it, and which of their pictures could not be used.

A second table beside the pictures, so that it works wherever they do.  A part is entered after its pictures are, in one
write: what is in the ledger is in the store.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field

import pyarrow as pa

from bat_ui.store.place import Place
from bat_ui.store.records import UNREAD
from bat_ui.store.table import among

TABLE = "ingested"
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("number", pa.int64()),
        ("name", pa.string()),
        ("address", pa.string()),
        ("licence", pa.string()),
        ("pictures", pa.int64()),
        ("broken", pa.list_(pa.struct([("file", pa.string()), ("reason", pa.string())]))),
    ]
)


@dataclass
class Entry:
    """One part: its key and number, the name, address and licence of its source, how many pictures it gave (new or known
    before), and the broken ones with the reason."""

    key: str
    number: int
    name: str
    address: str
    licence: str
    pictures: int = 0
    broken: list[dict[str, str]] = field(default_factory=list)
    replaced: int = 0  # of the pictures; like the next one not kept
    recaptioned: int = 0

    @property
    def complete(self) -> bool:
        """False if something kept the part from being read that may have passed by the next time."""
        return not any(row["reason"].startswith(UNREAD) for row in self.broken)


class Ledger:
    """The entries of a store, in memory and in its table."""

    def __init__(self, place: Place):
        import lancedb

        self._table = lancedb.connect(place.uri).create_table(TABLE, schema=SCHEMA, exist_ok=True)
        self.entries = [Entry(**row) for row in self._table.to_arrow().to_pylist()]

    @staticmethod
    def is_at(place: Place) -> bool:
        """Whether the store has a ledger: one that the program builds as a whole has none."""
        return (place / f"{TABLE}.lance").is_folder()

    def add(self, entries: Sequence[Entry]) -> None:
        """Enter parts whose pictures are written."""
        if entries:
            self._table.add(pa.Table.from_pylist([asdict(entry) for entry in entries], schema=SCHEMA))
            self.entries += entries

    def forget(self, keys: Collection[str]) -> None:
        """Strike out parts that their source does not have any more."""
        if keys:
            self._table.delete(among(keys, "key"))
            self.entries = [entry for entry in self.entries if entry.key not in keys]

    def correct_licence(self, name: str, licence: str) -> None:
        """Make `licence` the one of all parts of this name."""
        self._table.update(where=among([name], "name"), values={"licence": licence})
        for entry in self.entries:
            if entry.name == name:
                entry.licence = licence

    @property
    def next_number(self) -> int:
        """The number of the next part."""
        return max((entry.number for entry in self.entries), default=-1) + 1

    @property
    def latest(self) -> dict[str, Entry]:
        """What was said last of each part, by its key."""
        return {entry.key: entry for entry in self.entries}

    @property
    def broken(self) -> dict[str, str]:
        """Reasons by file, of all parts."""
        return {row["file"]: row["reason"] for entry in self.latest.values() for row in entry.broken}

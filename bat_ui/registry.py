"""The registry: what projects are called, in which order they stand, which are deleted; and the table of jobs (queue.py).

In: the data folder.  Out: registry.sqlite in it.  Results are not its business: those are in the projects' folders, and a
folder that it does not know is taken in, so that losing the registry loses names and nothing else.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bat_ui.errors import UserError
from bat_ui.files import read_json, whole_folder
from bat_ui.project import Project, data_folder, find_project, is_project_id, new_project, projects_folder

log = logging.getLogger("bat_ui.registry")

MAX_NAME = 80  # characters
TIMEOUT = 30  # seconds to wait for another process that writes
KEPT = 7 * 24 * 3600  # seconds for which a deleted project can be brought back
NOT_COPIED = shutil.ignore_patterns("runs", "status", "exports", ".*")  # into a duplicate
SCHEMA = """
CREATE TABLE IF NOT EXISTS projects (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, position INTEGER NOT NULL, created REAL NOT NULL, deleted_at REAL
);
CREATE TABLE IF NOT EXISTS jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    project TEXT NOT NULL, run TEXT NOT NULL, verb TEXT NOT NULL, arguments TEXT NOT NULL,
    state TEXT NOT NULL, device TEXT, pid INTEGER, pid_started REAL,
    created REAL NOT NULL, started REAL, ended REAL
);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state);
CREATE INDEX IF NOT EXISTS jobs_by_place ON jobs (project, run, verb);
"""

_mine = threading.local()


@dataclass(frozen=True)
class Entry:
    """A project's row; `name` is empty until somebody gives it one."""

    id: str
    name: str
    deleted_at: float | None = None

    @property
    def project(self) -> Project:
        return Project(projects_folder() / self.id)

    @property
    def shown_name(self) -> str:
        """Its name, else what its subject is."""
        try:
            draft = read_json(self.project.folder / "draft.json") or {}
        except ValueError:  # a disk that lost power
            draft = {}
        return self.name or draft.get("class_noun") or "Untitled"


def projects() -> list[Entry]:
    """The projects that are not deleted, in order; folders without a row are taken in first."""
    folders = {folder.name for folder in projects_folder().glob("*") if is_project_id(folder.name) and folder.is_dir()}
    rows = _entries()
    unknown = sorted(folders - {row.id for row in rows})
    if unknown:
        with database() as db:
            for id in unknown:
                _insert(db, id)
        rows = _entries()
    return [row for row in rows if row.id in folders and row.deleted_at is None]


def deleted() -> list[Entry]:
    """The projects that can be brought back, last deleted first."""
    rows = [row for row in _entries() if row.deleted_at is not None and row.project.folder.is_dir()]
    return sorted(rows, key=lambda row: -row.deleted_at)


def find(id: str) -> Project:
    """The project with that id.  Raises UserError if there is none or it is deleted."""
    project = find_project(id)
    if query("SELECT 1 FROM projects WHERE id = ? AND deleted_at IS NOT NULL", id):
        raise UserError("This project was deleted: bring it back or choose another one.")
    return project


def make(name: str = "") -> Project:
    """A new, empty project, first in order."""
    name = _checked(name)
    project = new_project()
    with database() as db:
        _insert(db, project.folder.name, name)
    return project


def rename(id: str, name: str) -> None:
    """Give a project a name; an empty one gives it back its subject's.  Raises UserError for a name that is too long."""
    find(id)
    _set(id, name=_checked(name))


def duplicate(id: str) -> Project:
    """A project with the same pictures, choice and settings, without the runs."""
    source = find(id)
    name = next(row.shown_name for row in projects() if row.id == id)
    copy = Project(projects_folder() / secrets.token_hex(8))
    with whole_folder(copy.folder) as draft:
        shutil.copytree(source.folder, draft, ignore=NOT_COPIED, dirs_exist_ok=True)
    with database() as db:
        _insert(db, copy.folder.name, f"{name[: MAX_NAME - 7]} (copy)")
    return copy


def move_up(id: str) -> None:
    """Change places with the project above; the first one stays."""
    order = [row.id for row in projects()]
    if id in order[1:]:
        above = order[order.index(id) - 1]
        with database() as db:
            places = dict(db.execute("SELECT id, position FROM projects WHERE id IN (?, ?)", (id, above)).fetchall())
            db.execute("UPDATE projects SET position = ? WHERE id = ?", (places[above], id))
            db.execute("UPDATE projects SET position = ? WHERE id = ?", (places[id], above))


def delete(id: str) -> None:
    """Take a project off the list; its folder stays for KEPT seconds, so that `restore` can bring it back."""
    find(id)
    _set(id, deleted_at=time.time())


def restore(id: str) -> None:
    """Bring a deleted project back.  Raises UserError if its folder is gone."""
    find_project(id)
    _set(id, deleted_at=None)


def purge(older_than: float = KEPT) -> None:
    """Remove projects that were deleted more than so many seconds ago for good."""
    for row in deleted():
        if row.deleted_at < time.time() - older_than:
            shutil.rmtree(row.project.folder, ignore_errors=True)
            with database() as db:
                db.execute("DELETE FROM projects WHERE id = ?", (row.id,))
                db.execute("DELETE FROM jobs WHERE project = ?", (row.id,))


@contextmanager
def database() -> Iterator[sqlite3.Connection]:
    """One transaction, alone: it is kept when the block ends and undone if the block fails."""
    db = _connection()
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def query(sql: str, *values) -> list[sqlite3.Row]:
    """The rows that a question gives."""
    return _connection().execute(sql, values).fetchall()


def _connection() -> sqlite3.Connection:
    """This thread's own, made anew if the file is."""
    file = data_folder() / "registry.sqlite"
    known = getattr(_mine, "connection", None)
    if known is None or known[0] != file or not file.is_file():
        _prepare(file)
        _mine.connection = (file, _connect(file))
    return _mine.connection[1]


def _connect(file: Path) -> sqlite3.Connection:
    db = sqlite3.connect(file, timeout=TIMEOUT, isolation_level=None)
    db.row_factory = sqlite3.Row
    return db


def _prepare(file: Path) -> None:
    """Make the tables; a file that is no database (any more) is put aside and a new one begun."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        _create(file)
    except sqlite3.DatabaseError as problem:
        if isinstance(problem, sqlite3.OperationalError):  # locked, or no room: nothing is wrong with the file
            raise
        log.warning("%s is damaged (%s): it is put aside, names of projects are lost", file.name, problem)
        for part in (file, *(file.with_name(file.name + end) for end in ("-wal", "-shm"))):
            if part.exists():
                os.replace(part, part.with_name(part.name + ".damaged"))
        _create(file)


def _create(file: Path) -> None:
    db = _connect(file)
    try:
        _use_write_ahead_log(db)
        if (found := db.execute("PRAGMA quick_check").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(found)
        db.executescript(SCHEMA)
    finally:
        db.close()


def _use_write_ahead_log(db: sqlite3.Connection) -> None:
    """Here SQLite does not wait for another's lock, whatever the timeout: ask again until it is free."""
    give_up = time.monotonic() + TIMEOUT
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as problem:
            if "locked" not in str(problem) or time.monotonic() > give_up:
                raise
            time.sleep(0.01)


def _entries() -> list[Entry]:
    return [Entry(*row) for row in query("SELECT id, name, deleted_at FROM projects ORDER BY position DESC")]


def _insert(db: sqlite3.Connection, id: str, name: str = "") -> None:
    db.execute(
        "INSERT INTO projects (id, name, position, created) "
        "SELECT ?, ?, COALESCE(MAX(position), 0) + 1, ? FROM projects WHERE true ON CONFLICT DO NOTHING",
        (id, name, time.time()),
    )


def _set(id: str, **values) -> None:
    [(column, value)] = values.items()
    with database() as db:
        _insert(db, id)
        db.execute(f"UPDATE projects SET {column} = ? WHERE id = ?", (value, id))


def _checked(name: str) -> str:
    name = " ".join(name.split())
    if len(name) > MAX_NAME:
        raise UserError(f"The name has {len(name)} characters: shorten it to {MAX_NAME}.")
    return name

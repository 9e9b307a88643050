"""A project on disk: one folder that holds the result of every stage and the state of whatever is running.

In: a folder.  Out: the paths of its parts, its settings and report, status files that any process may read at any moment,
and its runs: the same project trained several times, each in a folder of its own that holds all that it was trained on.
The folder is the only truth about results; names and the queue are the registry's (registry.py).
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import platformdirs

from bat_ui.errors import UserError
from bat_ui.files import read_json, write_json
from bat_ui.hardware import describe_hardware, peak_memory
from bat_ui.processes import is_alive, job_process, started_at
from bat_ui.settings import read_settings

Settings = TypeVar("Settings")
DELETED = ".deleted-"  # before the id of a deleted run, in the name of its folder
VERBS = ("select", "train", "generate", "ingest")
PACKAGES = ("torch", "diffusers", "peft", "open-clip-torch", "lancedb", "pillow")
Progress = Callable[[str, int, int], None]  # what is being done, how many are done, of how many


def silent(what: str, done: int, total: int) -> None:
    """A Progress that tells nobody."""


class Clock:
    """Seconds of each part of a stage, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._exact: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Book the time since the last lap under `name`, beside what is there."""
        now = time.perf_counter()
        self._exact[name] = self._exact.get(name, 0.0) + now - self._last
        self.seconds[name] = round(self._exact[name], 2)
        self._last = now


def data_folder(folder: str | Path | None = None) -> Path:
    """Where projects and stores are kept: `folder`, else the variable BAT_UI_DATA, else the user's data folder."""
    return Path(folder or os.environ.get("BAT_UI_DATA") or platformdirs.user_data_dir("bat-ui"))


@dataclass(frozen=True)
class Run:
    """One training: paths of what it is made from (subject, choice) and of what it leaves.

    `choice` is selection.json, in the format of choice.py.
    """

    folder: Path

    @property
    def subject(self) -> Path:
        return self.folder / "subject"

    @property
    def subject_marker(self) -> Path:
        """Present once the subject is complete."""
        return self.subject / "subject.json"

    @property
    def choice(self) -> Path:
        return self.folder / "selection.json"

    @property
    def learned_from(self) -> Path:
        """The choice as it was when the training began; `choice` may have changed since."""
        return self.folder / "learned_from.json"

    @property
    def choice_of_adapter(self) -> Path:
        return self.learned_from if self.learned_from.is_file() else self.choice

    @property
    def own_pictures(self) -> Path:
        """Pictures that the user added beside the backbone's, in the format of additions.py."""
        return self.folder / "own"

    @property
    def lora(self) -> Path:
        return self.folder / "lora"

    @property
    def adapter(self) -> Path | None:
        """The trained LoRA file, or None."""
        return next(iter(sorted(self.lora.glob("*.safetensors"))), None)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def losses(self) -> Path:
        return self.folder / "losses.jsonl"

    @property
    def metrics(self) -> Path:
        """What was measured at each checkpoint, in the format of validation.py."""
        return self.folder / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """Pictures that were asked for and, in step-NNNNNN/, those drawn at each checkpoint."""
        return self.folder / "samples"

    @property
    def exports(self) -> Path:
        """What is there to be taken home."""
        return self.folder / "exports"

    @property
    def report(self) -> Path:
        return self.folder / "report.json"

    @property
    def is_outdated(self) -> bool:
        """Whether the subject was made anew since the pictures of the choice were looked for."""
        made = (read_json(self.report) or {}).get("selection", {}).get("subject_made")
        return bool(made) and self.subject_marker.is_file() and self.subject_marker.stat().st_mtime_ns != made

    def status_file(self, verb: str) -> Path:
        return self.folder / "status" / f"{verb}.json"

    def stop_file(self, verb: str) -> Path:
        """Its presence asks a running verb to stop, saving what it has."""
        return self.folder / "status" / f"{verb}.stop"

    def log_file(self, verb: str) -> Path:
        """What a worker prints."""
        return self.folder / "status" / f"{verb}.log"

    def status(self, verb: str) -> dict:
        """The last status of a verb: state is absent, running, done, failed or stopped.

        A run whose process is gone without a last word is reported as failed, so that nothing stays running for ever.
        """
        status = {"verb": verb, "state": "absent"} | self.last_word(verb)
        if status["state"] == "running" and not is_alive(status.get("pid"), status.get("pid_started")):
            status |= {"state": "failed", "message": "The run ended without a word: start it again to go on."}
        return status

    def last_word(self, verb: str) -> dict:
        """What a verb's status file says; empty where there is none."""
        try:
            return read_json(self.status_file(verb)) or {}
        except ValueError:  # a disk that lost power; the work's own files say how far it came
            return {"verb": verb, "state": "failed", "message": "Its last status was lost: start it again to go on."}

    def add_to_report(self, part: str, values: dict) -> None:
        """Merge one stage's settings, times and losses into report.json."""
        report = read_json(self.report) or {}
        report["versions"] = {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}
        report["hardware"] = describe_hardware()
        report[part] = {key: asdict(value) if is_dataclass(value) else value for key, value in values.items()}
        write_json(self.report, report)

    def remember(self, *parts: object) -> None:
        """Keep settings, so that a run can go on with its own and any page that opens the project shows them."""
        saved = read_json(self._settings) or {}
        write_json(self._settings, saved | {type(part).__name__: asdict(part) for part in parts})

    def remembered(self, kind: type[Settings], photos: bool = False) -> Settings:
        """The settings of that kind, where there are none the defaults for stickers or for photos."""
        return read_settings(kind, (read_json(self._settings) or {}).get(kind.__name__, {}), photos)

    @property
    def _settings(self) -> Path:
        return self.folder / "settings.json"


class Project(Run):
    """What runs are made from, and how it was found.  A project is a run itself, so that the command line needs no other;
    further ones lie in runs/ID."""

    @property
    def sketches(self) -> Path:
        return self.folder / "sketches.safetensors"

    @property
    def new_sketches(self) -> Path:
        """Those of a search whose choice is not saved yet."""
        return self.folder / ".sketches.new"

    @property
    def candidates(self) -> Path:
        return self.folder / "candidates"

    def candidate_picture(self, id: str) -> Path:
        """The picture of a candidate, for people to look at; an id may hold what no file name can."""
        return self.candidates / f"{hashlib.sha256(id.encode()).hexdigest()[:16]}.png"

    def candidate_thumbnail(self, id: str) -> Path:
        """A small copy of a candidate's picture; only large ones have one."""
        return self.candidate_picture(id).with_suffix(".jpg")

    @property
    def choice_history(self) -> Path:
        """Earlier choices, in the format of history.py."""
        return self.folder / "history.json"

    @property
    def runs(self) -> list[Run]:
        """The further runs, oldest first; a run's id is its folder's name."""
        folders = (self.folder / "runs").glob("[0-9]*")
        return [Run(folder) for folder in sorted(folders, key=lambda folder: (len(folder.name), folder.name))]

    def run(self, id: str) -> Run:
        """The run with that id.  Raises UserError if there is none; an id is never taken for a path."""
        folder = self.folder / "runs" / id
        if not re.fullmatch(r"[0-9]{3,6}", id) or not folder.is_dir():
            raise UserError("There is no such run in this project: choose one from the list.")
        return Run(folder)

    @property
    def deleted_run(self) -> str | None:
        """The id of the run that was deleted last, which can be brought back; None if there is none."""
        gone = [folder for folder in (self.folder / "runs").glob(f"{DELETED}*") if any(folder.iterdir())]
        return gone[0].name.removeprefix(DELETED) if gone else None

    def delete_run(self, id: str) -> None:
        """Take a run off the list; it can be brought back until another one is deleted, and its id is not given again.

        Raises UserError if there is no such run.
        """
        run, before = self.run(id), self.deleted_run
        if before is not None:
            emptied = self.folder / "runs" / f"{DELETED}{before}"
            shutil.rmtree(emptied)
            emptied.mkdir()
        run.folder.rename(self.folder / "runs" / f"{DELETED}{id}")

    def restore_run(self) -> Run:
        """Bring the run back that was deleted last.  Raises UserError if there is none."""
        id = self.deleted_run
        if id is None:
            raise UserError("There is no deleted run to bring back.")
        return Run((self.folder / "runs" / f"{DELETED}{id}").rename(self.folder / "runs" / id))

    def new_run(self, *settings: object) -> Run:
        """A run with copies of the subject, the choice and all its pictures as they are now, and these settings.

        Raises UserError if one of the two is missing.
        """
        if not self.subject_marker.is_file():
            raise UserError("Finish step 1 first: press “Use these pictures” there.")
        if not self.choice.is_file():
            raise UserError("Finish step 2 first: find helpful pictures, or choose the rule None and press the button.")
        draft = Run(self.folder / "runs" / f".{secrets.token_hex(8)}")
        try:
            shutil.copytree(self.subject, draft.subject)
            shutil.copy(self.choice, draft.choice)
            if self.own_pictures.is_dir():
                shutil.copytree(self.own_pictures, draft.own_pictures)
            self._copy_chosen(Project(draft.folder))
            draft.remember(*settings)
            used = [folder.name.removeprefix(DELETED) for folder in (self.folder / "runs").iterdir()]
            number = 1 + max((int(name) for name in used if name.isdecimal()), default=0)
            while True:
                try:
                    return Run(draft.folder.rename(self.folder / "runs" / f"{number:03d}"))
                except OSError:
                    if not (self.folder / "runs" / f"{number:03d}").is_dir():
                        raise
                    number += 1  # somebody else was faster
        finally:
            shutil.rmtree(draft.folder, ignore_errors=True)

    def _copy_chosen(self, run: Project) -> None:
        """The chosen pictures as they were looked at, since the next search replaces the project's."""
        run.candidates.mkdir()
        for candidate in (read_json(self.choice) or {}).get("candidates", []):
            picture = self.candidate_picture(candidate["id"])
            if candidate["chosen"] and picture.is_file():
                shutil.copy(picture, run.candidates)


def projects_folder() -> Path:
    """Where the page keeps its projects, each in a folder named by its id."""
    return data_folder() / "projects"


def new_project() -> Project:
    """An empty project under a random id."""
    folder = projects_folder() / secrets.token_hex(8)
    folder.mkdir(parents=True)
    return Project(folder)


def is_project_id(id: str) -> bool:
    """True for what could be a project's id; nothing else is ever made a path of."""
    return re.fullmatch(r"[0-9a-f]{16}", id) is not None


def find_project(id: str) -> Project:
    """The project with that id.  Raises UserError if there is none; an id is never taken for a path."""
    folder = projects_folder() / id if is_project_id(id) else None
    if folder is None or not folder.is_dir():
        raise UserError("There is no such project: start a new one.")
    return Project(folder)


class StatusWriter:
    """Writes a verb's status file as its work goes on; call it as a Progress.

    Beside what is being done now the file keeps `parts`, by what was done: how far it came, since when, and its `pace` a
    second, in which other parts in between do not count; and the largest memory so far, in bytes.
    """

    MIN_SECONDS = 0.2  # between two writes

    def __init__(self, run: Run, verb: str):
        self.run, self.verb = run, verb
        began, pid = time.time(), job_process()
        self.record = {"verb": verb, "state": "running", "pid": pid, "pid_started": started_at(pid), "started": began}
        self.record |= {"message": "", "parts": {}}
        self._last = self._called = 0.0
        self._busy: dict[str, list[float]] = {}  # for each part: how much was made, in how many seconds
        wish = run.stop_file(verb)
        if wish.exists() and wish.stat().st_mtime < self.record["pid_started"]:  # to stop the one before
            wish.unlink()
        self("Starting", 0, 1)

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.time()
        before = self.record.get("what")
        part = self.record["parts"].setdefault(what, {"since": now, "first": done, "done": done})
        if what == before:
            busy = self._busy.setdefault(what, [0, 0.0])
            busy[0] += done - part["done"]
            busy[1] += now - self._called
            part["pace"] = round(busy[0] / busy[1], 3) if busy[1] > 0 else None
        self._called = now
        part |= {"done": done, "total": total}
        if what == before and now - self._last < self.MIN_SECONDS and done < total:
            return
        self._last = now
        self.record |= {"what": what, "done": done, "total": total, "updated": now}
        self.record |= {"since": part["since"], "first": part["first"], "memory": peak_memory()}
        write_json(self.run.status_file(self.verb), self.record)

    def finish(self, state: str, message: str = "") -> None:
        """The last word: state is done, failed or stopped."""
        self.record |= {"state": state, "message": message, "updated": time.time(), "memory": peak_memory()}
        write_json(self.run.status_file(self.verb), self.record)

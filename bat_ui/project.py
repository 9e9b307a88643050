"""A project on disk: one folder that holds the result of every stage and the state of whatever is running.

In: a folder.  Out: the paths of its parts, its report, and status files that any process may read at any moment.
The folder is the only truth: the page, the command line and the workers hold nothing that is not here.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass
from importlib.metadata import version
from pathlib import Path

import platformdirs

from bat_ui.errors import UserError
from bat_ui.files import read_json, write_json
from bat_ui.hardware import describe_hardware

Progress = Callable[[str, int, int], None]  # what is being done, how many are done, of how many

VERBS = ("select", "train", "generate")
PACKAGES = ("torch", "diffusers", "peft", "open-clip-torch", "lancedb", "pillow")


def data_folder(folder: str | Path | None = None) -> Path:
    """Where projects and stores are kept: `folder`, else the variable BAT_UI_DATA, else the user's data folder."""
    return Path(folder or os.environ.get("BAT_UI_DATA") or platformdirs.user_data_dir("bat-ui"))


@dataclass(frozen=True)
class Project:
    """Paths of the stages' results. `choice` is selection.json, in the format of choice.py."""

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
    def sketches(self) -> Path:
        return self.folder / "sketches.safetensors"

    @property
    def candidates(self) -> Path:
        return self.folder / "candidates"

    def candidate_picture(self, id: str) -> Path:
        """The picture of a candidate, for people to look at; an id may hold what no file name can."""
        return self.candidates / f"{hashlib.sha256(id.encode()).hexdigest()[:16]}.png"

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
    def samples(self) -> Path:
        return self.folder / "samples"

    @property
    def report(self) -> Path:
        return self.folder / "report.json"

    def status_file(self, verb: str) -> Path:
        return self.folder / "status" / f"{verb}.json"

    def stop_file(self, verb: str) -> Path:
        """Its presence asks a running verb to stop, saving what it has."""
        return self.folder / "status" / f"{verb}.stop"

    def status(self, verb: str) -> dict:
        """The last status of a verb: state is absent, running, done, failed or stopped.

        A run whose process is gone without a last word is reported as failed, so that nothing stays running for ever.
        """
        status = read_json(self.status_file(verb)) or {"verb": verb, "state": "absent"}
        if status["state"] == "running" and not _alive(status.get("pid", -1)):
            status |= {"state": "failed", "message": "The run ended without a word: start it again to go on."}
        return status

    def add_to_report(self, part: str, values: dict) -> None:
        """Merge one stage's settings, times and losses into report.json."""
        report = read_json(self.report) or {}
        report["versions"] = {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}
        report["hardware"] = describe_hardware()
        report[part] = {key: asdict(value) if is_dataclass(value) else value for key, value in values.items()}
        write_json(self.report, report)


def projects_folder() -> Path:
    """Where the page keeps its projects, each in a folder named by its id."""
    return data_folder() / "projects"


def new_project() -> Project:
    """An empty project under a random id, which only who made it knows."""
    folder = projects_folder() / secrets.token_hex(8)
    folder.mkdir(parents=True)
    return Project(folder)


def find_project(id: str) -> Project:
    """The project with that id.  Raises UserError if there is none; an id is never taken for a path."""
    folder = projects_folder() / id if re.fullmatch(r"[0-9a-f]{16}", id) else None
    if folder is None or not folder.is_dir():
        raise UserError("There is no such project: start a new one.")
    return Project(folder)


class StatusWriter:
    """Writes a verb's status file as its work goes on; call it as a Progress."""

    MIN_SECONDS = 0.2  # between two writes

    def __init__(self, project: Project, verb: str):
        self.project, self.verb = project, verb
        self.record = {"verb": verb, "state": "running", "pid": os.getpid(), "started": time.time(), "message": ""}
        self._last = 0.0
        project.stop_file(verb).unlink(missing_ok=True)
        self("Starting", 0, 1)

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.time()
        if what != self.record.get("what"):
            self.record |= {"what": what, "since": now, "first": done}
        elif now - self._last < self.MIN_SECONDS and done < total:
            return
        self._last = now
        self.record |= {"done": done, "total": total, "updated": now}
        write_json(self.project.status_file(self.verb), self.record)

    def finish(self, state: str, message: str = "") -> None:
        """The last word: state is done, failed or stopped."""
        self.record |= {"state": state, "message": message, "updated": time.time()}
        write_json(self.project.status_file(self.verb), self.record)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError, ValueError):
        return False
    except PermissionError:
        return True
    return True

"""The queue: verbs of the command line as jobs, one at a time on each device, each a process that outlives the server.

A training may ask for several devices and then has them to itself.

A download is prepared beside them, on the processor, so that nobody waits for a training to take home another one's LoRA.

In: a project or one of its runs, a verb, settings.  Out: rows in the registry's table of jobs, processes, and the verbs'
status files.  Who calls `advance` now and then keeps it going; a server that comes back finds living processes by their id
and start time and goes on.  Left out on purpose: results, which the verbs themselves write.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

from bat_ui.errors import UserError, explained
from bat_ui.files import write_json
from bat_ui.hardware import devices
from bat_ui.options import option_name
from bat_ui.processes import find_process, is_alive, kill_tree, started_at
from bat_ui.project import Run, projects_folder
from bat_ui.registry import database, query

log = logging.getLogger("bat_ui.queue")

ROOT = Path(__file__).parents[1]
COMMAND = (sys.executable, "-m", "bat_ui")
NOUNS = {
    "select": "search for helpful pictures",
    "train": "training",
    "generate": "drawing of samples",
    "export": "preparation of a download",
    "ingest": "bringing in of pictures",
}
PLACE = {"ingest": ["--project"]}  # what a verb's folder is called on the command line, where it does not come first
BESIDE, DESK = "export", "desk"  # the verb that needs no device, and what it has instead
UNSETTLED = "SELECT * FROM jobs WHERE state IN ('waiting', 'running') ORDER BY state = 'waiting', id"
SECONDS = 0.5  # between two looks at the queue
TO_START = 10.0  # seconds after which a started job without a process id was forgotten by a server that died
SILENT = "It ended without a last word; perhaps the machine ran out of memory or was switched off."

# Threads that spin while they wait for one another keep each other from a core that another program wants, too: on a busy
# machine a training step took two to twelve times as long. Where nothing else runs, waiting like this costs nothing.
WORKING = {"GOMP_SPINCOUNT": "1000"}
_processes: dict[int, subprocess.Popen] = {}  # this server's own, by process id


@dataclass(frozen=True)
class Job:
    """One verb of one project or run. `state` is waiting, running, done, failed, stopped or cancelled; `run` is empty for
    what the project itself does; times are seconds since the epoch."""

    id: int
    project: str
    run: str
    verb: str
    arguments: tuple[str, ...]
    state: str
    device: str | None
    pid: int | None
    pid_started: float | None
    created: float
    started: float | None
    ended: float | None

    @property
    def devices(self) -> list[str]:
        """What it computes on; empty while it waits."""
        return self.device.split(",") if self.device else []

    @property
    def processes(self) -> int:
        """How many devices it asks for."""
        said = [word.partition("=")[2] for word in self.arguments if word.startswith("--processes=")]
        return int(said[-1]) if said else 1

    @property
    def place(self) -> Run:
        """The folder that it works in."""
        folder = projects_folder() / self.project
        return Run(folder / "runs" / self.run if self.run else folder)


def options(settings: Iterable[object]) -> list[str]:
    """The command line's options that say the same as some settings; a seed that several have is said once."""
    said: dict[str, str] = {}
    for part in settings:
        for field in fields(part):
            value = getattr(part, field.name)
            if value is not None:
                said[option_name(type(part), field.name).replace("_", "-")] = str(value)
    return [f"--{name}={value}" for name, value in said.items()]


def add(place: Run, verb: str, arguments: Sequence[str] = ()) -> Job:
    """Put `python -m bat_ui VERB PLACE ARGUMENTS` at the end of the queue; `ingest` says its source in the arguments.

    Raises UserError if the same verb waits or runs there already.
    """
    project, run = _names(place)
    with database() as db:
        if any((job.project, job.run, job.verb) == (project, run, verb) for job in active()):
            raise UserError(f"The {NOUNS[verb]} is already in the queue: wait for it or stop it first.")
        id = db.execute(
            "INSERT INTO jobs (project, run, verb, arguments, state, created) VALUES (?, ?, ?, ?, 'waiting', ?)",
            (project, run, verb, json.dumps(list(arguments)), time.time()),
        ).lastrowid
    return find(id)


def find(id: int) -> Job:
    """The job with that number.  Raises UserError if there is none."""
    rows = query("SELECT * FROM jobs WHERE id = ?", id)
    if not rows:
        raise UserError("There is no such job in the queue: look at the list again.")
    return _job(rows[0])


def active() -> list[Job]:
    """What runs, then what waits, in order; without processes that have said their last word and are about to end."""
    return [job for job in _unsettled() if not _has_ended(job)]


def status(place: Run | None, verb: str) -> dict:
    """A verb's status file, or {"state": "waiting", "place": n} for the n-th in the queue; with the number of its `job`
    and whether it is `stopping`.  Of no place at all it is absent."""
    if place is None:
        return {"verb": verb, "state": "absent"}
    try:
        project, run = _names(place)
    except ValueError:  # a project elsewhere, which the queue has nothing to do with
        return place.status(verb)
    rows = query(
        "SELECT * FROM jobs WHERE project = ? AND run = ? AND verb = ? ORDER BY id DESC LIMIT 1", project, run, verb
    )
    if not rows:
        return place.status(verb)
    job = _job(rows[0])
    if job.state == "waiting":
        alike = "state = 'waiting' AND id <= ? AND (verb = ?) = ?"
        [(before,)] = query(f"SELECT COUNT(*) FROM jobs WHERE {alike}", job.id, BESIDE, verb == BESIDE)
        return {"verb": verb, "state": "waiting", "place": before, "job": job.id, "message": ""}
    found = place.status(verb)
    if job.state == "running" and (job.pid is None or found.get("pid") != job.pid):  # its first word is about to be written
        found = _first_word(job)
    stopping = job.state == "running" and place.stop_file(verb).exists()
    if stopping and found["state"] == "failed":  # ended at once, as asked; `advance` is about to put it down
        found |= {"state": "stopped", "message": ""}
    return {**found, "job": job.id, "stopping": stopping}


def stop(job: Job, now: bool = False) -> None:
    """Take a waiting job out of the queue; ask a running one to stop and save what it can, or end it at once if `now`."""
    with database() as db:
        taken_out = db.execute(
            "UPDATE jobs SET state = 'cancelled', ended = ? WHERE id = ? AND state = 'waiting'", (time.time(), job.id)
        ).rowcount
    job = find(job.id)
    if taken_out or job.state != "running":
        return
    job.place.stop_file(job.verb).parent.mkdir(parents=True, exist_ok=True)
    job.place.stop_file(job.verb).touch()
    if is_alive(job.pid, job.pid_started):
        if now:
            kill_tree(job.pid)
        elif job.processes == 1:  # a launcher of several would end the others at once
            with suppress(ProcessLookupError):
                os.kill(job.pid, signal.SIGTERM)  # reaches it before it reads stop files, too


def stop_project(project: str) -> None:
    """Stop all jobs of a project, saving what can be saved."""
    for job in active():
        if job.project == project:
            stop(job)


def advance() -> None:
    """One turn: put down the end of jobs whose process is gone, and start the next ones on devices that are free."""
    for job in _unsettled():
        if job.state == "running" and not _runs(job):
            try:
                _settle(job)
            except Exception:  # one that cannot be put down must not keep the others from it
                log.exception("The end of job %d could not be put down", job.id)
    if any(job.state == "waiting" for job in _unsettled()):
        while (job := _claim()) is not None:
            _start(job)


def keep_going() -> threading.Thread:
    """Advance the queue for as long as this process lives."""

    def turn_after_turn() -> None:
        while True:
            try:
                advance()
            except Exception:  # such as a full disk: the next turn may do better
                log.exception("A turn of the queue failed")
                time.sleep(10 * SECONDS)
            time.sleep(SECONDS)

    thread = threading.Thread(target=turn_after_turn, daemon=True, name="queue")
    thread.start()
    return thread


def _unsettled() -> list[Job]:
    return [_job(row) for row in query(UNSETTLED)]


def _has_ended(job: Job) -> bool:
    said = job.place.status(job.verb)
    return job.pid is not None and said.get("pid") == job.pid and said["state"] in ("done", "stopped")


def _claim() -> Job | None:
    """The first waiting job whose folder nobody works in and that has as many free devices as it asks for, now running on
    them; None if there is none.  Nobody overtakes one that waits for several devices."""
    with database() as db:
        jobs = [_job(row) for row in db.execute(UNSETTLED).fetchall()]
        running = [job for job in jobs if job.state == "running"]
        folders, taken = {(job.project, job.run) for job in running}, {d for job in running for d in job.devices}
        every = devices()
        free = {True: [d for d in [DESK] if d not in taken], False: [d for d in every if d not in taken]}
        for job in jobs:
            if job.state == "running" or (job.project, job.run) in folders:
                continue
            there, wanted = free[job.verb == BESIDE], min(job.processes, len(every))
            if len(there) < wanted:
                there.clear()
                continue
            device, now = ",".join(there[:wanted]), time.time()
            db.execute("UPDATE jobs SET state = 'running', device = ?, started = ? WHERE id = ?", (device, now, job.id))
            return find(job.id)
    return None


def _start(job: Job) -> None:
    place, verb = job.place, job.verb
    place.stop_file(verb).parent.mkdir(parents=True, exist_ok=True)
    place.stop_file(verb).unlink(missing_ok=True)
    try:
        with open(place.log_file(verb), "wb") as output:
            process = subprocess.Popen(
                [*COMMAND, *_words(job), *job.arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=ROOT,
                env={**WORKING, **os.environ, "PYTHONUNBUFFERED": "1", **_visible(job.devices)},
            )
    except (OSError, ValueError) as problem:  # such as a text that no command line can hold
        _end(job, "failed")
        message = explained(problem) or f"It could not be started: {problem}."
        write_json(place.status_file(verb), _first_word(job) | {"state": "failed", "message": message})
        return
    _processes[process.pid] = process
    began = started_at(process.pid) or time.time()
    with database() as db:
        db.execute("UPDATE jobs SET pid = ?, pid_started = ? WHERE id = ?", (process.pid, began, job.id))
    # The worker needs seconds to import its libraries; until then this is its first word.
    if place.last_word(verb).get("pid") != process.pid:
        write_json(place.status_file(verb), _first_word(find(job.id)))


def _words(job: Job) -> list[str]:
    """The verb and its folder, as the command line takes them."""
    return [job.verb, *PLACE.get(job.verb, []), str(job.place.folder)]


def _first_word(job: Job) -> dict:
    now = time.time()
    said = {"verb": job.verb, "state": "running", "pid": job.pid, "pid_started": job.pid_started, "started": job.started}
    return said | {"what": "Starting", "done": 0, "total": 1, "first": 0, "since": now, "updated": now, "message": ""}


def _visible(own: list[str]) -> dict[str, str]:
    """The environment in which a process sees its own GPUs alone, and none at the desk."""
    if own == [DESK]:
        return {"CUDA_VISIBLE_DEVICES": ""}
    numbers = [device.partition(":")[2] for device in own if device.startswith("cuda:")]
    if not numbers:
        return {}
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {"CUDA_VISIBLE_DEVICES": ",".join(seen.split(",")[int(n)] if seen else n for n in numbers)}


def _runs(job: Job) -> bool:
    if job.pid is not None:
        if job.pid in _processes and _processes[job.pid].poll() is not None:
            del _processes[job.pid]
        return is_alive(job.pid, job.pid_started)
    if time.time() - job.started < TO_START:
        return True
    pid = find_process(_words(job))
    with database() as db:
        if pid is None:  # the server died between taking the job and starting it
            db.execute("UPDATE jobs SET state = 'waiting', device = NULL, started = NULL WHERE id = ?", (job.id,))
        else:
            db.execute("UPDATE jobs SET pid = ?, pid_started = ? WHERE id = ?", (pid, started_at(pid), job.id))
    return True


def _settle(job: Job) -> None:
    """Take over a job's last word; where its process died without one, say one for it."""
    place, verb = job.place, job.verb
    if not place.folder.is_dir():  # deleted meanwhile
        return _end(job, "stopped")
    said = place.status(verb)
    recorded = place.last_word(verb)
    if recorded.get("pid") != job.pid or recorded.get("state") == "running":
        asked = place.stop_file(verb).exists()
        message = "" if asked else _last_error(place.log_file(verb)) or SILENT
        said = {**_first_word(job), **recorded, "state": "stopped" if asked else "failed", "message": message}
        write_json(place.status_file(verb), said)
    place.stop_file(verb).unlink(missing_ok=True)
    _end(job, said["state"])


def _end(job: Job, state: str) -> None:
    with database() as db:
        db.execute("UPDATE jobs SET state = ?, ended = ? WHERE id = ?", (state, time.time(), job.id))


def _last_error(file: Path) -> str | None:
    """The sentence that the command line ended with, or where to look."""
    if not file.is_file():
        return None
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    said = next((line[len("error: ") :] for line in reversed(lines) if line.startswith("error: ")), None)
    if said is None and any(line.startswith("Traceback") for line in lines):
        return f"Something unexpected went wrong: see {file.name} in the folder {file.parent}."
    return said


def _job(row) -> Job:
    return Job(**{**dict(row), "arguments": tuple(json.loads(row["arguments"]))})


def _names(place: Run) -> tuple[str, str]:
    """The ids of project and run that a folder belongs to.  Raises ValueError for a folder elsewhere."""
    parts = place.folder.relative_to(projects_folder()).parts
    return parts[0], parts[2] if len(parts) > 1 else ""

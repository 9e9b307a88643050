"""Workers: the verbs of the command line, each in a process of its own that outlives page and server.

In: a project, a verb, settings.  Out: a running process whose state is the verb's status file in the project; what it
prints goes to PROJECT/status/VERB.log.  Left out on purpose: a queue; a project runs one verb at a time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path

from bat_ui.cli import option_name
from bat_ui.errors import UserError
from bat_ui.files import write_json
from bat_ui.project import VERBS, Project

ROOT = Path(__file__).parents[2]
NOUNS = {"select": "search for helpful pictures", "train": "training", "generate": "drawing of samples"}

_starting = threading.Lock()
_processes: dict[int, subprocess.Popen] = {}  # this server's own, by process id


def options(settings: Iterable[object]) -> list[str]:
    """The command line's options that say the same as some settings; a seed that several have is said once."""
    said: dict[str, str] = {}
    for part in settings:
        for field in fields(part):
            value = getattr(part, field.name)
            if value is not None:
                said[option_name(type(part), field.name).replace("_", "-")] = str(value)
    return [f"--{name}={value}" for name, value in said.items()]


def running_verb(project: Project) -> str | None:
    """The verb that runs in the project now, if any."""
    return next((verb for verb in VERBS if project.status(verb)["state"] == "running"), None)


def start(project: Project, verb: str, arguments: Sequence[str], command: Sequence[str] | None = None) -> None:
    """Start `python -m bat_ui VERB PROJECT ARGUMENTS` and return at once.

    Raises UserError if the project is busy.  `command` stands in for `python -m bat_ui` in tests.
    """
    with _starting:
        busy = running_verb(project)
        if busy:
            raise UserError(f"The {NOUNS[busy]} of this project is still running: wait for it or stop it first.")
        log = project.status_file(verb).with_suffix(".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        project.stop_file(verb).unlink(missing_ok=True)
        with open(log, "wb") as output:
            process = subprocess.Popen(
                [*(command or (sys.executable, "-m", "bat_ui")), verb, str(project.folder), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        # The worker needs seconds to import its libraries; until then this is its first word.
        now = time.time()
        first = {"verb": verb, "state": "running", "pid": process.pid, "started": now, "updated": now, "since": now}
        write_json(project.status_file(verb), first | {"what": "Starting", "done": 0, "total": 1, "first": 0, "message": ""})
    _processes[process.pid] = process
    threading.Thread(target=_wait, args=(process, project, verb), daemon=True).start()


def stop(project: Project, verb: str) -> None:
    """Ask a running verb to stop, saving what it can; returns at once.  Without a running verb nothing happens."""
    status = project.status(verb)
    if status["state"] != "running":
        return
    project.stop_file(verb).touch()
    process = _processes.get(status["pid"])
    if process is not None and process.poll() is None:
        process.terminate()  # reaches it before it reads stop files, too


def _wait(process: subprocess.Popen, project: Project, verb: str) -> None:
    """Reap the process; where it died without a last word, say one for it."""
    code = process.wait()
    _processes.pop(process.pid, None)
    status = project.status(verb)
    if status.get("pid") != process.pid or status["state"] in ("done", "stopped") or status.get("what") != "Starting":
        return
    stopped = project.stop_file(verb).exists()
    project.stop_file(verb).unlink(missing_ok=True)
    message = "" if stopped else _last_error(project.status_file(verb).with_suffix(".log"), code)
    write_json(project.status_file(verb), status | {"state": "stopped" if stopped else "failed", "message": message})


def _last_error(log: Path, code: int) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = next((line[len("error: ") :] for line in reversed(lines) if line.startswith("error: ")), None)
    return said or f"The worker ended with code {code} before it could begin: see {log.name} in the project's status folder."

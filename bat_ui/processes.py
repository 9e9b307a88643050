"""Processes by id and start time: an id alone may belong to a stranger by the time that it is looked at again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress

import psutil

LAUNCHER = "BAT_UI_LAUNCHER"  # in the environment of processes that share a job: the id of the one that started them

SLACK = 2.0  # seconds by which a process's start time may be told differently after the clock was set


def started_at(pid: int) -> float | None:
    """When the process began, in seconds since the epoch; None if there is none or only its corpse."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except (psutil.Error, ValueError, OverflowError, TypeError):
        return None


def is_alive(pid: int | None, began: float | None) -> bool:
    """True if the process with that id that began at that time still runs."""
    now = started_at(pid) if pid is not None else None
    return now is not None and began is not None and abs(now - began) < SLACK


def job_process() -> int:
    """The id of the process that whoever waits for this job knows: this one, or the one that launched it with others."""
    return int(os.environ.get(LAUNCHER, os.getpid()))


def kill_tree(pid: int) -> None:
    """End a process and all that it started at once; those that are gone already do not matter."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                one.kill()


def find_process(words: Sequence[str]) -> int | None:
    """The id of a process whose command line has these words in a row."""
    wanted = list(words)
    for process in psutil.process_iter(["cmdline"]):
        said = process.info["cmdline"] or []
        if any(said[i : i + len(wanted)] == wanted for i in range(len(said))):
            return process.pid
    return None

"""Processes by id and start time: an id alone may belong to a stranger by the time that it is looked at again."""

from __future__ import annotations

from collections.abc import Sequence

import psutil

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


def find_process(words: Sequence[str]) -> int | None:
    """The id of a process whose command line has these words in a row."""
    wanted = list(words)
    for process in psutil.process_iter(["cmdline"]):
        said = process.info["cmdline"] or []
        if any(said[i : i + len(wanted)] == wanted for i in range(len(said))):
            return process.pid
    return None

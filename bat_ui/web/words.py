"""What a project or a run is at, in a few words, and how runs are called.

In: a project or run on disk and the queue.  Out: plain text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from bat_ui import queue
from bat_ui.project import Project, Run
from bat_ui.settings import TrainingSettings

VERBS = {
    "select": "looking for pictures",
    "train": "training",
    "generate": "drawing",
    "export": "preparing a download",
    "ingest": "bringing in pictures",
}


def state_words(project: Project, jobs: Sequence[queue.Job]) -> str:
    """What a project is at, by the active jobs of the queue, else the furthest that it has come to."""
    mine = [job for job in jobs if job.project == project.folder.name]
    if mine:
        return VERBS[mine[0].verb] if mine[0].state == "running" else f"{VERBS[mine[0].verb]}: waits in the queue"
    runs = project.runs
    if runs:
        return run_words(runs[-1], runs[-1].status("train"))
    if project.choice.is_file():
        return "pictures chosen"
    return "subject ready" if project.subject_marker.is_file() else "not begun"


def run_words(run: Run, status: Mapping[str, Any]) -> str:
    """What a training is at."""
    state, part = status["state"], (status.get("parts") or {}).get("Training")
    if state == "waiting":
        return f"waits in the queue, place {status['place']}"
    if state == "running":
        return f"training: step {part['done']:,} of {part['total']:,}" if part else "training: starting"
    if state == "done":
        return "trained"
    saved = saved_step(run)
    at = f", saved at step {saved:,}" if saved else ", nothing saved yet"
    return {"stopped": "stopped" + at, "failed": "failed" + at}.get(state, "not begun")


def saved_step(run: Run) -> int:
    """The step of the last checkpoint, 0 where there is none."""
    return max((int(path.name.removeprefix("step-")) for path in run.checkpoints.glob("step-*")), default=0)


def run_name(run: Run) -> str:
    """A run by its number and what it was trained on."""
    learns = run.choice.is_file() and run.remembered(TrainingSettings).strength
    count = _taken(run.choice, run.choice.stat().st_mtime_ns) if learns else 0
    data = f"with {count} backbone picture{'s' * (count != 1)}" if count else "without backbone pictures"
    return f"Run {int(run.folder.name)}, {data}"


@lru_cache(maxsize=512)
def _taken(choice: Path, changed: int) -> int:
    """How many pictures a saved choice takes; read as plain JSON, since the page should be up before heavy imports."""
    return sum(candidate["chosen"] for candidate in json.loads(choice.read_text(encoding="utf-8"))["candidates"])

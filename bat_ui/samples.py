"""Samples of checkpoints on disk: for each step the pictures that were drawn at it, written by validation.py.

In: a run.  Out: paths, prompts and seeds.  Kept apart from what draws them, so that a page can look without heavy imports.
"""

from __future__ import annotations

from bat_ui.files import read_json
from bat_ui.project import Run

STEP = "step-"  # how the folders of steps are named
LISTING = "samples.json"


def step_name(step: int) -> str:
    """How the folder of what was kept or drawn at a step is named."""
    return f"{STEP}{step:06d}"


def steps_with_samples(run: Run) -> dict[int, list[dict]]:
    """For each step with samples, in order, its pictures: {"file": Path, "prompt", "seed", "of": "subject" or "class"}."""
    found = {}
    for folder in sorted(run.samples.glob(f"{STEP}*")):
        rows = read_json(folder / LISTING) or []
        found[int(folder.name.removeprefix(STEP))] = [{**row, "file": folder / row["file"]} for row in rows]
    return found


def put_aside(run: Run) -> None:
    """Move what was drawn last, with its listing, to samples/earlier/NNN."""
    drawn = [*run.samples.glob("*.png"), run.samples / "without", run.samples / LISTING]
    if not any(path.exists() for path in drawn):
        return
    earlier = run.samples / "earlier"
    folder = earlier / f"{max((int(path.name) for path in earlier.glob('[0-9]*')), default=0) + 1:03d}"
    folder.mkdir(parents=True)
    for path in drawn:
        if path.exists():
            path.rename(folder / path.name)


def drawn_earlier(run: Run) -> list[list[dict]]:
    """What was drawn before, the latest first, each as its pictures: {"file": Path, "prompt", "seed"}."""
    found = []
    for folder in sorted((run.samples / "earlier").glob("[0-9]*"), reverse=True):
        rows = read_json(folder / LISTING) or []
        found.append([{**row, "file": folder / row["file"]} for row in rows if (folder / row["file"]).is_file()])
    return [rows for rows in found if rows]

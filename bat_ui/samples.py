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

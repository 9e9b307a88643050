"""Adapters of a run: those that its checkpoints keep, and the one in use, which is drawn with, exported and downloaded.

In: a run.  Out: its adapter, replaced by a checkpoint's.  Which one is in use is told by the files alone.
"""

from __future__ import annotations

import hashlib
import shutil
from functools import lru_cache
from pathlib import Path

from bat_ui.errors import UserError
from bat_ui.files import read_json, replacing
from bat_ui.project import Run
from bat_ui.samples import LISTING, STEP, step_name, steps_with_samples

WEIGHTS = "*lora_weights.safetensors"  # in a checkpoint's folder, beside the state of the optimiser


def saved_steps(run: Run) -> list[int]:
    """The steps of which there is a checkpoint with an adapter."""
    return sorted({int(file.parent.name.removeprefix(STEP)) for file in run.checkpoints.glob(f"{STEP}*/{WEIGHTS}")})


def used_step(run: Run) -> int | None:
    """The step whose adapter is the run's own by now, told by their digests; None if it is none of the checkpoints'."""
    if run.adapter is None:
        return None
    digest = _digest(run.adapter, run.adapter.stat().st_mtime_ns)
    for step in reversed(saved_steps(run)):
        manifest = read_json(_folder(run, step) / "manifest.json") or {}
        if digest in manifest.get("sha256", {}).values():
            return step
    return None


def samples_of_adapter(run: Run) -> list[dict]:
    """Pictures that the adapter in use has drawn: those asked for since, else its checkpoint's; rows as in samples.py."""
    listing = run.samples / LISTING
    if listing.is_file() and listing.stat().st_mtime_ns >= run.adapter.stat().st_mtime_ns:
        return [{**row, "file": run.samples / row["file"]} for row in read_json(listing)]
    return [row for row in steps_with_samples(run).get(used_step(run), []) if row["of"] == "subject"]


def use_checkpoint(run: Run, step: int) -> None:
    """Make the adapter of a checkpoint the run's.

    Raises UserError if there is no such checkpoint, if its files are damaged, or while the run's adapter is made or used.
    """
    from bat_ui.training.checkpoint import is_complete  # here, since torch takes seconds to import

    saved = saved_steps(run)
    if step not in saved:
        there = f"choose one of {', '.join(map(str, saved))}" if saved else "this run has none yet"
        raise UserError(f"There is no checkpoint of step {step}: {there}.")
    if run.status("train")["state"] == "running":
        raise UserError("This run is still training and would put its own adapter in place: stop it or wait for its end.")
    if any(run.status(verb)["state"] == "running" for verb in ("generate", "export")):
        raise UserError("This run's adapter is just being drawn with or packed: wait for that, then use another checkpoint.")
    if not is_complete(_folder(run, step)):
        raise UserError(f"The checkpoint of step {step} is damaged: choose another one.")
    [source] = _folder(run, step).glob(WEIGHTS)
    run.lora.mkdir(parents=True, exist_ok=True)
    with replacing(run.lora / source.name) as draft:
        shutil.copyfile(source, draft)


def _folder(run: Run, step: int) -> Path:
    return run.checkpoints / step_name(step)


@lru_cache(maxsize=64)
def _digest(file: Path, changed: int) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()

"""Results: one JSON line a checkpoint, known by its key, so that none is measured or written twice.

In: jobs and settings.  Out: rows, and what of a job is still missing.  The key holds a digest of all that changes a row.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from bat_ui.albat.selection import METHOD
from bat_ui.backbones.stable_diffusion import Backbone
from bat_ui.evaluation.plan import SCHEDULE, EvaluationSettings, Job
from bat_ui.evaluation.rules import POOLED, WITHOUT_PICTURES
from bat_ui.files import read_json_lines
from bat_ui.search import RANDOM_PART
from bat_ui.sketching import CLASS_LIKE, PICTURES_PER_GROUP, SUBJECT_DRAWS, SUBJECT_VECTORS

KEY = (
    "split",
    "subject",
    "style",
    "rule",
    "seed",
    "step",
    "total_steps",
    "number",
    "strength",
    "schedule",
    "variant",
    "config",
    "selection",
)
DRAWN = ("clip_i", "clip_member", "pixel_rmse", "clip_t", "diversity", "pres", "validation")  # measured on samples
PREDICTED = ("rho", "rho_sandwich", "rho_cross_fit", "predicted_by")


def config_of(backbone: Backbone, settings: EvaluationSettings) -> str:
    """Digest of all that changes every rule's rows: the weights, the training and the measuring."""
    apart = ("steps", "strength", "seed", "checkpoint_every", "text_encoder")  # these are in the key, or change nothing
    later = {"lr_scheduler": "constant", "lr_warmup_steps": 0}  # settings that rows were measured before, at their defaults
    every = asdict(settings.training).items()
    training = {k: v for k, v in every if k not in apart and (k not in later or v != later[k])}
    measured = [settings.given, settings.loss_draws, settings.prior_pictures, settings.prior_draws]
    return digest([training, measured, backbone_digest(backbone), backbone.clip.digest])


def selection_of(settings: EvaluationSettings) -> str:
    """Digest of what changes the rules of sketches and of left-out pictures alone."""
    selection = {k: v for k, v in asdict(settings.selection).items() if k not in ("rule", "num_backbone", "seed", "store")}
    training = settings.training
    fixed = [METHOD, RANDOM_PART, SUBJECT_DRAWS, SUBJECT_VECTORS, PICTURES_PER_GROUP, CLASS_LIKE]
    return digest([selection, training.rank, training.learning_rate, training.batch_size, settings.given, fixed])


def backbone_digest(backbone: Backbone) -> str:
    """SHA-256 of the UNet's own weights, whatever adapter is or was on it (it renames the layers that it wraps)."""
    found, state = hashlib.sha256(), backbone.unet.state_dict()
    own = {name.replace(".base_layer.", "."): value for name, value in state.items() if ".lora_" not in name}
    for name, value in sorted(own.items()):
        found.update(name.encode())
        found.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return found.hexdigest()


def missing_steps(job: Job, settings: EvaluationSettings, config: str, rows: Iterable[dict]) -> list[int]:
    """The job's checkpoints that no row covers; a row without samples covers only what needs none."""
    steps = [0] if job.rule == "backbone" else sorted(set(settings.steps))
    known = {tuple(row[k] for k in KEY): row["generation"] for row in rows}

    def covered(step: int) -> bool:
        found = known.get(tuple(keyed(job, settings, config, step)[k] for k in KEY))
        return found is not None and (found or not draws_samples(settings, step))

    return [step for step in steps if not covered(step)]


def draws_samples(settings: EvaluationSettings, step: int) -> bool:
    """Whether samples are drawn at a step; of the bare backbone, if they are at any."""
    wanted = settings.steps if settings.sample_steps is None else settings.sample_steps
    return step in wanted or (step == 0 and bool(wanted))


def read_rows(results: Path) -> list[dict]:
    """The complete rows of a results file, one for each key.

    Where one was measured again, it keeps its losses, for another run's would not fit those of its other steps; to them come
    what was drawn then and what was predicted if that was not before, and `heldout_again`, the other run's loss.
    """
    rows: dict[tuple, dict] = {}
    for row in read_json_lines(results):
        row.setdefault("schedule", None if row["rule"] in WITHOUT_PICTURES else 1)
        row.setdefault("total_steps", 400)  # rows from before the key had it
        key = tuple(row[k] for k in KEY)
        first = rows.setdefault(key, row)
        if first is row:
            continue
        first["heldout_again"] = row["heldout_loss"]
        if row["generation"]:
            first |= {name: row[name] for name in ("generation", *DRAWN) if name in row}
        if first.get("rho") is None:
            first |= {name: row.get(name) for name in PREDICTED}
    return list(rows.values())


def append_row(results: Path, row: dict) -> None:
    """Add one line, safe from other processes; half a line that a killed process left is cut off first."""
    results.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(results.with_name(f".{results.name}.lock")), open(results, "a+b") as file:
        file.seek(0)
        whole = file.read()
        if whole and not whole.endswith(b"\n"):
            file.truncate(whole.rfind(b"\n") + 1)
        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def keyed(job: Job, settings: EvaluationSettings, config: str, step: int) -> dict:
    style, _, subject = job.subject.partition("/")
    return {
        "split": job.split,
        "subject": subject,
        "style": style,
        "rule": job.rule,
        "seed": job.seed,
        "step": step,
        "total_steps": max(settings.steps),
        "number": job.number,
        "strength": job.strength,
        "schedule": None if job.rule in WITHOUT_PICTURES else SCHEDULE,
        "variant": settings.variant,
        "generation": draws_samples(settings, step),
        "config": config,
        "selection": selection_of(settings) if job.rule in POOLED else None,
        "settings": {
            "given": settings.given,
            "rank": settings.training.rank,
            "learning_rate": settings.training.learning_rate,
            "batch_size": settings.training.batch_size,
            "subject_steps": settings.training.subject_steps,
            "shortlist": settings.selection.shortlist,
            "surrogate_steps": settings.selection.surrogate_steps,
            "draws": settings.selection.draws,
            "sketch_size": settings.selection.sketch_size,
            "torch": version("torch"),
        },
    }


def digest(content) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

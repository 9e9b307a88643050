"""Is the recommended checkpoint (comparison.recommend) a good one?  Judged where the held-out members are known.

In: rows of the suite with samples at several steps.  Out: for each way to choose a step, its regret: how much worse the
held-out members fare there than at the run's best step.  The ways see nothing but what a person's run measures, too.
"""

from __future__ import annotations

from collections.abc import Sequence

from bat_ui.comparison import FEW, recommend

WAYS = ("recommended", "highest CLIP-I", "last step", "first step")
TRUTHS = {"heldout_loss": 1, "clip_member": -1}  # by the sign that makes less better
Run = tuple[str, str, int, str]  # style, subject, seed, rule


def regrets(rows: Sequence[dict]) -> dict[str, dict[str, dict[Run, float]]]:
    """By truth (heldout_loss, clip_member), way and run; runs of less than two steps with samples are left out.

    `validation` of a row is what a person's run measures there, from the given pictures and their captions.
    """
    runs: dict[Run, dict[int, dict]] = {}
    bare: dict[tuple[str, str, int], dict] = {}
    for row in rows:
        known = row.get("validation") and row["validation"]["clip_i"] is not None
        if not known or any(row.get(truth) is None for truth in TRUTHS):
            continue
        subject = row["style"], row["subject"], row["seed"]
        if row["rule"] == "backbone":
            bare[subject] = row
        else:
            runs.setdefault((*subject, row["rule"]), {})[row["step"]] = row
    found = {truth: {way: {} for way in WAYS} for truth in TRUTHS}
    for run, steps in runs.items():
        if len(steps) < 2 or run[:3] not in bare:
            continue
        shown = [{**row["validation"], "step": row["step"]} for row in (bare[run[:3]] | {"step": 0}, *steps.values())]
        chosen = recommend(shown, steps, FEW).step
        most_alike = max(steps, key=lambda step: steps[step]["validation"]["clip_i"])
        for truth, sign in TRUTHS.items():
            values = {step: sign * row[truth] for step, row in steps.items()}
            # Where none can be recommended, a person stays with what training ended with.
            for way, step in zip(WAYS, (chosen or max(steps), most_alike, max(steps), min(steps))):
                found[truth][way][run] = values[step] - min(values.values())
    return found

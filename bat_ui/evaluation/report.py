"""The report: docs/evidence/README.md with its plots, from results.jsonl alone (and kept samples for the picture grid).

In: rows of the suite.  Out: per rule the metrics at its best and its last step, paired differences to `none` and `albat`
with 95 % intervals over families, curves, and the prediction beside the measurement.  Every rule, seed and setting
that was run is in the tables.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bat_ui.errors import UserError
from bat_ui.evaluation.checkpoints import regrets
from bat_ui.evaluation.plots import picture_grid, plot_bars, plot_curves, plot_predictions
from bat_ui.evaluation.subjects import TUNING_FAMILIES
from bat_ui.evaluation.values import (
    ALL_RULES,
    REFERENCES,
    Values,
    at_best_step,
    at_last_step,
    bootstrap_interval,
    common_steps,
    correlation_within,
    family_interval,
    log_ratios,
    lowest_at_first,
    main_rows,
    mean_over_families,
    mean_over_subjects,
    over_seeds,
    paired,
    predicted_and_measured,
    rank_correlation,
    repeated,
    rows_by_rule,
)

COMMANDS = "commands.txt"  # every command that added to the results
# Of a loss: before backbone pictures come in all runs are one, and came out this near on different machines.  Later they are
# less near, and the report says how far apart.
SAME = 0.005
PREDICTIONS = {
    "rho": "rho, as ranked",
    "rho_sandwich": "rho, sandwich form, as trained",
    "rho_cross_fit": "cross-fitted change",
}
METRICS = {
    "clip_i": "CLIP-I",
    "clip_member": "CLIP-I, own truth",
    "pixel_rmse": "pixel RMSE",
    "clip_t": "CLIP-T",
    "diversity": "diversity (CLIP)",
    "pres": "PRES",
    "prior_loss": "prior loss x 1000",
}


def write_report(rows: Sequence[dict], out: Path, cache: Path | None = None) -> Path:
    """Write README.md and the plots into `out`.  Raises UserError if there is nothing to report, or no matplotlib."""
    try:
        import matplotlib
    except ImportError as e:
        raise UserError("The report needs matplotlib: pip install -r requirements-dev.txt.") from e
    matplotlib.use("Agg")
    suite, photos = main_rows(rows), main_rows(rows, "photos")
    if not suite and not photos:
        raise UserError("There are no results of the suite yet: run `python -m bat_ui evaluate` first.")
    out.mkdir(parents=True, exist_ok=True)
    by_rule = rows_by_rule(suite)
    parts = ["# Evidence: which backbone pictures help an adapter\n", _introduction(suite)]
    if suite:
        parts += [_headline(by_rule), _loss_table(by_rule), _ratio_table(by_rule)]
        parts += [plot_bars(by_rule, out), plot_curves(by_rule, out)]
        parts += [_prediction(by_rule, out), _metric_table(by_rule, "Metrics at the last step")]
        parts += [_checkpoint_table(suite), picture_grid(by_rule, out, cache), _every_subject(by_rule)]
    if photos:
        parts += [_metric_table(rows_by_rule(photos), "Photo subjects (no truth is known: CLIP metrics only)")]
    parts += [_every_setting(rows)]
    path = out / "README.md"
    path.write_text("\n".join(p for p in parts if p), encoding="utf-8")
    return path


def _introduction(rows: Sequence[dict]) -> str:
    if not rows:
        return ""
    subjects, seeds = {(r["style"], r["subject"]) for r in rows}, sorted({r["seed"] for r in rows})
    steps = sorted({r["step"] for r in rows if r["step"]})
    s = next((r for r in rows if r["selection"]), rows[0])["settings"]
    setting = ", ".join(f"{k.replace('_', ' ')} {'as found' if v is None else v}" for k, v in s.items())
    return (
        f"{len(subjects)} held-out subjects, seeds among {', '.join(map(str, seeds))}, measured at steps "
        f"{', '.join(map(str, steps))} of one training run each. A subject is one family in one style that the backbone "
        "never saw; a few members are given, all others are held out with their true captions. All rules have the same "
        "optimiser steps, batch size, seeds, and noise and prompts of measurement; `none` fills its whole batch with the "
        "subject, `none_share` has half a batch, `backbone` is the model before any "
        "training. Where a rule takes pictures, their number and the weight lambda are those that the commands give "
        "(`--numbers`, `--strengths`); where a command gives none, those that did best on families kept for tuning "
        f"(of {', '.join(TUNING_FAMILIES)} those in the last table, which are in no other one), or the defaults. "
        "lambda is what they count in the last step, to which it rises evenly after the steps alone, and they have that "
        "part of a batch that they have of the loss (schedule 4; under schedule 3 it rose as (t / t0)^2 - 1 and was lambda "
        "in the geometric middle of t0 and the end). Under schedules 1 and 2 they had half of each batch, which was left "
        "out for the steps alone, and counted lambda (1 - t0 / t) at step t, or rose evenly to lambda. "
        "A subject's value is the mean over its seeds; a difference is taken between runs of the same subject and seed; "
        "worse means by more than half a percent of the loss; "
        "intervals are 95 % by Student's t over families, two styles being one value, for these "
        "are no independent subjects. The best step is each run's own, by its held-out loss, "
        "for every rule alike. Lower is better for losses, pixel distance and PRES.\n\n"
        f"Settings: {setting}.\n\nAll rows: [results.jsonl](results.jsonl), by these commands: [{COMMANDS}]({COMMANDS}).\n"
    )


def _headline(by_rule: dict[str, list[dict]]) -> str:
    lines = []
    for label, at in (("best", at_best_step), ("last", at_last_step)):
        none, oracle = at(by_rule.get("none", [])), at(by_rule.get("oracle", []))
        if gap := paired(oracle, none):
            lines.append(f"- At the {label} step the oracle differs from none by {_interval(gap)}.")
        for rule in ("albat", "cross_fit"):
            if change := paired(at(by_rule.get(rule, [])), none):
                worse = _worse(log_ratios(at(by_rule.get(rule, [])), none))
                lines.append(
                    f"- `{rule}` differs from none by {_interval(change)} at the {label} step and is worse for {worse} of "
                    f"{len(change)} subjects. By a bootstrap over subjects, which is too narrow, the interval would be"
                    f"{_span_of(bootstrap_interval([1000 * v for v in change.values()]))}."
                )
    for rule in ("none", "albat"):
        if early := list(lowest_at_first(by_rule.get(rule, [])).values()):
            lines.append(
                f"- {sum(early):.0f} of {len(early)} runs of `{rule}` are lowest at the first step that was measured: a "
                "run stopped earlier may have been better still."
            )
    if again := repeated(by_rule.get("albat", [])):
        step = max(again)
        apart = f"{100 * statistics.median(again[step]):.1f} % in the median and {100 * max(again[step]):.1f} % at most"
        lines.append(f"- {len(again[step])} runs of `albat` were made twice: at step {step} their losses are {apart} apart.")
    judged = [r["verdicts"] for r in by_rule.get("albat", []) if r.get("verdicts") and r["step"] == r["total_steps"]]
    if counts := sum(map(Counter, judged), Counter()):
        listed = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
        lines.append(f"- Groups of candidates in {len(judged)} runs of `albat`: {listed}.")
    return "## In short (losses x 1000)\n\n" + "\n".join(lines) + "\n" if lines else ""


def _loss_table(by_rule: dict[str, list[dict]]) -> str:
    heads = ["rule", "subjects", "runs", "pictures", "lambda", "schedule"]
    for label in ("best", "last"):
        heads += [f"{label} step", *(f"{label}: less {ref}" for ref in REFERENCES)]
    table = [heads]
    for rule, rows in by_rule.items():
        runs, lambdas = at_last_step(rows), (round(r["lambda"], 2) if r["num"] else None for r in rows)
        line = [rule, str(len(over_seeds(runs))), str(len(runs)), _span(r["num"] for r in rows), _span(lambdas)]
        line.append(_span(r["schedule"] for r in rows))
        for at in (at_best_step, at_last_step):
            values = at(rows)
            line.append(f"{1000 * mean_over_subjects(values):.2f}" if values else "")
            line += [_interval(paired(values, at(by_rule.get(ref, [])))) if rule != ref else "" for ref in REFERENCES]
        table.append(line)
    note = "Losses are means over the runs that a rule has; where rules have not the same runs, only differences compare.\n"
    return "## Held-out loss x 1000, with paired differences\n\n" + _markdown(table) + "\n" + note


def _ratio_table(by_rule: dict[str, list[dict]]) -> str:
    """ALBAT's loss as a part of each other rule's: subjects differ in their losses by a factor of eight."""
    table = [["albat beside", "best step", "worse for", "last step", "worse for", "runs"]]
    for rule in [r for r in by_rule if r not in ("albat", "backbone")]:
        line, common = [rule], {}
        for at in (at_best_step, at_last_step):
            albat, other = (at(by_rule.get(r, [])) for r in ("albat", rule))
            common = albat.keys() & other.keys()
            if change := log_ratios(albat, other):
                low, high = (math.exp(v) for v in family_interval(change))
                mean = math.exp(mean_over_families(change))
                interval = f" [{low:.3f}, {high:.3f}]" if low == low else ""
                line += [f"{mean:.3f}{interval}", f"{_worse(change)} of {len(change)}"]
        if common:
            table.append([*line, str(len(common))])
    note = "Geometric means over families with 95 % intervals as above, of runs that both rules have; below 1 is better.\n"
    heading = "## ALBAT's held-out loss as a part of another rule's\n\n"
    return heading + _markdown(table) + "\n" + note if len(table) > 1 else ""


def _worse(logs: Values) -> int:
    """How many subjects are worse than the reference."""
    return sum(v > SAME for v in logs.values())


def _metric_table(by_rule: dict[str, list[dict]], title: str) -> str:
    table = [["rule", "runs drawn", *METRICS.values(), "seconds: choose", "seconds: train"]]
    for rule, rows in by_rule.items():
        line = [rule, str(len(at_last_step(rows, "clip_i")))]
        for measure in METRICS:
            values, factor = at_last_step(rows, measure), 1000 if measure == "prior_loss" else 1
            line.append(f"{factor * mean_over_subjects(values):.3f}" if values else "")
        choosing, total = at_last_step(rows, "selection_seconds"), at_last_step(rows, "seconds")
        line.append(f"{mean_over_subjects(choosing):.0f}")
        line.append(f"{mean_over_subjects({k: total[k] - choosing[k] for k in total}):.0f}")
        table.append(line)
    note = (
        "CLIP-I: mean cosine of generated to true pictures; own truth: each held-out member, drawn from its true caption, "
        "against its own picture; CLIP-T: against the prompt without the identifier; diversity: mean 1 - cosine of samples "
        "of one prompt, in CLIP space and not LPIPS; PRES: class-prompt pictures against the subject, lower is less drift; "
        "prior loss: on a fixed random sample of the store (`backbone` shows it without an adapter; `whole_store` trains on "
        "these pictures, too). The encoder is the "
        "backbone's own CLIP.\n"
    )
    return f"## {title}\n\n" + _markdown(table) + "\n" + note + _metric_differences(by_rule)


def _metric_differences(by_rule: dict[str, list[dict]]) -> str:
    """Of the drawn pictures of rules beside those of none, on the runs that both have."""
    none, table = by_rule.get("none", []), [["rule less none", "subjects", *METRICS.values()]]
    for rule, rows in by_rule.items():
        both = {measure: paired(at_last_step(rows, measure), at_last_step(none, measure)) for measure in METRICS}
        if both["clip_i"] and rule not in ("none", "backbone"):
            cells = [_interval(both[measure], 1000 if measure == "prior_loss" else 1) for measure in METRICS]
            table.append([rule, str(len(both["clip_i"])), *cells])
    if len(table) == 1:
        return ""
    return "\nDifferences to none at the last step, of runs that both have, with 95 % intervals:\n\n" + _markdown(table)


def _checkpoint_table(rows: Sequence[dict]) -> str:
    found = regrets(rows)
    ways = [way for way, values in found["heldout_loss"].items() if values]
    if not ways:
        return ""
    table = [["checkpoint", "held-out loss x 1000", "CLIP-I to the own truth x 1000"]]
    for way in ways:
        by_subject = [over_seeds(found[truth][way]) for truth in ("heldout_loss", "clip_member")]
        table.append([way, *(_interval(values) for values in by_subject)])
    note = (
        f"{len(found['heldout_loss'][ways[0]])} runs with samples at several steps, of all rules; a subject's value is the "
        "mean over its runs. Regret is how much worse the held-out members fare than at the run's best step, zero at best. "
        "The page recommends by CLIP-I, CLIP-T, diversity and PRES alone, which need no truth.\n"
    )
    return "## Is the recommended checkpoint a good one? Regret of each way to choose\n\n" + _markdown(table) + "\n" + note


def _every_subject(by_rule: dict[str, list[dict]]) -> str:
    rules = list(by_rule)
    losses = {rule: (at_best_step(rows), at_last_step(rows)) for rule, rows in by_rule.items()}  # of finished runs
    runs = sorted({(r["style"], r["subject"], r["seed"]) for rows in by_rule.values() for r in rows})
    alone = at_last_step(by_rule.get("albat", []), "steps_alone")
    table = [["subject", "seed", "steps alone (albat)", *rules]]
    for run in runs:
        style, subject, seed = run
        line = [f"{style} {subject}", str(seed), f"{alone[run]:g}" if run in alone else ""]
        line += [f"{1000 * best[run]:.1f} / {1000 * last[run]:.1f}" if run in last else "" for best, last in losses.values()]
        table.append(line)
    return "## Every subject and seed: held-out loss x 1000, best / last step\n\n" + _markdown(table)


def _every_setting(rows: Sequence[dict]) -> str:
    """All that was tried, tuning included, each setting beside `none` of the same split and configuration."""
    groups: dict[tuple, list[dict]] = {}
    for r in rows:
        if r["rule"] != "backbone" and r["heldout_loss"] is not None:
            setting = (ALL_RULES.index(r["rule"]), r["number"], r["strength"], r["schedule"], r["selection"])
            groups.setdefault((r["split"], r["config"], r["total_steps"], r["variant"], *setting), []).append(r)
    heads = ["split", "configuration", "steps", "rule", "number asked", "strength asked", "schedule", "sketches", "lambda"]
    table = [[*heads, "subjects", "best", "last", "best: less none", "last: less none"]]
    for key in sorted(groups, key=str):
        split, config, steps, variant, rule, number, *asked = key
        plain = groups.get((*key[:3], "", ALL_RULES.index("none"), None, None, None, None), [])
        common = common_steps([*groups[key], *plain])
        found, none = ([r for r in part if r["step"] in common] for part in (groups[key], plain))
        best, last = at_best_step(found), at_last_step(found)
        if not best:  # no run of it has come to its end
            continue
        line = [split, " ".join(filter(None, (config, variant))), str(steps), ALL_RULES[rule]]
        line += ["own" if number is None else str(number), *(str(part or "") for part in asked)]
        line += [_span(round(r["lambda"], 2) for r in found if r["num"])]
        line += [str(len(over_seeds(best))), *(f"{1000 * mean_over_subjects(v):.2f}" for v in (best, last))]
        line += [_interval(paired(at(found), at(none))) for at in (at_best_step, at_last_step)]
        table.append(line)
    note = (
        "Strength is what the weight that the rule finds is multiplied by, lambda the weight that came of it. A setting is "
        "read at the steps at which `none` was measured, too. Runs that have not come to their end are in results.jsonl "
        "alone. `oracle` takes no pictures of the tuning families that have no relatives. In runs of the variant `early end`"
        " a trial on left-out pictures had ended too early.\n"
    )
    return "## Everything that was run (losses x 1000)\n\n" + _markdown(table) + "\n" + note if len(table) > 1 else ""


def _prediction(by_rule: dict[str, list[dict]], out: Path) -> str:
    """Predicted error against measured loss at the last step, over rules within each subject and seed."""
    found = {title: predicted_and_measured(by_rule, key) for key, title in PREDICTIONS.items()}
    found = {title: points for title, points in found.items() if points}
    if not found:
        return ""
    table = [["prediction", "rank correlation within a subject (mean, 95 % interval)", "over all points", "points"]]
    for title, points in found.items():
        means = correlation_within(points)
        everything = rank_correlation([p.predicted for p in points], [p.measured for p in points])
        table.append([title, _interval(means, factor=1) if means else "", f"{everything:.2f}", str(len(points))])
    note = "A prediction is good if its correlation with the measured loss is near 1.\n"
    return f"## Does the prediction predict?\n\n{plot_predictions(found, out)}\n{_markdown(table)}\n{note}"


def _interval(differences: dict[tuple[str, str], float], factor: float = 1000) -> str:
    if not differences:
        return ""
    values = {key: factor * v for key, v in differences.items()}
    return f"{mean_over_families(values):+.2f}{_span_of(family_interval(values))}"


def _span_of(interval: tuple[float, float]) -> str:
    low, high = interval
    return f" [{low:+.2f}, {high:+.2f}]" if low == low else ""


def _span(values) -> str:
    found = sorted({v for v in values if v is not None})
    return "" if not found else f"{found[0]:g}" if len(found) == 1 else f"{found[0]:g} to {found[-1]:g}"


def _markdown(table: list[list[str]]) -> str:
    head, *rows = table
    lines = [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) + "\n"

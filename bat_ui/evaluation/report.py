"""The report: docs/evidence/README.md with its plots, from results.jsonl alone (and kept samples for the picture grid).

In: rows of the suite.  Out: per rule the metrics at its best and its last step, paired differences to `none` and `albat`
with 95 % bootstrap intervals over subjects, curves, and the prediction beside the measurement.  A subject's value is the
mean over its seeds; every rule, seed and setting that was run is in the tables.  Matplotlib is needed only here.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bat_ui.errors import UserError
from bat_ui.evaluation.checkpoints import regrets
from bat_ui.evaluation.rules import ABLATIONS, RULES
from bat_ui.evaluation.subjects import TUNING_FAMILIES

REFERENCES = ("none", "albat")
RESAMPLES = 10_000
ALL_RULES = RULES + ABLATIONS
Values = dict[tuple, float]  # by run (style, subject, seed), or by subject (style, subject)


def bootstrap_interval(values: Sequence[float], resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """Percentile 95 % interval of the mean, values drawn with replacement; (nan, nan) for fewer than two."""
    if len(values) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    means = np.asarray(values, np.float64)[rng.integers(len(values), size=(resamples, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's coefficient, ties sharing their mean rank; nan if a side is constant."""
    a, b = _ranks(x), _ranks(y)
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def main_rows(rows: Sequence[dict], split: str = "suite") -> list[dict]:
    """The rows of one split under the configuration, and for each rule the sketches, that were measured last; and of what
    remains of a rule, the number and strength of which there is most."""
    rows = _latest([r for r in rows if r["split"] == split and not r["variant"]], lambda r: r["config"])
    kept = []
    for rule in ALL_RULES:
        found = _latest([r for r in rows if r["rule"] == rule], lambda r: r["selection"])
        kept += _most(found, lambda r: (r["number"], r["strength"]))
    return kept


def at_best_step(rows: Sequence[dict], measure: str = "heldout_loss") -> Values:
    """A measure at each run's step of lowest held-out loss (of lowest `measure` where there is no truth)."""
    return _by_run(rows, lambda run: min(run, key=lambda r: _order(r))[measure])


def at_last_step(rows: Sequence[dict], measure: str = "heldout_loss") -> Values:
    """A measure at each run's last step."""
    return _by_run(rows, lambda run: max(run, key=lambda r: r["step"])[measure])


def over_seeds(values: Values) -> Values:
    """Runs' values by subject: the mean over its seeds."""
    found: dict[tuple, list[float]] = {}
    for key, value in values.items():
        found.setdefault(key[:2], []).append(value)
    return {key: statistics.fmean(v) for key, v in found.items()}


def paired(values: Values, reference: Values) -> Values:
    """Differences to a reference by subject: the mean over the seeds that both have run."""
    return over_seeds({key: values[key] - reference[key] for key in values if key in reference})


def write_report(rows: Sequence[dict], out: Path, commands: Sequence[str], cache: Path | None = None) -> Path:
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
    by_rule = _by_rule(suite)
    parts = ["# Evidence: which backbone pictures help an adapter\n", _introduction(suite, commands)]
    if suite:
        parts += [_headline(by_rule), _loss_table(by_rule), _plot_bars(by_rule, out), _plot_curves(by_rule, out)]
        parts += [_prediction(by_rule, out), _metric_table(by_rule, "Metrics at the last step")]
        parts += [_checkpoint_table(suite), _picture_grid(by_rule, out, cache), _every_subject(by_rule)]
    if photos:
        parts += [_metric_table(_by_rule(photos), "Photo subjects (no truth is known: CLIP metrics only)")]
    parts += [_every_setting(rows)]
    path = out / "README.md"
    path.write_text("\n".join(p for p in parts if p), encoding="utf-8")
    return path


def _introduction(rows: Sequence[dict], commands: Sequence[str]) -> str:
    if not rows:
        return ""
    subjects, seeds = {(r["style"], r["subject"]) for r in rows}, sorted({r["seed"] for r in rows})
    steps = sorted({r["step"] for r in rows if r["step"]})
    s = rows[0]["settings"]
    setting = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in s.items())
    return (
        f"{len(subjects)} held-out subjects, seeds {', '.join(map(str, seeds))}, measured at steps "
        f"{', '.join(map(str, steps))} of one training run each. A subject is one family in one style that the backbone "
        "never saw; a few members are given, all others are held out with their true captions. All rules have the same "
        "optimiser steps, batch size, seeds, and noise and prompts of measurement; `none` fills its whole batch with the "
        "subject, `none_share` only the part that it has beside backbone pictures, `backbone` is the model before any "
        "training. Where a rule takes pictures, it takes the number that did "
        f"best, with the weight lambda, on the family kept for tuning ({', '.join(TUNING_FAMILIES)}, both styles, in no "
        "other table here), or the default where it was not tuned. A subject's value is the mean over its seeds; "
        "intervals are 95 % bootstrap intervals over subjects. The best step is each run's own, by its held-out loss, "
        "for every rule alike. Lower is better for losses, pixel distance and PRES.\n\n"
        f"Settings: {setting}.\n\nAll rows: [results.jsonl](results.jsonl). Commands:\n\n"
        + "".join(f"    {c}\n" for c in commands)
    )


def _headline(by_rule: dict[str, list[dict]]) -> str:
    lines = []
    for label, at in (("best", at_best_step), ("last", at_last_step)):
        none, oracle = at(by_rule.get("none", [])), at(by_rule.get("oracle", []))
        if gap := paired(oracle, none):
            lines.append(f"- Headroom at the {label} step: the oracle differs from none by {_interval(gap)}.")
        for rule in ("albat", "cross_fit"):
            if change := paired(at(by_rule.get(rule, [])), none):
                worse = sum(v > 0 for v in change.values())
                lines.append(
                    f"- `{rule}` differs from none by {_interval(change)} at the {label} step and is worse for {worse} of "
                    f"{len(change)} subjects. With families resampled, whose two styles are no independent subjects: "
                    f"{_interval(_by_family(change))}."
                )
    return "## In short (losses x 1000)\n\n" + "\n".join(lines) + "\n" if lines else ""


def _loss_table(by_rule: dict[str, list[dict]]) -> str:
    heads = ["rule", "pictures", "lambda"]
    for label in ("best", "last"):
        heads += [f"{label} step", *(f"{label}: less {ref}" for ref in REFERENCES)]
    table = [heads]
    for rule, rows in by_rule.items():
        line = [rule, _span(r["num"] for r in rows), _span(r["strength"] for r in rows)]
        for at in (at_best_step, at_last_step):
            values = at(rows)
            line.append(f"{1000 * _mean(values):.2f}" if values else "")
            line += [_interval(paired(values, at(by_rule.get(ref, [])))) if rule != ref else "" for ref in REFERENCES]
        table.append(line)
    return "## Held-out loss x 1000, with paired differences\n\n" + _markdown(table)


def _metric_table(by_rule: dict[str, list[dict]], title: str) -> str:
    shown = {
        "clip_i": "CLIP-I", "clip_member": "CLIP-I, own truth", "pixel_rmse": "pixel RMSE", "clip_t": "CLIP-T",
        "diversity": "diversity (CLIP)", "pres": "PRES", "prior_loss": "prior loss x 1000",
    }  # fmt: skip
    table = [["rule", *shown.values(), "seconds: choose", "seconds: train"]]
    for rule, rows in by_rule.items():
        line = [rule]
        for measure in shown:
            values, factor = at_last_step(rows, measure), 1000 if measure == "prior_loss" else 1
            line.append(f"{factor * _mean(values):.3f}" if values else "")
        choosing, total = at_last_step(rows, "selection_seconds"), at_last_step(rows, "seconds")
        line.append(f"{_mean(choosing):.0f}")
        line.append(f"{_mean({k: total[k] - choosing[k] for k in total}):.0f}")
        table.append(line)
    note = (
        "CLIP-I: mean cosine of generated to true pictures; own truth: each held-out member, drawn from its true caption, "
        "against its own picture; CLIP-T: against the prompt without the identifier; diversity: mean 1 - cosine of samples "
        "of one prompt, in CLIP space and not LPIPS; PRES: class-prompt pictures against the subject, lower is less drift; "
        "prior loss: on a fixed random sample of the store (`backbone` shows it without an adapter). The encoder is the "
        "backbone's own CLIP.\n"
    )
    return f"## {title}\n\n" + _markdown(table) + "\n" + note


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
    runs = sorted({(r["style"], r["subject"], r["seed"]) for rows in by_rule.values() for r in rows})
    table = [["subject", "seed", *rules]]
    for style, subject, seed in runs:
        line = [f"{style} {subject}", str(seed)]
        for rule in rules:
            run = [r for r in by_rule[rule] if (r["style"], r["subject"], r["seed"]) == (style, subject, seed)]
            best, last = (list(at(run).values()) for at in (at_best_step, at_last_step))
            line.append(f"{1000 * best[0]:.1f} / {1000 * last[0]:.1f}" if best else "")
        table.append(line)
    return "## Every subject and seed: held-out loss x 1000, best / last step\n\n" + _markdown(table)


def _every_setting(rows: Sequence[dict]) -> str:
    """All that was tried, tuning included, each setting beside `none` of the same split and configuration."""
    groups: dict[tuple, list[dict]] = {}
    for r in rows:
        if r["rule"] != "backbone" and r["heldout_loss"] is not None:
            setting = (ALL_RULES.index(r["rule"]), r["number"], r["strength"], r["selection"])
            groups.setdefault((r["split"], r["config"], r["variant"], *setting), []).append(r)
    heads = ["split", "configuration", "rule", "asked", "lambda", "sketches", "subjects"]
    table = [heads + ["best", "last", "best: less none", "last: less none"]]
    for key in sorted(groups, key=str):
        found = groups[key]
        none = [r for r in rows if (r["split"], r["config"]) == key[:2] and r["rule"] == "none"]
        best, last = at_best_step(found), at_last_step(found)
        number = "own" if key[4] is None else str(key[4])
        line = [key[0], " ".join(filter(None, key[1:3])), ALL_RULES[key[3]], number, str(key[5] or ""), key[6] or ""]
        line += [str(len(over_seeds(best))), *(f"{1000 * _mean(v):.2f}" for v in (best, last))]
        line += [_interval(paired(best, at_best_step(none))), _interval(paired(last, at_last_step(none)))]
        table.append(line)
    return "## Everything that was run (losses x 1000)\n\n" + _markdown(table) if len(table) > 1 else ""


def _prediction(by_rule: dict[str, list[dict]], out: Path) -> str:
    """Predicted error against measured loss at the last step, over rules within each subject and seed."""
    titles = {
        "rho": "rho, as ranked", "rho_sandwich": "rho, sandwich form, as trained", "rho_cross_fit": "cross-fitted change",
    }  # fmt: skip
    points: dict[str, list[tuple[float, float, str]]] = {t: [] for t in titles}
    within: dict[str, dict[tuple[str, str], list[float]]] = {t: {} for t in titles}
    last = {
        (rule, r["style"], r["subject"], r["seed"]): r
        for rule, rows in by_rule.items() for r in sorted(rows, key=lambda r: r["step"])
        if r["heldout_loss"] is not None
    }  # fmt: skip
    for style, subject, seed in sorted({key[1:] for key in last}):
        none = last.get(("none", style, subject, seed))
        if none is None:
            continue
        for title in titles:
            found = [
                (r[title], r["heldout_loss"] / none["heldout_loss"], rule)
                for rule in by_rule
                if (r := last.get((rule, style, subject, seed))) is not None and r[title] is not None
            ]
            points[title] += found
            if len(found) > 2:
                value = rank_correlation([p[0] for p in found], [p[1] for p in found])
                if np.isfinite(value):
                    within[title].setdefault((style, subject), []).append(value)
    if not any(points.values()):
        return ""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), sharey=True)
    table = [["prediction", "rank correlation within a subject (mean, 95 % interval)", "over all points", "points"]]
    for axis, (key, title) in zip(axes, titles.items()):
        for rule in by_rule:
            mine = [p for p in points[key] if p[2] == rule]
            axis.scatter([p[0] for p in mine], [p[1] for p in mine], s=14, label=rule)
        axis.set_xlabel(f"predicted: {title}")
        means = {k: statistics.fmean(v) for k, v in within[key].items()}
        text = _interval(means, factor=1) if means else ""
        everything = rank_correlation([p[0] for p in points[key]], [p[1] for p in points[key]])
        table.append([title, text, f"{everything:.2f}", str(len(points[key]))])
    axes[0].set_ylabel("held-out loss at the last step / none")
    axes[-1].legend(fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _save(figure, out / "prediction.png")
    note = "A prediction is good if its correlation with the measured loss is near 1.\n"
    title = "## Does the prediction predict?\n\n![predicted against measured](prediction.png)\n\n"
    return title + _markdown(table) + "\n" + note


def _plot_bars(by_rule: dict[str, list[dict]], out: Path) -> str:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 4.6), sharey=True)
    for axis, (label, at) in zip(axes, (("best", at_best_step), ("last", at_last_step))):
        none = at(by_rule.get("none", []))
        rules = [r for r in by_rule if r not in REFERENCES[:1] and paired(at(by_rule[r]), none)]
        for i, rule in enumerate(rules):
            change = [1000 * v for v in paired(at(by_rule[rule]), none).values()]
            mean, (low, high) = statistics.fmean(change), bootstrap_interval(change)
            error = [[mean - low], [high - mean]] if len(change) > 1 else None
            axis.barh(i, mean, xerr=error, color="tab:orange" if rule == "albat" else "tab:blue", alpha=0.8, capsize=3)
        axis.set_yticks(range(len(rules)), rules)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_xlabel(f"held-out loss x 1000 less none, {label} step (left is better)")
    axes[0].invert_yaxis()  # shared
    _save(figure, out / "bars.png")
    return "![differences to none, with 95 % intervals](bars.png)\n"


def _plot_curves(by_rule: dict[str, list[dict]], out: Path) -> str:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(13, 4.6))
    for axis, measure in zip(axes, ("heldout_loss", "prior_loss")):
        for i, (rule, rows) in enumerate(by_rule.items()):
            steps = sorted({r["step"] for r in rows})
            at_steps = [{(r["style"], r["subject"], r["seed"]): r[measure] for r in rows if r["step"] == s} for s in steps]
            means = [_mean(values) for values in at_steps]
            if rule == "backbone":
                axis.axhline(means[0], color="gray", linestyle=":", label=rule)
                continue
            wide = 2.6 if rule == "albat" else 1.2
            axis.plot(steps, means, marker="o", markersize=3, linewidth=wide, label=rule, color=plt.cm.tab20(i % 20))
        axis.set_xscale("log")
        axis.set_xlabel("optimiser steps")
        axis.set_ylabel(measure.replace("_", " "))
    axes[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _save(figure, out / "curves.png")
    return "![held-out and prior loss over steps](curves.png)\n"


def _picture_grid(by_rule: dict[str, list[dict]], out: Path, cache: Path | None, subjects: int = 4) -> str:
    """For a few subjects, one row a rule: held-out members drawn at the last step, beside the truth."""
    from bat_ui.evaluation.subjects import load_case
    from bat_ui.evaluation.suite import Job, picture_path

    if cache is None:
        return ""
    names = sorted({f"{r['style']}/{r['subject']}" for rows in by_rule.values() for r in rows})
    names = names[:: max(len(names) // subjects, 1)][:subjects]
    parts = []
    for name in names:
        style, _, subject = name.partition("/")
        rows = [r for found in by_rule.values() for r in found if (r["style"], r["subject"]) == (style, subject)]
        seed, given = min(r["seed"] for r in rows), rows[0]["settings"]["given"]
        strips = [("truth", list(load_case(name, seed, given).truths))]
        for rule in dict.fromkeys(r["rule"] for r in rows):
            row = next((r for r in rows if r["rule"] == rule and r["seed"] == seed), None)
            if row is None:
                continue
            path = picture_path(cache / row["config"], Job("suite", name, seed, rule, row["number"], row["strength"]))
            if path.is_file():
                strips.append((rule, _cut(Image.open(path).convert("RGB"))))
        if len(strips) > 1:
            parts.append(_grid_picture(f"{name}, seed {seed}", strips))
    if not parts:
        return ""
    sheet = Image.new("RGB", (max(p.width for p in parts), sum(p.height for p in parts)), "white")
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    sheet.save(out / "pictures.png", optimize=True)
    return "## Held-out members, drawn from their captions at the last step\n\n![samples beside the truth](pictures.png)\n"


def _grid_picture(title: str, strips: list[tuple[str, list[Image.Image]]], cell: int = 64, most: int = 6) -> Image.Image:
    label, head = 170, 22
    sheet = Image.new("RGB", (label + most * cell, head + len(strips) * cell), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    pen.text((4, 3), title, fill="black", font=font)
    for i, (name, pictures) in enumerate(strips):
        pen.text((4, head + i * cell + cell // 2 - 8), name, fill="black", font=font)
        for j, picture in enumerate(pictures[:most]):
            sheet.paste(picture.resize((cell, cell)), (label + j * cell, head + i * cell))
    return sheet


def _cut(strip: Image.Image) -> list[Image.Image]:
    side = strip.height
    return [strip.crop((x, 0, x + side, side)) for x in range(0, strip.width, side)]


def _by_rule(rows: Sequence[dict]) -> dict[str, list[dict]]:
    found = {rule: [r for r in rows if r["rule"] == rule] for rule in ALL_RULES}
    return {rule: mine for rule, mine in found.items() if mine}


def _by_run(rows: Sequence[dict], pick: Callable[[list[dict]], float | None]) -> Values:
    runs: dict[tuple, list[dict]] = {}
    for r in rows:
        runs.setdefault((r["style"], r["subject"], r["seed"]), []).append(r)
    return {key: value for key, run in runs.items() if (value := pick(run)) is not None}


def _by_family(values: Values) -> Values:
    families: dict[tuple, list[float]] = {}
    for (_, subject), value in values.items():
        families.setdefault((subject,), []).append(value)
    return {key: statistics.fmean(v) for key, v in families.items()}


def _mean(values: Values) -> float:
    return statistics.fmean(over_seeds(values).values())


def _order(row: dict) -> float:
    return row["heldout_loss"] if row["heldout_loss"] is not None else -row["step"]


def _latest(rows: Sequence[dict], key: Callable[[dict], object]) -> list[dict]:
    """The rows that have the last row's key."""
    return [r for r in rows if key(r) == key(rows[-1])]


def _most(rows: list[dict], key: Callable[[dict], tuple]) -> list[dict]:
    counts: dict[tuple, int] = {}
    for r in rows:
        counts[key(r)] = counts.get(key(r), 0) + 1
    return [r for r in rows if key(r) == max(counts, key=counts.get)] if rows else []


def _ranks(values: Sequence[float]) -> np.ndarray:
    values = np.asarray(values, np.float64)
    return np.array([(np.sum(values < v) + np.sum(values <= v) - 1) / 2 for v in values])


def _interval(differences: dict[tuple[str, str], float], factor: float = 1000) -> str:
    if not differences:
        return ""
    values = [factor * v for v in differences.values()]
    low, high = bootstrap_interval(values)
    return f"{statistics.fmean(values):+.2f}" + (f" [{low:+.2f}, {high:+.2f}]" if len(values) > 1 else "")


def _span(values) -> str:
    found = sorted({v for v in values if v is not None})
    return "" if not found else f"{found[0]:g}" if len(found) == 1 else f"{found[0]:g} to {found[-1]:g}"


def _markdown(table: list[list[str]]) -> str:
    head, *rows = table
    lines = [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) + "\n"


def _save(figure, path: Path) -> None:
    from matplotlib import pyplot as plt

    figure.tight_layout()
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)

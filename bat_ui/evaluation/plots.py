"""The report's plots and its grid of pictures.  Matplotlib is needed only here.

In: rows by rule.  Out: files beside the report, and the line of markdown that shows each.
"""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from bat_ui.evaluation.plan import Job, picture_path
from bat_ui.evaluation.rules import WHEN, WITHOUT_PICTURES
from bat_ui.evaluation.subjects import load_case
from bat_ui.evaluation.values import (
    Point,
    Values,
    at_best_step,
    at_last_step,
    family_interval,
    log_ratios,
    mean_over_families,
)


def plot_bars(by_rule: dict[str, list[dict]], out: Path) -> str:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 4.6), sharey=True)
    for axis, (label, at) in zip(axes, (("best", at_best_step), ("last", at_last_step))):
        none = at(by_rule.get("none", []))
        rules = [r for r in by_rule if r not in WITHOUT_PICTURES and log_ratios(at(by_rule[r]), none)]
        for i, rule in enumerate(rules):
            logs = log_ratios(at(by_rule[rule]), none)
            mean, *ends = (math.exp(x) for x in (mean_over_families(logs), *family_interval(logs)))
            error = [[mean - ends[0]], [ends[1] - mean]] if ends[0] == ends[0] else None
            colour = "tab:orange" if rule == "albat" else "tab:blue"
            axis.barh(i, mean - 1, left=1, xerr=error, color=colour, alpha=0.8, capsize=3)
        axis.set_yticks(range(len(rules)), rules)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xlabel(f"held-out loss as a part of that of none, {label} step (left is better)")
    axes[0].invert_yaxis()  # shared
    _save(figure, out / "bars.png")
    return "![losses beside none, with 95 % intervals](bars.png)\n"


def plot_curves(by_rule: dict[str, list[dict]], out: Path) -> str:
    """Each rule beside `none` at the same step of the same runs, for rules have not all the same runs; without the controls
    and parts of ALBAT, which would lie on it."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(13, 4.6))
    ticks = sorted({r["step"] for rows in by_rule.values() for r in rows if r["step"]})
    for axis, measure in zip(axes, ("heldout_loss", "prior_loss")):
        colours = iter(plt.cm.tab10.colors)
        for rule, rows in by_rule.items():
            if rule in (*WITHOUT_PICTURES, *WHEN) or rule.startswith("albat_"):
                continue
            parts = [log_ratios(*(_at_step(r, step, measure) for r in (rows, by_rule.get("none", [])))) for step in ticks]
            means = [math.exp(mean_over_families(logs)) if logs else float("nan") for logs in parts]
            colour, wide = ("black", 2.6) if rule == "albat" else (next(colours), 1.2)
            axis.plot(ticks, means, marker="o", markersize=3, linewidth=wide, label=rule, color=colour)
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_xscale("log")
        axis.set_xticks(ticks, ticks)
        axis.minorticks_off()
        axis.set_xlabel("optimiser steps")
        axis.set_ylabel(f"{measure.replace('heldout', 'held-out').replace('_', ' ')} as a part of that of none")
    axes[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _save(figure, out / "curves.png")
    return "![held-out and prior loss over steps, beside none](curves.png)\n"


def _at_step(rows: list[dict], step: int, measure: str) -> Values:
    return {(r["style"], r["subject"], r["seed"]): r[measure] for r in rows if r["step"] == step}


def plot_predictions(points: dict[str, list[Point]], out: Path) -> str:
    from matplotlib import pyplot as plt

    figure, [axes] = plt.subplots(1, len(points), figsize=(4.4 * len(points), 4.2), sharey=True, squeeze=False)
    for axis, (title, found) in zip(axes, points.items()):
        for rule in dict.fromkeys(p.rule for p in found):
            mine = [p for p in found if p.rule == rule]
            axis.scatter([p.predicted for p in mine], [p.measured for p in mine], s=14, label=rule)
        axis.set_xlabel(f"predicted: {title}")
    axes[0].set_ylabel("held-out loss at the last step / none")
    axes[0].legend(fontsize=6)
    _save(figure, out / "prediction.png")
    return "![predicted against measured](prediction.png)\n"


def picture_grid(by_rule: dict[str, list[dict]], out: Path, cache: Path | None, subjects: int = 4) -> str:
    """For a few subjects, one row a rule: held-out members drawn at the last step, beside the truth."""
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


def _save(figure, path: Path) -> None:
    from matplotlib import pyplot as plt

    figure.tight_layout()
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)

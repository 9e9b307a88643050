"""What a run shows: its place in the list, how far it is, its losses, its last samples.

In: a run and its status.  Out: markup.
"""

from __future__ import annotations

from functools import lru_cache
from html import escape

from bat_ui import queue
from bat_ui.files import read_json, read_json_lines
from bat_ui.project import Project, Run
from bat_ui.samples import LISTING
from bat_ui.web.charts import Series, line_chart, smoothed
from bat_ui.web.parts import alert, duration, hint, note, progress_bar, small_pictures
from bat_ui.web.shots import METRICS, measured
from bat_ui.web.words import run_name, run_words, saved_step

MOST_POINTS = 400  # of a loss curve


def seconds_left(status: dict) -> float | None:
    """How long a running training still takes at the pace so far, drawing included; None if that cannot be told."""
    part = (status.get("parts") or {}).get("Training")
    if status["state"] != "running" or part is None or part["done"] <= part["first"]:
        return None
    return round((part["total"] - part["done"]) * (status["updated"] - part["since"]) / (part["done"] - part["first"]), 1)


def run_list(project: Project, looked_at: Run) -> str:
    """A button for each run, the latest first; that of the one that is `looked_at` is pressed."""
    entries = []
    for run in reversed(project.runs):
        status = queue.status(run, "train")
        pressed = str(run.folder == looked_at.folder).lower()
        entries.append(
            f'<button type="button" data-run="{run.folder.name}" aria-pressed="{pressed}" class="{status["state"]}">'
            f"<b>{escape(run_name(run))}</b><span>{escape(run_words(run, status))}</span></button>"
        )
    return f'<div role="group" aria-label="Runs">{"".join(entries)}</div>'


def run_panel(project: Project | None, run: Run | None, status: dict) -> str:
    """How far a run is, or how it ended and what can be done now."""
    if run is None:
        return hint("Nothing is trained yet.")
    state = status["state"]
    part = (status.get("parts") or {}).get("Training")
    if state == "running" and part:
        return _progress(status, part)
    if state in ("waiting", "running"):
        return progress_bar(status)
    saved = saved_step(run)
    again = f"Resume goes on from step {saved:,}." if saved else "Resume begins it again."
    if state == "failed":
        return alert(f"{status.get('message') or 'The training failed.'} {again}")
    if state == "stopped":
        if part and saved == part["done"]:
            return note(f"Stopped and saved at step {saved:,} of {part['total']:,}: Resume goes on from there.")
        return note(f"Stopped. {again}")
    if state == "done":
        changed = project.choice.is_file() and (read_json(project.choice) != read_json(run.choice))
        hand = " You changed the choice of pictures since: train again to use it." if changed else ""
        facts = ", ".join(filter(None, (_pace(part), memory_words(status))))
        steps = part["total"] if part else saved  # none were left where its end was all that was resumed
        return f'<p class="done" role="status">Trained: {steps:,} steps.{hand}</p><p class="facts">{escape(facts)}</p>'
    return note(f"This run was taken out of the queue. {again}")


def _progress(status: dict, part: dict) -> str:
    """Step, time left, pace and memory of a running training, whatever it is at between two steps."""
    left = seconds_left(status)
    left_words = "" if left is None else f"{duration(left)} left"
    other = status["what"].lower() if status["what"] != "Training" else ""
    facts = " · ".join(filter(None, (left_words, _pace(part), memory_words(status), other)))
    return (
        f'<div class="run"><p>Training: step {part["done"]:,} of {part["total"]:,}</p><p class="facts">{escape(facts)}</p>'
        f'<progress aria-label="Training" value="{part["done"]}" max="{part["total"]}"></progress></div>'
    )


def _pace(part: dict | None) -> str:
    pace = part.get("pace") if part else None
    if not pace:
        return ""
    return f"{pace:.1f} steps a second" if pace >= 1 else f"{1 / pace:.1f} seconds a step"


def memory_words(status: dict) -> str:
    """The most memory that was used, as far as it is known."""
    memory = status.get("memory") or {}
    names = {"gpu": "GPU memory", "ram": "memory"}
    return ", ".join(f"at most {memory[key] / 2**30:.1f} GB of {name}" for key, name in names.items() if key in memory)


@lru_cache(maxsize=32)
def loss_curve(run: Run, seen: str) -> str:
    """The loss curve; `seen` changes when the losses do, so that many browsers share one drawing."""
    rows = read_json_lines(run.losses)
    if len(rows) < 2:
        return ""
    every = max(len(rows) // MOST_POINTS, 1)
    series = []
    for key, label in (("subject", "your pictures"), ("backbone", "backbone pictures")):
        points = [(row["step"], row[key]) for row in rows if row[key] is not None]
        if points:
            steps = [step for step, _ in points]
            series.append(Series("", points[::every], f"raw {key}"))
            smooth = smoothed([loss for _, loss in points])
            series.append(Series(label, list(zip(steps, smooth))[::every], key))
    last = {s.label: s.points[-1][1] for s in series if s.label}
    words = ", ".join(f"{value:.3f} on {label}" for label, value in last.items())
    return line_chart(
        series, x_label="step", y_label="Loss, raw and smoothed", description=f"Loss after step {rows[-1]['step']}: {words}."
    )


def last_samples(run: Run) -> str:
    """The pictures of the last checkpoint that has some, and what they measured."""
    last = max(run.samples.glob("step-*"), default=None, key=lambda folder: folder.name)
    rows = read_json(last / LISTING) if last else None
    if not rows:
        return ""
    step = int(last.name.removeprefix("step-"))
    row = next((row for row in read_json_lines(run.metrics) if row["step"] == step), {})
    facts = ", ".join(
        f"{title} ({name}) {measured(row[key])}" for key, (title, name, *_) in METRICS.items() if row.get(key) is not None
    )
    title = f"Drawn at step {step:,}, always at the same seeds" if step else "Drawn before the first step"
    return f'<h3>{title}</h3><p class="facts">{facts}</p>{small_pictures(last, rows)}'

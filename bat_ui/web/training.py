"""Step 3 of the page: train the adapter, watch it, stop and resume it.

In: a project with subject and selection.  Out: its adapter, by a worker that goes on when the page is closed.
"""

from __future__ import annotations

import shutil

import gradio as gr

from bat_ui.errors import UserError
from bat_ui.files import read_json_lines
from bat_ui.project import Project
from bat_ui.settings import TrainingSettings
from bat_ui.web import workers
from bat_ui.web.binding import bound, remember, remembered, settings_from, shown
from bat_ui.web.charts import Series, line_chart, smoothed
from bat_ui.web.parts import (
    Updates,
    alert,
    answering,
    fingerprint,
    hint,
    html,
    message_box,
    note,
    opened,
    progress_bar,
    required,
    stop_button,
)
from bat_ui.web.step import Shared, Step

MOST_POINTS = 400  # of a loss curve


def build_training_step(shared: Shared) -> Step:
    """Lay out the step and wire its events."""
    id = shared.project
    html("<h2>Train</h2><p>The model learns your subject. You may close this page meanwhile: training goes on.</p>")
    with gr.Row():
        steps = gr.Slider(
            1, 2000, step=1, label="Steps", info="Longer learns more, and copies more.", elem_id="steps-dial", min_width=240
        )
        strength = gr.Slider(
            0, 4, step=0.05, label="Backbone strength", info="λ: weight beside your pictures.",
            elem_id="strength", min_width=240,
        )  # fmt: skip
        rank = gr.Slider(1, 64, step=1, label="Rank", info="Size of the adapter.", elem_id="rank", min_width=240)
    with gr.Accordion("Advanced", open=False):
        with gr.Row():
            widgets = bound(
                TrainingSettings,
                {
                    "steps": steps,
                    "strength": strength,
                    "rank": rank,
                    "learning_rate": gr.Number(label="Learning rate", info="Size of a step.", minimum=0),
                    "batch_size": gr.Number(label="Batch size", info="Pictures in a step.", minimum=1, precision=0),
                    "backbone_share": gr.Slider(0, 0.9, step=0.05, label="Backbone share", info="Part of each batch."),
                    "checkpoint_every": gr.Number(label="Checkpoint every", info="Steps.", minimum=1, precision=0),
                    "seed": gr.Number(label="Seed", info="Of everything random.", minimum=0, precision=0),
                },
            )
    with gr.Row():
        begin = gr.Button("Start training", variant="primary", elem_id="start")
        stop = gr.Button("Stop and save", visible=False, elem_id="stop")
        resume = gr.Button("Resume", visible=False, elem_id="resume")
        go_on = gr.Button("Go on to samples", visible=False, variant="primary", elem_id="to-samples")
    message = message_box("training-message")
    panel = html("", elem_id="training-panel")
    losses = html("", elem_id="losses")
    seen = gr.State("")
    own = [begin, stop, resume, go_on, panel, losses, seen]

    def follow(project: Project | None) -> Updates:
        now = _seen(project)  # before anything is read, so that a change meanwhile is noticed at the next tick
        status = project.status("train") if project else {"state": "absent"}
        running, done = status["state"] == "running", status["state"] == "done"
        resumable = status["state"] in ("stopped", "failed") and any(project.checkpoints.glob("step-*"))
        return {
            begin: gr.update(
                value="Train again" if done or resumable else "Start training",
                variant="secondary" if done or resumable else "primary",
                interactive=not running,
            ),
            stop: stop_button(project, "train", "Stop and save"),
            resume: gr.update(visible=resumable, variant="primary"),
            go_on: gr.update(visible=project is not None and project.adapter is not None and not running),
            panel: _panel(project, status),
            losses: _losses(project, status) if project else "",
            seen: now,
        }

    def show(project: Project | None) -> Updates:
        return {**shown(project, TrainingSettings, widgets), **follow(project), message: ""}

    def tick(project_id: str, before: str) -> Updates:
        project = opened(project_id)
        return gr.skip() if _seen(project) == before else follow(project)

    def start(project_id: str, **values) -> Updates:
        project = required(project_id)
        if not project.subject_marker.is_file():
            raise UserError("Finish step 1 first: press “Use these pictures” there.")
        if not project.choice.is_file():
            raise UserError("Finish step 2 first: find helpful pictures, or choose the rule None and press the button.")
        settings = settings_from(TrainingSettings, values)
        workers.start(project, "train", [f"--backbone={shared.backbone}", *workers.options([settings])])
        remember(project, settings)
        project.losses.unlink(missing_ok=True)
        shutil.rmtree(project.checkpoints, ignore_errors=True)  # or an early stop could resume the run before this one
        return follow(project)

    def go_on_training(project_id: str) -> Updates:
        project = required(project_id)
        settings = remembered(project, TrainingSettings)
        workers.start(project, "train", [f"--backbone={shared.backbone}", "--resume", *workers.options([settings])])
        return {**shown(project, TrainingSettings, widgets), **follow(project)}

    def halt(project_id: str) -> Updates:
        project = required(project_id)
        workers.stop(project, "train")
        return follow(project)

    private = {"api_visibility": "private", "show_progress": "hidden"}
    shared.timer.tick(tick, [id, seen], own, queue=False, **private)
    begin.click(answering(message, start), id, [message, *own], inputs_kwargs=widgets, api_name="train")
    stop.click(answering(message, halt), id, [message, *own], api_name="stop_training")
    resume.click(answering(message, go_on_training), id, [message, *widgets.values(), *own], api_name="resume_training")
    go_on.click(lambda: gr.Tabs(selected=4), None, shared.tabs, **private)
    return Step(show, [message, *widgets.values(), *own])


def _seen(project: Project | None) -> str:
    if project is None:
        return ""
    files = (project.subject_marker, project.status_file("train"), project.choice, project.losses)
    return fingerprint(project, *files, project.stop_file("train"), project.lora) + project.status("train")["state"]


def _panel(project: Project | None, status: dict) -> str:
    state = status["state"]
    if state == "running":
        return progress_bar(status)
    if state == "failed":
        return alert(status.get("message") or "The training failed.")
    if state == "stopped" and status.get("what") != "Starting":
        return note(f"Stopped and saved at step {status['done']:,} of {status['total']:,}: Resume goes on from there.")
    if state == "stopped":
        return note("Stopped before the first step.")
    if state == "done":
        changed = (
            project.choice.is_file() and project.choice.stat().st_mtime_ns > project.status_file("train").stat().st_mtime_ns
        )
        again = " You changed the choice of pictures since: train again to use it." if changed else ""
        return f'<p class="done" role="status">Trained: {status["total"]:,} steps.{again}</p>'
    return hint("Nothing is trained yet.")


def _losses(project: Project, status: dict) -> str:
    rows = read_json_lines(project.losses)
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

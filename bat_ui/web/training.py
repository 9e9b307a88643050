"""Step 3 of the page: train the adapter, watch it, stop and resume it; each training is a run that stays.

In: a project with subject and selection.  Out: runs in it, by workers that go on when the page is closed.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import gradio as gr

from bat_ui import queue, registry
from bat_ui.errors import UserError
from bat_ui.estimate import estimate
from bat_ui.files import read_json_lines
from bat_ui.hardware import gpus
from bat_ui.presets import MEMORY
from bat_ui.project import Project, Run
from bat_ui.settings import SCHEDULES, TrainingSettings, ValidationSettings
from bat_ui.web.binding import bound, settings_from, shown
from bat_ui.web.draft import check_used
from bat_ui.web.parts import (
    Updates,
    answering,
    duration,
    fingerprint,
    html,
    message_box,
    note,
    once_a_second,
    opened,
    refusing,
    required,
    run_among,
    status_word,
    stop_button,
    stop_verb,
)
from bat_ui.web.runs import last_samples, loss_curve, memory_words, run_list, run_panel, seconds_left
from bat_ui.web.step import Model, Shared, Step
from bat_ui.web.words import run_name, run_words, saved_step

COSTLY = ("steps", "batch_size", "rank", "checkpoint_every", "validation_images", "validation_steps")  # time or memory
OUTDATED = (
    "You changed your pictures since the backbone pictures were found: find helpful pictures again in step 2, or train with"
    " these as they are."
)

TELL_WHICH = """element.addEventListener('click', (event) => {
    const entry = event.target.closest('[data-run]');
    if (entry) trigger('click', {run: entry.dataset.run});
});"""


def build_training_step(shared: Shared) -> Step:
    """Lay out the step and wire its events."""
    id, model = shared.project, shared.model
    html("<h2>Train</h2><p>The model learns your subject. You may close this page meanwhile: training goes on.</p>")
    with gr.Row():
        steps = gr.Slider(
            1, 2000, step=1, label="Steps", info="More: nearer, less free.", elem_id="steps-dial", min_width=240
        )
        strength = gr.Slider(
            0, 4, step=0.05, label="Backbone strength", info="1 as suggested, 0 without.",
            elem_id="strength", min_width=240,
        )  # fmt: skip
        rank = gr.Slider(1, 64, step=1, label="Rank", info="Size of the adapter.", elem_id="rank", min_width=240)
    with gr.Accordion("Advanced", open=False):
        with gr.Row():
            training = bound(
                TrainingSettings,
                {
                    "steps": steps,
                    "strength": strength,
                    "rank": rank,
                    "learning_rate": gr.Number(label="Learning rate", info="Size of a step.", minimum=0),
                    "lr_scheduler": gr.Dropdown(
                        list(SCHEDULES), label="Schedule", info="Stays, or falls to zero by the end."
                    ),
                    "lr_warmup_steps": gr.Number(
                        label="Warm-up", info="Steps in which the rate rises.", minimum=0, precision=0
                    ),
                    "batch_size": gr.Number(label="Batch size", info="Pictures in a step.", minimum=1, precision=0),
                    "subject_steps": gr.Number(
                        label="Subject alone",
                        info="Steps before backbone pictures come in; 0: as step 2 found.",
                        minimum=0,
                        precision=0,
                    ),
                    "checkpoint_every": gr.Number(label="Checkpoint every", info="Steps.", minimum=1, precision=0),
                    "seed": gr.Number(label="Seed", info="Of everything random.", minimum=0, precision=0),
                    "text_encoder": gr.Checkbox(label="Text encoder", info="Let it learn, too."),
                },
                model.photos,
            )
            memory = gr.Dropdown(
                [("all there is", "auto"), *((f"{size} GB", size) for size in MEMORY if size.isdigit())],
                value=model.memory, label="Graphics memory", info="To get by with.", visible=model.photos,
                elem_id="memory",
            )  # fmt: skip
            there = gpus()
            processes = gr.Slider(
                1, max(there, 2), step=1, value=1, label="GPUs", info="That share this training.", visible=there > 1,
                elem_id="gpus",
            )  # fmt: skip
        with gr.Row():
            validation = bound(
                ValidationSettings,
                {
                    "validation_prompts": gr.Textbox(
                        "",
                        label="Prompts drawn at each checkpoint",
                        info="One a line; your first captions if empty.",
                        lines=2,
                        max_lines=6,
                    ),
                    "validation_images": gr.Slider(
                        0, 8, step=1, label="Pictures of each", info="0 draws and measures nothing."
                    ),
                    "validation_steps": gr.Number(
                        label="Denoising steps", info="Few: only checkpoints are compared.", minimum=1, precision=0
                    ),
                },
                model.photos,
            )
    widgets = {**training, **validation}
    expected = html("", elem_id="estimate")
    begin = gr.Button("Start training", variant="primary", elem_id="start")
    message = message_box("training-message")
    runs = gr.HTML("", js_on_load=TELL_WHICH, apply_default_css=False, elem_id="runs")
    panel = html("", elem_id="training-panel")
    with gr.Row():
        stop = gr.Button("Stop and save", visible=False, elem_id="stop")
        stop_now = gr.Button("Stop now", visible=False, elem_id="stop-now")
        resume = gr.Button("Resume", visible=False, variant="primary", elem_id="resume")
        go_on = gr.Button("Go on to samples", visible=False, variant="primary", elem_id="to-samples")
        remove = gr.Button("Delete this run", visible=False, scale=0, min_width=170, elem_id="delete-run")
        back = gr.Button("Bring back", visible=False, scale=0, min_width=170, elem_id="restore-run")
    losses = html("", elem_id="losses")
    samples = html("", elem_id="run-samples")
    chosen = gr.Textbox("", visible=False, label="run", elem_id="run")
    own = [begin, runs, panel, stop, stop_now, resume, go_on, remove, back, losses, samples, chosen]

    moving = [runs, panel, losses]

    def texts(project: Project | None, run: Run | None, status: dict) -> list[str]:
        """What changes with every step of a training."""
        if run is None:
            return ["", run_panel(project, run, status), ""]
        return [run_list(project, run), run_panel(project, run, status), loss_curve(run, fingerprint(run, run.losses))]

    def follow(project: Project | None, wanted: str) -> Updates:
        """Everything but the settings; the run `wanted`, else the latest one, is the one that is looked at."""
        run = _run(project, wanted)
        status = queue.status(run, "train")
        running, active = status["state"] == "running", status["state"] in ("waiting", "running")
        return {
            **dict(zip(moving, texts(project, run, status))),
            begin: gr.update(value="Train again" if run else "Start training", variant="secondary" if run else "primary"),
            stop: stop_button(status, "Stop and save"),
            stop_now: gr.update(visible=running),
            resume: gr.update(visible=run is not None and not active and status["state"] != "done"),
            go_on: gr.update(visible=run is not None and run.adapter is not None and not active),
            remove: gr.update(visible=run is not None and not active),
            back: _restore_button(project),
            samples: last_samples(run) if run else "",
            chosen: run.folder.name if run else "",
        }

    def show(project: Project | None) -> Updates:
        updates = {**shown(project, TrainingSettings, training, model.photos), **follow(project, ""), message: ""}
        return updates | shown(project, ValidationSettings, validation, model.photos) | {expected: ""}

    def draw_again(project_id: str, wanted: str) -> Updates:
        updates = follow(opened(project_id), wanted)
        if wanted:
            del updates[chosen]  # a click on another run may have been faster
        return updates

    def draw(project_id: str, wanted: str) -> list[str]:
        project = opened(project_id)
        run = _run(project, wanted)
        return texts(project, run, queue.status(run, "train"))

    def look_at(project_id: str, event: gr.EventData) -> Updates:
        return follow(required(project_id), event.run)

    def expect(project_id: str, *values) -> list[str]:
        return [_expected(opened(project_id), dict(zip(COSTLY, values)), model.photos)]

    def start(project_id: str, memory: str, gpus: int, **values) -> Updates:
        """Train an adapter on the subject and the chosen backbone pictures, as a new run in the queue; see `run_status`.
        `memory` is the graphics memory to get by with in gigabytes, or auto; `gpus` are how many share the training."""
        project = required(project_id)
        check_used(project)
        settings = settings_from(TrainingSettings, values), settings_from(ValidationSettings, values)
        run = project.new_run(*settings)
        try:
            queue.add(run, "train", [*_within(model, memory), *_among(gpus), *queue.options(settings)])
        except BaseException:
            shutil.rmtree(run.folder, ignore_errors=True)
            raise
        project.remember(*settings)
        return follow(project, run.folder.name)

    def go_on_training(project_id: str, wanted: str, memory: str, gpus: int) -> Updates:
        """Go on with a stopped or failed run, the latest if `wanted` names none, from its last checkpoint."""
        project = required(project_id)
        run = _required_run(project, wanted)
        if queue.status(run, "train")["state"] == "done":
            raise UserError("This run is trained to its end: train again for another one.")
        settings = [run.remembered(kind) for kind in (TrainingSettings, ValidationSettings)]
        queue.add(run, "train", [*_within(model, memory), *_among(gpus), "--resume", *queue.options(settings)])
        return follow(project, run.folder.name)

    def take_away(project_id: str, wanted: str) -> Updates:
        """Delete a run, the latest if `wanted` names none; the one that was deleted last can be brought back."""
        project = required(project_id)
        run = _required_run(project, wanted)
        if any(job.place.folder == run.folder for job in queue.active()):
            raise UserError("This run is at work: stop it, or take it out of the queue, first.")
        project.delete_run(run.folder.name)
        return follow(project, "")

    def bring_back(project_id: str) -> Updates:
        """Bring the run back that was deleted last."""
        project = required(project_id)
        return follow(project, project.restore_run().folder.name)

    def halt(project_id: str, wanted: str) -> Updates:
        """Stop a run, the latest if `wanted` names none, and save it, so that it can go on later."""
        return _halted(project_id, wanted, False)

    def halt_now(project_id: str, wanted: str) -> Updates:
        """Stop a run, the latest if `wanted` names none, at once; its last checkpoint stays."""
        return _halted(project_id, wanted, True)

    def _halted(project_id: str, wanted: str, now: bool) -> Updates:
        project = required(project_id)
        run = _run(project, wanted)
        if run is not None:
            stop_verb(run, "train", now)
        return follow(project, wanted)

    private = {"api_visibility": "private", "show_progress": "hidden", "concurrency_id": "look_at_runs"}
    shared.heartbeat.follow(_seen, [id, chosen], draw_again, [id, chosen], own, "look_at_runs")
    shared.heartbeat.mirror(draw, [id, chosen], moving)
    shared.heartbeat.mirror(expect, [id, *(widgets[name] for name in COSTLY)], [expected])
    begin.click(answering(message, start), [id, memory, processes], [message, *own], inputs_kwargs=widgets, api_name="train")
    runs.click(answering(message, look_at), id, [message, *own], **private)
    stop.click(answering(message, halt), [id, chosen], [message, *own], api_name="stop_training")
    stop_now.click(answering(message, halt_now), [id, chosen], [message, *own], api_name="stop_training_now")
    resume.click(
        answering(message, go_on_training), [id, chosen, memory, processes], [message, *own], api_name="resume_training"
    )
    remove.click(answering(message, take_away), [id, chosen], [message, *own], api_name="delete_run")
    back.click(answering(message, bring_back), id, [message, *own], api_name="restore_run")
    go_on.click(lambda: gr.Tabs(selected=4), None, shared.tabs, **private)
    gr.api(list_runs, api_name="list_runs")
    gr.api(run_status, api_name="run_status")
    return Step(show, [message, expected, *widgets.values(), *own])


def list_runs(project: str) -> list[dict]:
    """The runs of a project, oldest first: id, name, state."""
    with refusing():
        runs = registry.find(project).runs
    found = [(run, queue.status(run, "train")) for run in runs]
    return [{"run": r.folder.name, "name": run_name(r), "state": s["state"], "at": run_words(r, s)} for r, s in found]


def run_status(project: str, run: str = "") -> dict:
    """How a run stands, the latest if none is named: state, step, pace, time left, memory, losses, metrics, its files."""
    with refusing():
        found = _required_run(registry.find(project), run)
    status = queue.status(found, "train")
    part = (status.get("parts") or {}).get("Training", {})
    return {
        "run": found.folder.name,
        "state": status["state"],
        "message": status.get("message", ""),
        "place_in_queue": status.get("place"),
        "step": part.get("done", saved_step(found)),
        "steps": part.get("total", found.remembered(TrainingSettings).steps),
        "steps_per_second": part.get("pace"),
        "seconds_left": seconds_left(status),
        "peak_memory": status.get("memory"),
        "losses": read_json_lines(found.losses)[-50:],
        "metrics": read_json_lines(found.metrics),
        "checkpoints": sorted(path.name for path in found.checkpoints.glob("step-*")),
        "adapter": str(found.adapter) if found.adapter else None,
    }


def _restore_button(project: Project | None) -> Any:
    """The update of the button that brings a deleted run back: there while one can be."""
    gone = project.deleted_run if project else None
    return gr.update(visible=gone is not None, value=f"Bring back Run {int(gone)}" if gone else "Bring back")


def _within(model: Model, memory: str) -> list[str]:
    """What a worker is told of the model.  Raises UserError for a memory that is none of MEMORY."""
    if memory not in MEMORY:
        raise UserError(f"There is no such graphics memory: choose one of {', '.join(MEMORY)}.")
    return replace(model, memory=memory).options


def _among(wanted: float) -> list[str]:
    """What a worker is told of the GPUs that share a training.  Raises UserError for more than there are."""
    most = max(gpus(), 1)
    if not 1 <= wanted <= most:
        raise UserError(f"A training can have 1 to {most} GPUs on this machine: choose among them.")
    return [f"--processes={int(wanted)}"] if wanted > 1 else []


def _expected(project: Project | None, values: dict[str, Any], photos: bool) -> str:
    """What to know before a training with these values."""
    if project is None or not project.subject_marker.is_file():
        return ""
    return _costs(project, values, photos) + (note(OUTDATED) if project.is_outdated else "")


def _costs(project: Project, values: dict[str, Any], photos: bool) -> str:
    """How long it would take and how much memory, as far as was measured."""
    try:
        training, validation = (
            replace(project.remembered(kind, photos), **{k: int(v) for k, v in values.items() if hasattr(kind, k)})
            for kind in (TrainingSettings, ValidationSettings)
        )
        found = estimate(project, training, validation)
    except (TypeError, ValueError, ArithmeticError):  # a dial is empty, or somebody else asked
        return ""
    if found is None:
        return "<p class='facts'>How long it takes shows after the search of step 2, or after a first run.</p>"
    time, memory = f"{duration(found.seconds)} on this machine", memory_words({"memory": found.memory})
    facts = " and ".join(filter(None, (time, memory)))
    return f"<p class='facts'>Takes {facts}, as measured in {found.measured}.</p>"


def _run(project: Project | None, id: str) -> Run | None:
    """The run with that id, else the latest one; None where there is none."""
    return run_among(project.runs if project else [], id)


def _required_run(project: Project, id: str) -> Run:
    if id:
        return project.run(id)
    run = _run(project, "")
    if run is None:
        raise UserError("Nothing is trained yet: start a training first.")
    return run


@once_a_second
def _seen(project_id: str, wanted: str) -> str:
    project = opened(project_id)
    if project is None:
        return ""
    run = _run(project, wanted)
    states = [queue.status(each, "train") for each in project.runs]
    words = "".join(status_word(s) for s in states)
    if run is None:
        return fingerprint(project, project.choice) + words
    return fingerprint(run, project.choice, run.metrics, run.samples, run.lora) + words

"""What can be taken home of a run: its LoRA for other tools, its pictures as a training set, what its checkpoints drew.

In: a run.  Out: zip files, the first two written by a job (`export`), since they load the backbone to check what they wrote.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

import gradio as gr

from bat_ui import queue, registry
from bat_ui.errors import UserError
from bat_ui.files import read_json, write_zip
from bat_ui.project import Project, Run
from bat_ui.samples import LISTING, steps_with_samples
from bat_ui.settings import ADAPTERS, EXPORTS
from bat_ui.web.parts import (
    Updates,
    alert,
    answering,
    fingerprint,
    html,
    message_box,
    note,
    once_a_second,
    opened,
    progress_bar,
    refusing,
    required,
    run_among,
    status_word,
    stop_button,
    stop_verb,
)
from bat_ui.web.step import Model, Shared, Step

FORMATS = {
    "diffusers": "LoRA for diffusers, with model card",
    "kohya": "LoRA for A1111, Forge and ComfyUI, with model card",
    "kohya-dataset": "Training set for kohya's scripts: all pictures that it learned from",
    "custom-diffusion": "Training set for Custom Diffusion: the same pictures",
    "imagefolder": "Training set for diffusers' scripts, as an imagefolder: the same pictures",
}


def build_take_home(shared: Shared, chosen: gr.Dropdown) -> Step:
    """Lay out the part and wire its events; `chosen` holds the id of the run."""
    id = shared.project
    html("<h3>Take home</h3><p>Each file is read back as its tool would read it before you get it.</p>")
    message = message_box("take-home-message")
    with gr.Row(elem_classes="beside"):
        format = gr.Dropdown(
            [(FORMATS[name], name) for name in EXPORTS], value="kohya", label="What", elem_id="take-home", min_width=240
        )
        prepare = gr.Button("Prepare", elem_id="prepare", min_width=120)
        stop = gr.Button("Stop", visible=False, elem_id="stop-prepare", min_width=120)
    panel = html("", elem_id="take-home-panel")
    with gr.Row():
        ready = gr.DownloadButton("Download", visible=False, variant="primary", elem_id="download-export")
        samples = gr.DownloadButton(
            "Download all pictures of the checkpoints", visible=False, elem_id="download-checkpoints"
        )
    own = [prepare, stop, panel, ready, samples]

    def follow(project: Project | None, wanted: str | None, format: str) -> Updates:
        run = _run(project, wanted)
        status = queue.status(run, "export")
        active = status["state"] in ("waiting", "running")
        file = _current(run, format) if run and not active else None
        pictures = _samples(run) if run and queue.status(run, "train")["state"] != "running" else None
        return {
            prepare: gr.update(interactive=not active),
            stop: stop_button(status),
            panel: _panel(run, format, status, file),
            ready: gr.update(value=str(file) if file else None, visible=file is not None),
            samples: gr.update(value=str(pictures) if pictures else None, visible=pictures is not None),
        }

    def show(project: Project | None) -> Updates:
        return {**follow(project, None, "kohya"), format: "kohya", message: ""}

    def draw_again(project_id: str, wanted: str | None, format: str) -> Updates:
        return follow(opened(project_id), wanted, format)

    def start(project_id: str, wanted: str | None, format: str) -> Updates:
        project = required(project_id)
        run = _run(project, wanted)
        if run is None:
            raise UserError("There is nothing to take home yet: train your subject in step 3 first.")
        _prepare(run, format, shared.model)
        return follow(project, run.folder.name, format)

    def halt(project_id: str, wanted: str | None, format: str) -> Updates:
        project = required(project_id)
        run = _run(project, wanted)
        if run is not None:
            stop_verb(run, "export")
        return follow(project, wanted, format)

    def prepare_download(project: str, run: str, format: str) -> dict:
        """Put the writing of a zip into the queue: the LoRA as diffusers or kohya, the training set as kohya-dataset,
        custom-diffusion or imagefolder; returns what `download_status` says."""
        with refusing():
            _prepare(registry.find(project).run(run), format, shared.model)
        return download_status(project, run, format)

    private = {"api_visibility": "private", "show_progress": "hidden"}
    inputs = [id, chosen, format]
    shared.heartbeat.follow(_seen, inputs, draw_again, inputs, own)
    prepare.click(answering(message, start), inputs, [message, *own], **private)
    stop.click(answering(message, halt), inputs, [message, *own], **private)
    gr.api(prepare_download, api_name="prepare_download")
    gr.api(download_status, api_name="download_status")
    return Step(show, [message, format, *own])


def download_status(project: str, run: str, format: str) -> dict:
    """How a download stands: state and message of the job, the file once it is there, and what was checked by reading it
    back."""
    with refusing():
        found = registry.find(project).run(run)
        _check(format)
    status, file = queue.status(found, "export"), _current(found, format)
    return {
        "state": status["state"],
        "message": status.get("message", ""),
        "place_in_queue": status.get("place"),
        "file": str(file) if file else None,
        "checks": _checks(found, format) if file else [],
    }


def _check(format: str) -> None:
    if format not in EXPORTS:
        raise UserError(f"There is no such format: choose one of {', '.join(EXPORTS)}.")


def _prepare(run: Run, format: str, model: Model) -> None:
    _check(format)
    if format in ADAPTERS and run.adapter is None:
        raise UserError("This run has no adapter yet: let it come to its end, or use one of its checkpoints first.")
    folder = run.exports / format
    queue.add(run, "export", [f"--format={format}", f"--to={folder}", "--zip", *model.options])


def _run(project: Project | None, wanted: str | None) -> Run | None:
    return run_among(project.runs if project else [], wanted)


def _current(run: Run, format: str) -> Path | None:
    """The zip, if there is one that is not older than the adapter in it."""
    file = run.exports / f"{format}.zip"
    if not file.is_file():
        return None
    stale = format in ADAPTERS and run.adapter and file.stat().st_mtime_ns < run.adapter.stat().st_mtime_ns
    return None if stale else file


def _checks(run: Run, format: str) -> list[dict]:
    return read_json(run.exports / f"{format}.json") or []


@once_a_second
def _seen(project_id: str, wanted: str | None, format: str) -> str:
    run = _run(opened(project_id), wanted)
    if run is None:
        return ""
    status = queue.status(run, "export")
    files = (run.status_file("export"), run.exports, run.lora, run.samples)
    return fingerprint(run, *files) + format + status_word(status) + queue.status(run, "train")["state"]


def _panel(run: Run | None, format: str, status: dict, file: Path | None) -> str:
    if status["state"] in ("waiting", "running"):
        return progress_bar(status)
    if status["state"] == "failed" and status.get("what") in ("Starting", f"Preparing {format}") and not file:
        return alert(status.get("message") or "The download could not be prepared.")
    if run is None or file is None:
        return ""
    size = file.stat().st_size
    megabytes = f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.0f} kB"
    bad = [check for check in _checks(run, format) if not check["ok"]]
    if bad:
        return alert(*(f"It does not load in {check['tool']}: {check['found']}." for check in bad))
    said = "".join(
        f"<li>Checked by loading it as {escape(c['tool'])} does: {escape(c['found'])}.</li>" for c in _checks(run, format)
    )
    unpack = "" if format in ADAPTERS else note("Unpack it, and start your training inside the unpacked folder.")
    return f'<p class="done" role="status">Ready: {escape(FORMATS[format])}, {megabytes}.</p><ul>{said}</ul>{unpack}'


def _samples(run: Run) -> Path | None:
    """All pictures of the checkpoints in one file, made anew when there are newer ones."""
    drawn = steps_with_samples(run)
    if not drawn:
        return None
    packed = run.exports / "checkpoint-pictures.zip"
    if packed.is_file() and packed.stat().st_mtime_ns >= run.samples.stat().st_mtime_ns:
        return packed
    files = {f"{row['file'].parent.name}/{row['file'].name}": row["file"] for rows in drawn.values() for row in rows}
    folders = {rows[0]["file"].parent for rows in drawn.values()}
    listings = {f"{folder.name}/{LISTING}": folder / LISTING for folder in sorted(folders)}
    write_zip(packed, {**files, **listings})
    return packed

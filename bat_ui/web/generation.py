"""Step 4 of the page: draw samples with and without the adapter, side by side, and take the results home.

In: a project with an adapter.  Out: its samples, by a worker; the LoRA file and the samples to download.
"""

from __future__ import annotations

import zipfile
from html import escape
from pathlib import Path

import gradio as gr

from bat_ui.errors import UserError
from bat_ui.files import read_json
from bat_ui.project import Project
from bat_ui.settings import GenerationSettings
from bat_ui.web import workers
from bat_ui.web.binding import bound, remember, settings_from, shown
from bat_ui.web.parts import (
    Updates,
    address,
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


def build_generation_step(shared: Shared) -> Step:
    """Lay out the step and wire its events."""
    id = shared.project
    html("<h2>Draw</h2><p>Ask for your subject by its identifier, as the captions do. Each line is a prompt of its own.</p>")
    prompt = gr.Textbox(label="Prompts", lines=3, max_lines=8, elem_id="prompt")
    with gr.Row():
        number = gr.Slider(
            1, 32, step=1, label="Samples", info="Shared out among the prompts.", elem_id="num-images", min_width=220
        )
        guidance = gr.Slider(
            1, 12, step=0.5, label="Guidance", info="How strictly they follow the prompt.", elem_id="guidance", min_width=220
        )
        scale = gr.Slider(
            0, 2, step=0.05, label="Adapter strength", info="1 as trained, 0 without.", elem_id="adapter", min_width=220
        )
    with gr.Accordion("Advanced", open=False):
        with gr.Row():
            widgets = bound(
                GenerationSettings,
                {
                    "num_images": number,
                    "guidance": guidance,
                    "adapter_scale": scale,
                    "steps": gr.Slider(1, 100, step=1, label="Denoising steps", elem_id="sampling-steps"),
                    "seed": gr.Number(
                        label="Seed", info="Of the first sample.", minimum=0, precision=0, elem_id="sample-seed"
                    ),
                },
            )
    with gr.Row():
        draw = gr.Button("Draw samples", variant="primary", elem_id="draw")
        stop = gr.Button("Stop", visible=False, elem_id="stop-draw")
    message = message_box("generation-message")
    panel = html("", elem_id="generation-panel")
    samples = html("", elem_id="samples")
    with gr.Row(visible=False) as downloads:
        weights = gr.DownloadButton("Download the LoRA", elem_id="download-lora")
        archive = gr.DownloadButton("Download the samples", elem_id="download-samples")
    seen = gr.State("")
    own = [draw, stop, panel, samples, downloads, weights, archive, seen]

    def follow(project: Project | None) -> Updates:
        now = _seen(project)  # before anything is read, so that a change meanwhile is noticed at the next tick
        status = project.status("generate") if project else {"state": "absent"}
        running = status["state"] == "running"
        adapter = project.adapter if project else None
        packed = None if running else _archive(project)
        return {
            draw: gr.update(interactive=not running),
            stop: stop_button(project, "generate"),
            panel: _panel(project, status, adapter),
            samples: _pairs(project) if project else "",
            downloads: gr.update(visible=adapter is not None),
            weights: gr.update(value=str(adapter) if adapter else None, visible=adapter is not None),
            archive: gr.update(value=str(packed) if packed else None, visible=packed is not None),
            seen: now,
        }

    def show(project: Project | None) -> Updates:
        settings = shown(project, GenerationSettings, widgets)
        return {**settings, **follow(project), prompt: _first_prompt(project), message: ""}

    def tick(project_id: str, before: str) -> Updates:
        project = opened(project_id)
        return gr.skip() if _seen(project) == before else follow(project)

    def fill(project_id: str, text: str) -> str:
        return text if text.strip() else _first_prompt(opened(project_id))

    def start(project_id: str, prompts: str, **values) -> Updates:
        project = required(project_id)
        if project.adapter is None:
            raise UserError("There is no trained adapter yet: train it in step 3 first.")
        lines = [line.strip() for line in prompts.splitlines() if line.strip()]
        if not lines:
            raise UserError("The prompt is empty: say what to draw.")
        settings = settings_from(GenerationSettings, values)
        if len(lines) > settings.num_images:
            raise UserError(f"{len(lines)} prompts need at least as many samples: raise the number of samples.")
        asked = [f"--prompt={line}" for line in lines]
        workers.start(project, "generate", [f"--backbone={shared.backbone}", *workers.options([settings]), *asked])
        remember(project, settings)
        return follow(project)

    def halt(project_id: str) -> Updates:
        project = required(project_id)
        workers.stop(project, "generate")
        return {stop: stop_button(project, "generate")}

    private = {"api_visibility": "private", "show_progress": "hidden"}
    shared.timer.tick(tick, [id, seen], own, queue=False, **private)
    shared.tabs.change(fill, [id, prompt], prompt, **private)
    draw.click(answering(message, start), [id, prompt], [message, *own], inputs_kwargs=widgets, api_name="generate")
    stop.click(answering(message, halt), id, [message, stop], api_name="stop_generating")
    return Step(show, [message, prompt, *widgets.values(), *own])


def _seen(project: Project | None) -> str:
    if project is None:
        return ""
    files = (project.status_file("generate"), project.stop_file("generate"), project.samples / "samples.json", project.lora)
    return fingerprint(project, *files) + project.status("generate")["state"] + project.status("train")["state"]


def _first_prompt(project: Project | None) -> str:
    """The captions of the subject as it was prepared, each once."""
    if project is None:
        return ""
    captions = [p.read_text(encoding="utf-8").strip() for p in sorted(project.subject.glob("*.txt"))]
    return "\n".join(dict.fromkeys(captions[:4]))


def _panel(project: Project | None, status: dict, adapter: Path | None) -> str:
    if status["state"] == "running":
        return progress_bar(status)
    if status["state"] == "failed":
        return alert(status.get("message") or "Drawing failed.")
    if status["state"] == "stopped":
        return note("Drawing was stopped.")
    if adapter is None:
        return hint("Train your subject in step 3 first.")
    drawn = project.samples / "samples.json"
    if not drawn.is_file():
        return hint("No samples are drawn yet.")
    if drawn.stat().st_mtime_ns < adapter.stat().st_mtime_ns:
        return note("These samples are from an earlier training: draw new ones.")
    return ""


def _pairs(project: Project) -> str:
    figures = []
    for row in read_json(project.samples / "samples.json") or []:
        pictures = [
            f'<span><img src="{escape(address(file))}" alt="{escape(row["prompt"])}, {words}" width="160" height="160">'
            f"<small>{words}</small></span>"
            for file, words in (
                (project.samples / row["file"], "with the adapter"),
                (project.samples / "without" / row["file"], "without"),
            )
            if file.is_file()
        ]
        figures.append(
            f'<figure class="pair"><div>{"".join(pictures)}</div>'
            f"<figcaption>{escape(row['prompt'])} <small>seed {row['seed']}</small></figcaption></figure>"
        )
    return f'<div class="pairs">{"".join(figures)}</div>' if figures else ""


def _archive(project: Project | None) -> Path | None:
    """All samples in one file, made anew when they are newer."""
    listing = project.samples / "samples.json" if project else None
    if listing is None or not listing.is_file():
        return None
    packed = project.folder / "exports" / "samples.zip"
    if packed.is_file() and packed.stat().st_mtime_ns >= listing.stat().st_mtime_ns:
        return packed
    packed.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(packed, "w") as file:
        for path in sorted(project.samples.rglob("*.*")):
            file.write(path, path.relative_to(project.samples))
    return packed

"""Step 4 of the page: draw samples with and without the adapter, side by side, and take the results home.

In: a project with a trained run.  Out: the run's samples, by a worker; the LoRA file and the samples to download.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from textwrap import shorten
from typing import Any

import gradio as gr

from bat_ui import queue, registry
from bat_ui.adapters import used_step
from bat_ui.errors import UserError
from bat_ui.files import read_json, write_zip
from bat_ui.project import Project, Run
from bat_ui.samples import LISTING, drawn_earlier
from bat_ui.settings import GenerationSettings
from bat_ui.subject import names_subject
from bat_ui.web.binding import bound, settings_from, shown
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
    once_a_second,
    opened,
    progress_bar,
    refusing,
    required,
    run_among,
    small_pictures,
    status_word,
    stop_button,
    stop_verb,
)
from bat_ui.web.step import Shared, Step
from bat_ui.web.words import run_name

MOST_WORDS = 50  # or so, of a prompt: CLIP's text models read 77 tokens
MOST_EARLIER = 20  # drawings that are shown beside the last one


def build_generation_step(shared: Shared) -> Step:
    """Lay out the step and wire its events."""
    id = shared.project
    html("<h2>Draw</h2><p>Ask for your subject by its name, as the captions do. Each line is a prompt of its own.</p>")
    chosen = gr.Dropdown([], label="Run", allow_custom_value=True, visible=False, elem_id="draw-run")
    drawn_with = html("", elem_id="drawn-with")
    prompt = gr.Textbox("", label="Prompts", lines=3, max_lines=8, elem_id="prompt")
    with gr.Row():
        number = gr.Slider(
            1, 32, step=1, label="Samples", info="Shared by all prompts.", elem_id="num-images", min_width=220
        )
        guidance = gr.Slider(
            1, 12, step=0.5, label="Guidance", info="How near to the prompt.", elem_id="guidance", min_width=220
        )
        scale = gr.Slider(
            0, 2, step=0.05, label="Adapter strength", info="1 as trained, 0 without.", elem_id="adapter", min_width=220
        )
    with gr.Accordion("Advanced", open=False):
        negative = gr.Textbox(label="Negative prompt", info="What no sample is to show.", elem_id="negative-prompt")
        with gr.Row():
            widgets = bound(
                GenerationSettings,
                {
                    "num_images": number,
                    "negative_prompt": negative,
                    "guidance": guidance,
                    "adapter_scale": scale,
                    "steps": gr.Slider(1, 100, step=1, label="Denoising steps", elem_id="sampling-steps"),
                    "seed": gr.Number(
                        label="Seed", info="Of the first sample.", minimum=0, precision=0, elem_id="sample-seed"
                    ),
                },
                shared.model.photos,
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
    own = [drawn_with, draw, stop, panel, samples, downloads, weights, archive, chosen]

    def follow(project: Project | None, wanted: str | None) -> Updates:
        """All but the settings; `wanted` is the run that draws, else as `_run` has it."""
        run = _run(project, wanted)
        status = queue.status(run, "generate")
        active = status["state"] in ("waiting", "running")
        adapter = run.adapter if run else None
        packed = None if active else _archive(run)
        trained = _trained(project)
        return {
            drawn_with: _drawn_with(run),
            draw: gr.update(interactive=not active),
            stop: stop_button(status),
            panel: _panel(run, status),
            samples: _pairs(run) + _earlier(run) if run else "",
            downloads: gr.update(visible=adapter is not None),
            weights: gr.update(value=str(adapter) if adapter else None, visible=adapter is not None),
            archive: gr.update(value=str(packed) if packed else None, visible=packed is not None),
            chosen: gr.update(
                choices=[(run_name(each), each.folder.name) for each in reversed(trained)],
                value=run.folder.name if run else None,
                visible=len(trained) > 1,
            ),
        }

    def show(project: Project | None) -> Updates:
        settings = shown(project, GenerationSettings, widgets, shared.model.photos)
        return {**settings, **follow(project, None), prompt: _first_prompts(project), message: ""}

    def draw_again(project_id: str, wanted: str | None) -> Updates:
        updates = follow(opened(project_id), wanted)
        if wanted:
            updates[chosen].pop("value")  # another run may have been chosen meanwhile
        return updates

    def draw_panel(project_id: str, wanted: str | None) -> list[str]:
        run = _run(opened(project_id), wanted)
        return [_panel(run, queue.status(run, "generate"))]

    def look_at(project_id: str, wanted: str | None) -> Updates:
        return follow(required(project_id), wanted)

    def fill(project_id: str, text: str) -> Any:
        prompt = "" if text.strip() else _first_prompts(opened(project_id))
        return prompt or gr.skip()  # an answer to a page that knew no project yet must not empty the box

    def start(project_id: str, prompts: str, wanted: str | None, **values) -> Updates:
        """Draw with a trained run, the latest if `wanted` names none; one prompt a line; `list_samples` says the files."""
        project = required(project_id)
        run = project.run(wanted) if wanted else _run(project, None)
        if run is None or run.adapter is None:
            raise UserError("There is no trained adapter yet: train it in step 3 first.")
        lines = [line.strip() for line in prompts.splitlines() if line.strip()]
        if not lines:
            raise UserError("The prompt is empty: say what to draw.")
        settings = settings_from(GenerationSettings, values)
        settings.prompts_of_samples(lines)  # refused here rather than by the job
        asked = [f"--prompt={line}" for line in lines]
        queue.add(run, "generate", [*shared.model.options, *queue.options([settings]), *asked])
        project.remember(settings)
        return {**follow(project, run.folder.name), message: note(*_hints(run, lines))}

    def halt(project_id: str, wanted: str | None) -> Updates:
        """Stop drawing."""
        project = required(project_id)
        run = _run(project, wanted)
        if run is not None:
            stop_verb(run, "generate")
        return follow(project, wanted)

    private = {"api_visibility": "private", "show_progress": "hidden", "concurrency_id": "look_at_samples"}
    shared.heartbeat.follow(_seen, [id, chosen], draw_again, [id, chosen], own, "look_at_samples")
    shared.heartbeat.mirror(draw_panel, [id, chosen], [panel])
    shared.tabs.change(fill, [id, prompt], prompt, **private)
    chosen.input(answering(message, look_at), [id, chosen], [message, *own], **private)
    draw.click(answering(message, start), [id, prompt, chosen], [message, *own], inputs_kwargs=widgets, api_name="generate")
    stop.click(answering(message, halt), [id, chosen], [message, *own], api_name="stop_generating")
    gr.api(list_samples, api_name="list_samples")
    return Step(show, [message, prompt, *widgets.values(), *own])


def list_samples(project: str, run: str = "") -> list[dict]:
    """The samples of a run, the latest trained one if none is named: prompt, seed and the files with and without adapter."""
    with refusing():
        home = registry.find(project)
        found = home.run(run) if run else _run(home, None)
    rows = read_json(found.samples / LISTING) if found else None
    return [
        {**row, "file": str(found.samples / row["file"]), "without": str(found.samples / "without" / row["file"])}
        for row in rows or []
    ]


def _trained(project: Project | None) -> list[Run]:
    return [run for run in project.runs if run.adapter is not None] if project else []


def _run(project: Project | None, id: str | None) -> Run | None:
    """The trained run with that id, else the latest one that came to its end, else the latest; None where there is none."""
    trained = _trained(project)
    if id in {run.folder.name for run in trained}:
        return run_among(trained, id)
    return run_among([run for run in trained if run.status("train")["state"] == "done"] or trained, None)


@once_a_second
def _seen(project_id: str, wanted: str | None) -> str:
    project = opened(project_id)
    run = _run(project, wanted)
    if project is None or run is None:
        return project.folder.name if project else ""
    status = queue.status(run, "generate")
    return fingerprint(run, run.samples / LISTING, run.lora) + status_word(status) + str(len(_trained(project)))


def _first_prompts(project: Project | None) -> str:
    """What was drawn last, else the captions of the subject as it was prepared, each once."""
    if project is None:
        return ""
    run = _run(project, None)
    drawn = [row["prompt"] for row in (read_json(run.samples / LISTING) if run else None) or []]
    if drawn:
        return "\n".join(dict.fromkeys(drawn))
    captions = [p.read_text(encoding="utf-8").strip() for p in sorted(project.subject.glob("*.txt"))]
    return "\n".join(dict.fromkeys(captions[:4]))


def _hints(run: Run, prompts: list[str]) -> list[str]:
    """What is drawn all the same, though it hardly is what was meant."""
    identifier = (read_json(run.subject_marker) or {}).get("identifier", "")
    said = [
        f"“{shorten(prompt, 60, placeholder=' …')}” does not name your subject: it is called “{identifier}”."
        for prompt in prompts
        if not names_subject(prompt, identifier)
    ]
    return said + [
        f"“{shorten(prompt, 60, placeholder=' …')}” is long: the model reads some {MOST_WORDS} words and no more."
        for prompt in prompts
        if len(prompt.split()) > MOST_WORDS
    ]


def _drawn_with(run: Run | None) -> str:
    """Which run draws, and as it was after which step."""
    if run is None:
        return ""
    step = used_step(run)
    after = "" if step is None else f", as it was after step {step:,} (another one can be put to use in step 5)"
    called = " ".join((read_json(run.subject_marker) or {}).get(key, "") for key in ("identifier", "class_noun"))
    return f'<p class="facts">Draws with {escape(run_name(run))}{after}. Your subject is called “{escape(called)}”.</p>'


def _panel(run: Run | None, status: dict) -> str:
    if status["state"] in ("waiting", "running"):
        return progress_bar(status)
    if status["state"] == "failed":
        return alert(status.get("message") or "Drawing failed.")
    if status["state"] == "stopped":
        return note("Drawing was stopped.")
    if run is None:
        return hint("Train your subject in step 3 first.")
    drawn = run.samples / LISTING
    if not drawn.is_file():
        return hint("No samples are drawn yet.")
    if drawn.stat().st_mtime_ns < run.adapter.stat().st_mtime_ns:
        return note("These samples are from an earlier training or checkpoint: draw new ones.")
    return ""


def _pairs(run: Run) -> str:
    figures = []
    for row in read_json(run.samples / LISTING) or []:
        pictures = [
            f'<span><img src="{escape(address(file))}" alt="{escape(row["prompt"])}, {words}" width="160" height="160">'
            f"<small>{words}</small></span>"
            for file, words in (
                (run.samples / row["file"], "with the adapter"),
                (run.samples / "without" / row["file"], "without"),
            )
            if file.is_file()
        ]
        figures.append(
            f'<figure class="pair"><div>{"".join(pictures)}</div>'
            f"<figcaption>{escape(row['prompt'])} <small>seed {row['seed']}</small></figcaption></figure>"
        )
    return f'<div class="pairs">{"".join(figures)}</div>' if figures else ""


def _earlier(run: Run) -> str:
    """What was drawn before, folded up."""
    drawn = drawn_earlier(run)
    if not drawn:
        return ""
    strips = "".join(small_pictures(run.samples, rows, seeds=True) for rows in drawn[:MOST_EARLIER])
    older = note(f"Older ones are in {run.samples / 'earlier'}.") if len(drawn) > MOST_EARLIER else ""
    return f'<details class="earlier"><summary>Drawn before</summary>{strips}{older}</details>'


def _archive(run: Run | None) -> Path | None:
    """All samples in one file, made anew when they are newer."""
    listing = run.samples / LISTING if run else None
    if listing is None or not listing.is_file():
        return None
    packed = run.exports / "samples.zip"
    if packed.is_file() and packed.stat().st_mtime_ns >= listing.stat().st_mtime_ns:
        return packed
    files = sorted([*run.samples.glob("*.*"), *run.samples.glob("without/*")])
    write_zip(packed, {str(path.relative_to(run.samples)): path for path in files})
    return packed

"""The whole page: header, the four steps, and how it finds its project again after a reload.

In: the backbone that workers are to load.  Out: Gradio Blocks, not yet launched.  The open project's id is in the
address (?project=ID) and in the browser's storage; all that is shown comes from that project's folder.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

import gradio as gr

from bat_ui.project import Project
from bat_ui.web.backbone import build_backbone_step
from bat_ui.web.generation import build_generation_step
from bat_ui.web.parts import Updates, html, opened
from bat_ui.web.step import Shared
from bat_ui.web.subject import build_subject_step
from bat_ui.web.theme import PROJECT_IN_ADDRESS
from bat_ui.web.training import build_training_step

TITLE = "Backbone Augmented Training"
PROMISE = "Teach an image model your cat, your face or your mug from a few pictures, without making it forget the rest."
SECONDS = 1.0  # between two looks at the project
DAY = 24 * 3600


def build_page(backbone: str) -> gr.Blocks:
    """The page for a backbone, given by name or as a folder."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(DAY, DAY)) as page:
        project = gr.Textbox(visible=False, label="project", elem_id="project")
        last = gr.BrowserState("", storage_key="bat-ui-project", secret="bat-ui")
        timer = gr.Timer(SECONDS)
        with gr.Row(elem_id="header"):
            html(f"<h1>{TITLE}</h1><p>{PROMISE}</p>")
            fresh = gr.Button("New project", elem_id="new-project", scale=0, min_width=130, size="sm")
        hardware = html("", elem_id="hardware")
        with gr.Tabs(selected=1, elem_id="steps") as tabs:
            shared = Shared(project, tabs, timer, backbone)
            builders = (build_subject_step, build_backbone_step, build_training_step, build_generation_step)
            steps = []
            for number, (label, build) in enumerate(zip(("Subject", "Backbone", "Train", "Draw"), builders), 1):
                with gr.Tab(f"{number} {label}", id=number):
                    steps.append(build(shared))
        everything = [component for step in steps for component in step.components]

        def show_all(found: Project | None) -> Updates:
            updates: Updates = {tabs: gr.Tabs(selected=_furthest(found))}
            for step in steps:
                updates |= step.show(found)
            return updates

        def open_page(stored: str | None, request: gr.Request) -> Updates:
            found = opened(request.query_params.get("project")) or opened(stored)
            return {project: found.folder.name if found else "", **show_all(found)}

        def start_anew() -> Updates:
            return {project: "", **show_all(None)}

        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        page.load(open_page, last, [project, tabs, *everything], **quiet)
        page.load(lambda: _hardware(backbone), None, hardware, **quiet)
        fresh.click(start_anew, None, [project, tabs, *everything], **quiet)
        project.change(lambda id: id, project, last, js=PROJECT_IN_ADDRESS, **quiet)
    return page.queue(max_size=64, default_concurrency_limit=4)


def _furthest(project: Project | None) -> int:
    """The step that a project has come to: the one that runs, else the last one with something to look at."""
    if project is None:
        return 1
    for number, verb in ((4, "generate"), (3, "train"), (2, "select")):
        if project.status(verb)["state"] == "running":
            return number
    if project.adapter is not None:
        return 4
    if project.status("train")["state"] in ("failed", "stopped"):
        return 3
    return 2 if project.subject_marker.is_file() else 1


def _hardware(backbone: str) -> str:
    from bat_ui.hardware import best_device, describe_hardware  # here, since torch takes seconds to import

    model = "stickers of 64 × 64 pixels, built in" if backbone == "sticker" else Path(backbone).name
    pace = "" if best_device().type == "cuda" else " No GPU is needed: stickers train in minutes."
    return f"<p>Backbone: {escape(model)}. Hardware: {escape(describe_hardware())}.{pace}</p>"

"""The whole page: sidebar, header, the five steps, and how it finds its project again after a reload.

In: the backbone that workers are to load.  Out: Gradio Blocks, not yet launched, and a route beside them.  The open
project's id is in the address (?project=ID) and in the browser's storage; all that is shown comes from its folder.
"""

from __future__ import annotations

import logging
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block
from starlette.routing import Route

from bat_ui import queue
from bat_ui.project import Project
from bat_ui.web.backbone import build_backbone_step
from bat_ui.web.compare import build_comparison_step
from bat_ui.web.generation import build_generation_step
from bat_ui.web.heartbeat import Heartbeat
from bat_ui.web.parts import Updates, html, opened
from bat_ui.web.projects import build_sidebar
from bat_ui.web.step import Model, Shared
from bat_ui.web.subject import build_subject_step
from bat_ui.web.theme import KEYS_SETTLE_SLIDERS, PROJECT_IN_ADDRESS
from bat_ui.web.training import build_training_step

TITLE = "Backbone Augmented Training"
PROMISE = "Teach an image model your cat, your face or your mug from a few pictures, without making it forget the rest."
BROKEN = "A part of this project cannot be shown: its files may be damaged, or the disk is full. The server's log says more."
DAY = 24 * 3600
IS_WIDE = "() => window.innerWidth > 1100"

log = logging.getLogger("bat_ui.page")


def build_page(model: Model) -> tuple[gr.Blocks, Route]:
    """The page for a backbone, and the route by which it looks for changes."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(DAY, DAY)) as page:
        project = gr.Textbox("", visible=False, label="project", elem_id="project")
        last = gr.BrowserState("", storage_key="bat-ui-project", secret="bat-ui")
        heartbeat = Heartbeat()
        title = f"<h1>{TITLE}</h1><p>{PROMISE}</p>"
        gr.HTML(title, elem_id="header", js_on_load=KEYS_SETTLE_SLIDERS, apply_default_css=False)
        hardware = html("", elem_id="hardware")
        with gr.Tabs(selected=1, elem_id="steps") as tabs:
            shared = Shared(project, tabs, heartbeat, model)
            builders = (build_subject_step, build_backbone_step, build_training_step, build_generation_step)
            builders += (build_comparison_step,)
            steps = []
            for number, (label, build) in enumerate(zip(("Subject", "Backbone", "Train", "Draw", "Compare"), builders), 1):
                with gr.Tab(f"{number} {label}", id=number, elem_id=f"step-{number}"):
                    steps.append(build(shared))
        sidebar = build_sidebar(shared)
        steps.append(sidebar)
        heartbeat.start()
        everything = [component for step in steps for component in step.components]

        def show_all(found: Project | None) -> Updates:
            updates: Updates = {tabs: gr.Tabs(selected=_furthest(found))}
            for step in steps:
                try:
                    updates |= step.show(found)
                except Exception:  # the other steps still are of use
                    log.exception("A step of the project %s could not be shown", found and found.folder.name)
                    gr.Warning(BROKEN)
                    updates |= step.show(None)
            return updates

        def open_page(stored: str | None, request: gr.Request) -> Updates:
            found = opened(request.query_params.get("project")) or opened(stored)
            updates = {project: found.folder.name if found else "", **show_all(found)}
            return {part: update for part, update in updates.items() if not _is_initial(part, update)}

        def open_again(id: str) -> Updates:
            return show_all(opened(id))

        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        filled = page.load(open_page, last, [project, tabs, *everything], **quiet)
        filled.then(lambda: _hardware(model), None, hardware, **quiet)
        wide = gr.Checkbox(visible=False)  # a sidebar is open where there is room for it beside the steps
        page.load(lambda wide: gr.Sidebar(open=wide), wide, sidebar.panel, js=IS_WIDE, **quiet)
        for event in sidebar.reopening:
            event.then(open_again, project, [tabs, *everything], **quiet)
            event.then(lambda wide: gr.Sidebar(open=wide), wide, sidebar.panel, js=IS_WIDE, **quiet)
        project.change(lambda id: id, project, last, js=PROJECT_IN_ADDRESS, **quiet)
        for event in page.fns.values():
            # Gradio's queue loses answers where one event ends as another begins.  All are short and need none, but only
            # through it an answer may bring new parts of the page.
            event.queue = event.renderable is not None
            if event.api_visibility == "public":
                event.fn.__name__ = event.api_name  # an assistant's tools are called as the endpoints are
    return page, heartbeat.route


def _is_initial(part: Block, update: Any) -> bool:
    """Whether a fresh page shows that already: a tab's parts are made when it is opened, and hold what was sent before."""
    return hasattr(part, "value") and update in (part.value, gr.update(value=part.value))


def _furthest(project: Project | None) -> int:
    """The step that a project has come to: the one that runs, else the last one with something to look at."""
    if project is None:
        return 1
    runs = project.runs
    for run in runs:
        for number, verb in ((4, "generate"), (3, "train")):
            if queue.status(run, verb)["state"] in ("waiting", "running"):
                return number
    if queue.status(project, "select")["state"] in ("waiting", "running"):
        return 2
    if any(run.adapter is not None for run in runs):
        return 4
    if runs:
        return 3
    return 2 if project.subject_marker.is_file() else 1


def _hardware(model: Model) -> str:
    from bat_ui.hardware import best_device, describe_hardware  # here, since torch takes seconds to import

    name = "stickers of 64 × 64 pixels, built in" if model.backbone == "sticker" else Path(model.backbone).name
    slow = "Without a GPU photographs train for hours." if model.photos else "No GPU is needed: stickers train in minutes."
    pace = "" if best_device().type == "cuda" else f" {slow}"
    return f"<p>Backbone: {escape(name)}. Hardware: {escape(describe_hardware())}.{pace}</p>"

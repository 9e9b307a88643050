"""What a step of the page gets from the page, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import gradio as gr
from gradio.components import Component

from bat_ui.project import Project
from bat_ui.web.heartbeat import Heartbeat
from bat_ui.web.parts import Updates


@dataclass(frozen=True)
class Shared:
    """`project` holds the open project's id, "" for none; `heartbeat` tells steps of changes on disk; `backbone` is the
    name or folder that workers load."""

    project: gr.Textbox
    tabs: gr.Tabs
    heartbeat: Heartbeat
    backbone: str


@dataclass(frozen=True)
class Step:
    """`show` gives the updates of `components` that make the step show a project, or none."""

    show: Callable[[Project | None], Updates]
    components: list[Component]

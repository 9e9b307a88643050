"""What a step of the page gets from the page, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import gradio as gr
from gradio.components import Component

from bat_ui.project import Project
from bat_ui.settings import BackboneSettings
from bat_ui.subject import draws_stickers
from bat_ui.web.heartbeat import Heartbeat
from bat_ui.web.parts import Updates


@dataclass(frozen=True)
class Model(BackboneSettings):
    """The backbone that workers load, in the command line's words."""

    memory: str = "auto"

    @property
    def options(self) -> list[str]:
        """What a worker's command line says of it."""
        given = asdict(self).items()
        return [f"--{name}={value}" for name, value in given if value and value != "auto"]

    @property
    def photos(self) -> bool:
        """Whether it draws photographs, and so has other defaults and no store of its own."""
        return not draws_stickers(self.backbone)


@dataclass(frozen=True)
class Shared:
    """`project` holds the open project's id, "" for none; `heartbeat` tells steps of changes on disk."""

    project: gr.Textbox
    tabs: gr.Tabs
    heartbeat: Heartbeat
    model: Model


@dataclass(frozen=True)
class Step:
    """`show` gives the updates of `components` that make the step show a project, or none."""

    show: Callable[[Project | None], Updates]
    components: list[Component]

"""Widgets and settings: bound to each other by the names of the settings' fields, never by their order.

In: a settings dataclass and a dictionary of components by field name.  Out: settings from the components' values (given
to Gradio as `inputs_kwargs`), and updates that show saved settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar

import gradio as gr
from gradio.components import Component

from bat_ui.errors import UserError
from bat_ui.project import Run
from bat_ui.settings import checked, defaults

Settings = TypeVar("Settings")
Widgets = dict[str, Component]


def bound(kind: type, widgets: Widgets, photos: bool = False) -> Widgets:
    """`widgets`, after a check that they name each field of `kind` once, at the defaults for stickers or for photos."""
    names = {field.name for field in fields(kind)}
    if names != set(widgets):
        raise ValueError(f"widgets and fields of {kind.__name__} differ: {sorted(names ^ set(widgets))}")
    for name, value in asdict(defaults(kind, photos)).items():
        widgets[name].value = _shown(value)
    return widgets


def settings_from(kind: type[Settings], values: Mapping[str, Any]) -> Settings:
    """The settings that the widgets' values say.  Raises UserError for a field that is empty, no number or too small.

    For a field whose default is None, an empty widget or 0 means None.
    """
    return checked(kind(**{field.name: _value(field, values[field.name]) for field in fields(kind)}))


def shown(project: Run | None, kind: type, widgets: Widgets, photos: bool = False) -> dict[Component, Any]:
    """Updates that make the widgets show the settings of a project or run, else the defaults for stickers or for photos."""
    settings = project.remembered(kind, photos) if project else defaults(kind, photos)
    return {widgets[name]: gr.update(value=_shown(value)) for name, value in asdict(settings).items()}


def _shown(value: Any) -> Any:
    return 0 if value is None else value


def _value(field, value: Any) -> Any:
    if field.default is None:
        return int(value) if value else None
    if isinstance(field.default, str):
        return str(value or "")
    if value is None or value == "":
        raise UserError(f"The setting {field.name.replace('_', ' ')} is empty: fill in a number.")
    try:
        return type(field.default)(value)
    except (TypeError, ValueError) as problem:
        raise UserError(f"The setting {field.name.replace('_', ' ')} is not a number: fill in one.") from problem

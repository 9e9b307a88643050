"""Widgets and settings: bound by name, emptiness and nonsense refused in a sentence, remembered with the project."""

from dataclasses import fields

import gradio as gr
import pytest

from bat_ui.errors import UserError
from bat_ui.project import Project
from bat_ui.settings import SelectionSettings, TrainingSettings
from bat_ui.web.binding import bound, settings_from, shown


def widgets_of(kind):
    with gr.Blocks():
        return {field.name: gr.Number() for field in fields(kind)}


def values_of(settings):
    return {field.name: getattr(settings, field.name) for field in fields(settings)}


def test_the_order_of_values_does_not_matter():
    settings = TrainingSettings(steps=7, rank=3, strength=0.25)
    values = values_of(settings)
    assert settings_from(TrainingSettings, dict(reversed(values.items()))) == settings


def test_a_widget_too_few_or_too_many_is_found_when_the_page_is_built():
    widgets = widgets_of(TrainingSettings)
    with pytest.raises(ValueError, match="rank"):
        bound(TrainingSettings, {name: w for name, w in widgets.items() if name != "rank"})
    with pytest.raises(ValueError, match="other"):
        bound(TrainingSettings, widgets | {"other": widgets["rank"]})


def test_widgets_start_at_the_settings_defaults():
    widgets = bound(TrainingSettings, widgets_of(TrainingSettings))
    defaults = values_of(TrainingSettings()) | {"subject_steps": 0}  # which stands for None
    assert {name: widget.value for name, widget in widgets.items()} == defaults


def test_a_page_for_photos_starts_at_their_settings_and_keeps_what_a_project_has(tmp_path):
    widgets = bound(TrainingSettings, widgets_of(TrainingSettings), photos=True)
    wanted = {"steps": 800, "rank": 8, "learning_rate": 1e-4}
    assert {name: widgets[name].value for name in wanted} == wanted
    project = Project(tmp_path)
    for found in (None, project):
        updates = shown(found, TrainingSettings, widgets, photos=True)
        assert {name: updates[widgets[name]]["value"] for name in wanted} == wanted
    project.remember(TrainingSettings(rank=3))
    assert shown(project, TrainingSettings, widgets, photos=True)[widgets["rank"]]["value"] == 3


def test_an_emptied_number_is_refused_by_name():
    with pytest.raises(UserError, match="batch size is empty"):
        settings_from(TrainingSettings, values_of(TrainingSettings()) | {"batch_size": None})


@pytest.mark.parametrize("value, number", [(None, None), (0, None), (12, 12)])
def test_no_number_of_backbone_pictures_means_as_many_as_the_curve_suggests(value, number):
    values = values_of(SelectionSettings()) | {"num_backbone": value}
    assert settings_from(SelectionSettings, values).num_backbone == number


def test_a_project_remembers_its_settings_and_a_new_one_has_the_defaults(tmp_path):
    project, settings = Project(tmp_path), TrainingSettings(steps=9)
    project.remember(settings, SelectionSettings(rule="random"))
    assert project.remembered(TrainingSettings) == settings
    assert project.remembered(SelectionSettings).rule == "random"
    widgets = widgets_of(TrainingSettings)
    assert shown(project, TrainingSettings, widgets)[widgets["steps"]]["value"] == 9
    assert shown(None, TrainingSettings, widgets)[widgets["steps"]]["value"] == TrainingSettings().steps

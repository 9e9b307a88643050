"""What a project and a run are at, in words."""

import pytest

from bat_ui import queue, registry
from bat_ui.files import write_json
from bat_ui.project import Run
from bat_ui.web.runs import run_panel, seconds_left
from bat_ui.web.words import run_name, run_words, state_words

PART = {"done": 120, "total": 400, "first": 0, "since": 0.0}


@pytest.mark.parametrize(
    "status, words",
    [
        ({"state": "waiting", "place": 2}, "waits in the queue, place 2"),
        ({"state": "running"}, "training: starting"),
        ({"state": "running", "parts": {"Training": PART}}, "training: step 120 of 400"),
        ({"state": "failed", "parts": {}}, "failed, nothing saved yet"),
        ({"state": "done", "parts": {"Training": PART}}, "trained"),
        ({"state": "absent"}, "not begun"),
    ],
)
def test_a_run_says_what_it_is_at(status, words, tmp_path):
    assert run_words(Run(tmp_path), status) == words


def test_a_run_that_was_resumed_at_its_end_is_shown_as_trained():
    project = registry.make()
    (project.folder / "checkpoints" / "step-000400").mkdir(parents=True)
    said = run_panel(project, Run(project.folder), {"state": "done", "parts": {}})
    assert "Trained: 400 steps." in said


def test_a_stopped_run_says_what_is_saved(tmp_path):
    for step in ("step-000100", "step-000120", ".step-000150.draft"):
        (tmp_path / "checkpoints" / step).mkdir(parents=True)
    assert run_words(Run(tmp_path), {"state": "stopped", "parts": {"Training": PART}}) == "stopped, saved at step 120"


def test_a_project_says_the_furthest_that_it_has_come_to():
    project = registry.make()
    assert state_words(project, []) == "not begun"
    write_json(project.subject_marker, {})
    assert state_words(project, []) == "subject ready"
    write_json(project.choice, {"candidates": [{"id": "a", "chosen": True}, {"id": "b", "chosen": False}]})
    assert state_words(project, []) == "pictures chosen"
    run = project.new_run()
    write_json(run.status_file("train"), {"state": "done"})
    assert state_words(project, []) == "trained" and run_name(run) == "Run 1, with 1 backbone picture"
    job = queue.add(project, "select")
    assert state_words(project, [job]) == "looking for pictures: waits in the queue"
    queue.stop(job)


def test_a_run_without_backbone_pictures_says_so():
    project = registry.make()
    write_json(project.subject_marker, {})
    write_json(project.choice, {"candidates": []})
    assert run_name(project.new_run()) == "Run 1, without backbone pictures"


def test_the_time_left_follows_from_the_pace_since_the_run_went_on():
    part = {"done": 150, "total": 400, "first": 100, "since": 10.0}  # resumed at step 100: 50 steps in 25 s
    assert seconds_left({"state": "running", "updated": 35.0, "parts": {"Training": part}}) == 125.0
    assert seconds_left({"state": "done", "updated": 35.0, "parts": {"Training": part}}) is None
    assert seconds_left({"state": "running", "updated": 35.0, "parts": {}}) is None

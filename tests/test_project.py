"""A project's status files: readable at any moment, and honest about runs that died."""

import json
import os
import subprocess
import sys

import psutil
import pytest

from bat_ui.errors import UserError
from bat_ui.files import read_json, write_json
from bat_ui.project import Project, StatusWriter


def test_status_goes_from_absent_over_running_to_the_last_word(tmp_path):
    project = Project(tmp_path)
    assert project.status("train")["state"] == "absent"
    writer = StatusWriter(project, "train")
    writer("Training", 3, 10)
    status = project.status("train")
    assert (status["state"], status["what"], status["done"], status["total"]) == ("running", "Training", 3, 10)
    writer.finish("done")
    assert project.status("train")["state"] == "done"


def test_a_run_whose_process_died_is_reported_as_failed(tmp_path):
    project = Project(tmp_path)
    code = "import sys; from bat_ui.project import *; StatusWriter(Project(Path(sys.argv[1])), 'train')"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=os.getcwd())
    assert read_json(project.status_file("train"))["state"] == "running"
    assert project.status("train")["state"] == "failed"


def test_a_new_run_takes_back_an_old_wish_to_stop_but_not_one_of_its_own_time(tmp_path):
    project, wish = Project(tmp_path), Project(tmp_path).stop_file("train")
    wish.parent.mkdir(parents=True)
    wish.touch()
    StatusWriter(project, "train")
    assert wish.exists()
    os.utime(wish, (0, psutil.Process().create_time() - 1))
    StatusWriter(project, "train")
    assert not wish.exists()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_the_report_keeps_what_other_stages_wrote(tmp_path):
    project = Project(tmp_path)
    project.add_to_report("selection", {"chosen": 3})
    project.add_to_report("training", {"steps": 4})
    report = read_json(project.report)
    assert report["selection"] == {"chosen": 3} and report["training"] == {"steps": 4} and report["versions"]["torch"]


def test_the_pace_of_a_part_leaves_out_what_came_between_and_its_start_stays(tmp_path, monkeypatch):
    clock = iter([0.0, 0.0, 10.0, 11.0, 12.0, 50.0, 50.0, 52.0])
    monkeypatch.setattr("bat_ui.project.time.time", lambda: next(clock))
    writer = StatusWriter(Project(tmp_path), "train")  # two looks at the clock
    for step in (1, 2, 3):
        writer("Training", step, 10)
    writer("Drawing samples", 6, 6)  # at 50 s
    writer("Training", 3, 10)
    writer("Training", 5, 10)
    part = read_json(Project(tmp_path).status_file("train"))["parts"]["Training"]
    assert part == {"since": 10.0, "first": 1, "done": 5, "total": 10, "pace": 1.0}  # 4 steps in 1 + 1 + 2 s


def test_a_status_file_that_lost_its_content_is_a_failed_run_and_no_error(tmp_path):
    project = Project(tmp_path)
    project.status_file("train").parent.mkdir()
    project.status_file("train").write_text("")
    assert project.status("train")["state"] == "failed"


def test_memory_is_the_processs_own_and_grows_with_what_is_held():
    code = "from bat_ui.hardware import peak_memory as m; a = m()['ram']; x = b'1' * 2**27; print(m()['ram'] - a)"
    grown = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert 2**26 < grown < 2**28


def test_a_run_keeps_the_pictures_that_it_was_trained_on(tmp_path):
    project = Project(tmp_path)
    write_json(project.subject_marker, {})
    rows = [{"id": "a/1", "chosen": True}, {"id": "b", "chosen": False}, {"id": "gone", "chosen": True}]
    write_json(project.choice, {"candidates": rows})
    project.candidates.mkdir()
    for id in ("a/1", "b"):
        project.candidate_picture(id).write_text(id)
    run = Project(project.new_run().folder)
    assert [file.read_text() for file in run.candidates.iterdir()] == ["a/1"] and run.candidate_picture("a/1").is_file()


def test_the_run_that_was_deleted_last_can_be_brought_back_and_no_id_is_given_twice(tmp_path):
    project = Project(tmp_path)
    write_json(project.subject_marker, {})
    write_json(project.choice, {"candidates": []})
    first, second = project.new_run(), project.new_run()
    project.delete_run("002")
    assert [run.folder.name for run in project.runs] == ["001"] and project.deleted_run == "002"
    assert project.new_run().folder.name == "003"
    assert project.restore_run().folder == second.folder and second.choice.is_file() and project.deleted_run is None
    project.delete_run("003")
    project.delete_run("001")
    assert project.deleted_run == "001" and [run.folder.name for run in project.runs] == ["002"]
    assert project.new_run().folder.name == "004"
    assert project.restore_run().folder == first.folder
    with pytest.raises(UserError, match="no deleted run"):
        project.restore_run()
    with pytest.raises(UserError, match="no such run"):
        project.delete_run("../002")

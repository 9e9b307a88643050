"""A project's status files: readable at any moment, and honest about runs that died."""

import json
import os
import subprocess
import sys

import pytest

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


def test_a_new_run_takes_back_an_old_wish_to_stop(tmp_path):
    project = Project(tmp_path)
    project.stop_file("train").parent.mkdir(parents=True)
    project.stop_file("train").touch()
    StatusWriter(project, "train")
    assert not project.stop_file("train").exists()


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

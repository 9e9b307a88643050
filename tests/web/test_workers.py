"""Workers: started once, seen from outside, stopped when asked, and never left running in words when they are gone."""

import sys
import time

import pytest

from bat_ui.cli import build_parser
from bat_ui.errors import UserError
from bat_ui.files import read_json
from bat_ui.project import Project
from bat_ui.settings import GenerationSettings, SelectionSettings, TrainingSettings
from bat_ui.web import workers


def program(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def wait_for_end(project: Project, verb: str) -> dict:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        status = read_json(project.status_file(verb))
        if status["state"] != "running":
            return status
        time.sleep(0.02)
    raise AssertionError(f"{verb} still runs")


def test_a_started_worker_is_seen_at_once_and_a_second_one_is_refused(tmp_path):
    project = Project(tmp_path)
    workers.start(project, "train", [], program("import time; time.sleep(30)"))
    assert project.status("train")["state"] == "running" and workers.running_verb(project) == "train"
    with pytest.raises(UserError, match="training of this project is still running"):
        workers.start(project, "generate", [], program("pass"))
    workers.stop(project, "train")
    assert wait_for_end(project, "train")["state"] == "stopped"


def test_a_worker_that_ends_with_a_sentence_leaves_that_sentence(tmp_path):
    project = Project(tmp_path)
    workers.start(project, "select", [], program("import sys; print('error: No pictures.', file=sys.stderr); sys.exit(2)"))
    status = wait_for_end(project, "select")
    assert (status["state"], status["message"]) == ("failed", "No pictures.")


def test_a_worker_that_crashes_is_failed_and_says_where_to_look(tmp_path):
    project = Project(tmp_path)
    workers.start(project, "select", [], program("raise SystemExit(3)"))
    status = wait_for_end(project, "select")
    assert status["state"] == "failed" and "code 3" in status["message"] and "select.log" in status["message"]


def test_a_workers_own_last_word_stays(tmp_path):
    project = Project(tmp_path)
    code = (
        "import sys; sys.path.insert(0, '.'); from pathlib import Path; from bat_ui.project import Project, StatusWriter\n"
        "status = StatusWriter(Project(Path(sys.argv[2])), sys.argv[1]); status('Training', 4, 4); status.finish('done')"
    )
    workers.start(project, "train", [], program(code))
    assert wait_for_end(project, "train")["state"] == "done"
    assert project.status("train")["done"] == 4


def test_options_mean_the_same_settings_to_the_command_line():
    training = TrainingSettings(steps=5, strength=0.5, seed=3)
    selection = SelectionSettings(rule="nearest", num_backbone=4, seed=3)
    args = build_parser().parse_args(["select", "folder", *workers.options([training, selection])])
    assert (args.steps, args.strength, args.rule, args.num_backbone, args.seed) == (5, 0.5, "nearest", 4, 3)
    drawn = GenerationSettings(steps=6, guidance=2.5)
    args = build_parser().parse_args(["generate", "folder", *workers.options([drawn]), "--prompt=--host a cat"])
    assert (args.sampling_steps, args.guidance, args.prompts) == (6, 2.5, ["--host a cat"])


def test_a_number_left_to_the_curve_is_not_said():
    assert not any("num-backbone" in option for option in workers.options([SelectionSettings()]))

"""Shared parts of the page: errors in a sentence, time left from the pace, addresses that only name project files."""

import gradio as gr
import pytest

from bat_ui import registry
from bat_ui.errors import UserError
from bat_ui.project import new_project
from bat_ui.web.parts import UNEXPECTED, address, alert, answering, once_a_second, opened, required, time_left


@pytest.fixture()
def box():
    with gr.Blocks():
        return gr.HTML()


def test_a_project_that_was_deleted_elsewhere_is_said_to_be():
    project = registry.make()
    assert required(project.folder.name).folder == project.folder
    registry.delete(project.folder.name)
    with pytest.raises(UserError, match="deleted"):
        required(project.folder.name)
    with pytest.raises(UserError, match="in step 1 first"):
        required("")


def test_a_problem_of_the_user_is_said_and_nothing_else_changes(box):
    def refuse():
        raise UserError("Choose <fewer> pictures.")

    first, second = (answering(box, refuse)()[box] for _ in range(2))
    assert first.startswith(alert("Choose <fewer> pictures.")) and first != second, "what is said twice is shown twice"
    assert "&lt;fewer&gt;" in alert("Choose <fewer> pictures.") and 'role="alert"' in alert("x")


def test_an_unexpected_error_tells_no_details(box):
    assert answering(box, lambda: 1 / 0)()[box].startswith(alert(UNEXPECTED))


def test_success_clears_the_message(box):
    assert answering(box, dict)() == {box: ""}


@pytest.mark.parametrize(
    "done, seconds, words", [(100, 10, "about 30 s"), (10, 40, "about 26 min"), (0, 10, ""), (5, 1, "")]
)
def test_the_time_left_goes_on_at_the_pace_so_far(done, seconds, words):
    assert time_left({"done": done, "total": 400, "first": 0, "since": 50.0, "updated": 50.0 + seconds}) == words


def test_a_resumed_run_counts_only_the_steps_since(box):
    status = {"done": 300, "total": 400, "first": 200, "since": 0.0, "updated": 50.0}
    assert time_left(status) == "about 50 s"


@pytest.mark.parametrize("id", ["", "..", "../..", "/etc", "0" * 15, "0" * 16 + "\n", "ABCDEF0123456789", None])
def test_an_id_that_names_no_project_opens_nothing(id):
    assert opened(id) is None


def test_a_new_project_is_found_again_and_its_files_have_an_address():
    project = new_project()
    assert opened(project.folder.name) == project
    (project.folder / "a b.png").write_bytes(b"")
    assert "/a%20b.png?v=" in address(project.folder / "a b.png")


def test_many_who_ask_in_one_second_share_one_look(monkeypatch):
    now, looks = [100.2], []
    monkeypatch.setattr("bat_ui.web.parts.time.monotonic", lambda: now[0])
    look = once_a_second(lambda what: looks.append(what) or len(looks))
    assert [look("a"), look("a"), look("b"), look("a")] == [1, 1, 2, 1]
    now[0] = 101.0
    assert look("a") == 3 and looks == ["a", "b", "a"]

"""The page as a whole: it builds, tells nobody, and opens a project where its work stands."""

import json
import os
import re
import socket
import subprocess
import sys
import threading

import pytest

import app
from bat_ui import queue, registry
from bat_ui.files import write_json
from bat_ui.options import build_parser
from bat_ui.project import Project
from bat_ui.web import backbone, training
from bat_ui.web.page import _furthest, build_page
from bat_ui.web.step import Model
from bat_ui.web.stores import _stores
from bat_ui.web.theme import make_theme
from tests.page_server import Server


@pytest.fixture(scope="module")
def page():
    return build_page(Model())[0]


def test_analytics_are_off_and_old_uploads_are_deleted(page):
    assert page.analytics_enabled is False and page.delete_cache is not None


def test_the_theme_asks_for_no_font_from_anywhere():
    theme = make_theme()
    assert not theme._stylesheets and not re.search(r"(url\(|import)\s*[\"']?https?:", theme._get_theme_css())


def test_the_command_line_says_its_options_and_listens_to_this_machine_only():
    said = subprocess.run([sys.executable, "app.py", "--help"], capture_output=True, text=True, check=True).stdout
    assert all(option in said for option in ("--port", "--host", "--data", "--backbone")) and "this machine only" in said


def test_a_backbone_that_cannot_be_had_is_told_before_the_page_is_served():
    asked = [sys.executable, "app.py", "--backbone", "no such model"]
    said = subprocess.run(asked, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert said.returncode == 2 and 'There is no backbone called "no such model"' in said.stderr


def test_workers_are_told_all_that_the_page_was_told_of_the_model():
    model = Model("/models/own", clip="/models/clip", prediction="v_prediction", memory="12")
    args = build_parser().parse_args(["select", "pictures", *model.options])
    assert Model(args.backbone, args.clip, args.prediction, args.memory) == model
    assert Model().options == ["--backbone=sticker"]


def test_a_page_for_photos_has_their_dials_and_lists_no_stickers():
    page = build_page(Model("sd15", memory="12"))[0]
    shown = {block.elem_id: block for block in page.blocks.values() if getattr(block, "elem_id", None)}
    assert (shown["steps-dial"].value, shown["rank"].value, shown["guidance"].value) == (800, 8, 7.0)
    assert shown["memory"].visible and shown["memory"].value == "12"
    assert not any(row["name"] == "" for row in _stores(photos=True))


@pytest.mark.parametrize(
    "files, step",
    [
        ((), 1),
        (("subject/subject.json",), 2),
        (("subject/subject.json", "runs/001/status/train.json"), 3),
        (("subject/subject.json", "runs/001/lora/weights.safetensors"), 4),
    ],
)
def test_a_project_opens_at_the_last_step_with_something_to_look_at(files, step):
    project = registry.make()
    for name in files:
        (project.folder / name).parent.mkdir(exist_ok=True, parents=True)
        (project.folder / name).write_text(json.dumps({"state": "stopped"}))
    assert _furthest(project) == step and _furthest(None) == 1


def test_a_project_opens_at_the_step_whose_job_waits():
    project = registry.make()
    write_json(project.subject_marker, {})
    job = queue.add(project, "select")
    assert _furthest(project) == 2
    queue.stop(job)


@pytest.mark.parametrize("port", ["taken", "70000"])
def test_a_port_that_cannot_be_had_is_told_in_a_sentence_and_nothing_is_touched(port, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as there:
        asked = str(there.getsockname()[1]) if port == "taken" else port
        command = [sys.executable, "app.py", "--port", asked, "--data", str(tmp_path / "data")]
        said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 2 and "choose another --port" in said.stderr and "Traceback" not in said.stderr
    assert not (tmp_path / "data").exists()


def test_a_machine_too_busy_for_a_first_page_in_seconds_serves_it_later(tmp_path, tiny_backbone_folder):
    late = "from gradio import networking; networking.url_ok = lambda url: False; import app; app.main()"
    server = Server(tmp_path, tiny_backbone_folder, program=("-c", late))
    try:
        server.start()
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(5)
    finally:
        server.end()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priority of their own")
def test_only_the_threads_that_serve_the_page_wait_for_a_training():
    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before, seen = priority(), []

    def serve() -> None:
        app._yield_to_training()
        seen.append(priority())
        answering = threading.Thread(target=lambda: seen.append(priority()))
        answering.start()
        answering.join()

    serving = threading.Thread(target=serve)
    serving.start()
    serving.join()
    assert seen == [max(10, before)] * 2 and priority() == before


def test_what_a_choice_draws_and_what_is_drawn_anew_by_itself_are_answered_in_order(page):
    events, beside = page.fns.values(), 0
    for follower in (event for event in events if "heartbeat" in changed(page, event)):
        drawn = {part._id for part in follower.outputs}
        for event in events:
            if any(trigger == "input" for _, trigger in event.targets) and drawn <= {part._id for part in event.outputs}:
                assert event.concurrency_id == follower.concurrency_id, event.fn
                beside += 1
    assert beside >= 3  # in steps 2, 4 and 5


def changed(page, event) -> set:
    """The labels of the parts whose change sets an event off."""
    return {getattr(page.blocks[id], "label", None) for id, trigger in event.targets if trigger == "change"}


def test_pictures_that_were_found_for_an_earlier_subject_are_said_to_be_where_they_are_used(tmp_path):
    project = Project(tmp_path)
    write_json(project.subject_marker, {})
    write_json(project.choice, {})
    made = project.subject_marker.stat().st_mtime_ns
    write_json(project.report, {"selection": {"subject_made": made}})

    def notes() -> list[str]:
        return [backbone._panel(project, queue.status(project, "select")), training._expected(project, {}, False)]

    assert not any("You changed your pictures" in said for said in notes())
    os.utime(project.subject_marker, ns=(made + 1, made + 1))
    assert all("You changed your pictures" in said for said in notes())

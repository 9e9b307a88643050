"""The whole job by named endpoints alone, as a program would do it, with a server that is killed in the middle."""

import json
import time
from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from bat_ui.files import read_json
from tests.page_server import client_of

PATIENCE = 600  # seconds: workers import their libraries and build a store first, perhaps on a busy machine
QUICK = {"shortlist": 24, "surrogate_steps": 2, "draws": 2, "sketch_size": 64, "num_backbone": 5}


def wait(client: Client, endpoint: str, key: str, wanted: tuple[str, ...], *arguments) -> dict:
    deadline = time.monotonic() + PATIENCE
    while True:
        found = client.predict(*arguments, api_name=endpoint)
        if found[key] in wanted:
            return found
        assert found[key] in ("waiting", "running") and time.monotonic() < deadline, found
        time.sleep(0.3)


def test_a_program_can_do_the_whole_job_and_a_killed_server_loses_nothing(running_server, faces):
    server = running_server
    client = client_of(server.address)
    project = client.predict("My face", api_name="/make_project")
    client.predict(project, [handle_file(str(face)) for face in faces], "face", "sks", api_name="/add_pictures")
    assert client.predict(project, "face", api_name="/use_pictures") == project
    client.predict(project, **QUICK, api_name="/find_pictures")
    assert wait(client, "/project_status", "search", ("done",), project)["name"] == "My face"
    picture = read_json(server.data / "projects" / project / "selection.json")["candidates"][0]
    after = client.predict(project, picture["id"], api_name="/toggle_picture")
    assert (picture["id"] in after) != picture["chosen"]
    assert (picture["id"] in client.predict(project, api_name="/undo_picture")) == picture["chosen"]
    assert len(client.predict(project, "nearest", api_name="/use_rule")) != 3
    assert len(client.predict(project, 3, api_name="/choose_number")) == 3

    client.predict(project, steps=2000, rank=2, checkpoint_every=5, validation_steps=1, api_name="/train")
    client.predict(project, steps=6, rank=2, checkpoint_every=3, validation_steps=1, api_name="/train")
    wait(client, "/run_status", "state", ("running",), project, "001")
    [running, waiting] = client.predict(api_name="/list_jobs")
    assert (running["run"], waiting["run"], waiting["place"]) == ("001", "002", 1)
    status = Path(server.data / "projects" / project / "runs" / "001" / "status" / "train.json")
    wait_for_step(status, 6)
    server.kill()
    pid = json.loads(status.read_text())["pid"]
    wait_for_step(status, json.loads(status.read_text())["parts"]["Training"]["done"] + 2)  # nobody looks, it goes on
    server.start()
    client = client_of(server.address)
    assert json.loads(status.read_text())["pid"] == pid
    assert client.predict(project, "001", api_name="/run_status")["state"] == "running"
    client.predict(project, "001", api_name="/stop_training")
    stopped = wait(client, "/run_status", "state", ("stopped",), project, "001")
    assert stopped["checkpoints"][-1] == f"step-{stopped['step']:06d}" and stopped["adapter"]
    done = wait(client, "/run_status", "state", ("done",), project, "002")
    assert done["step"] == 6 and [row["step"] for row in done["metrics"]] == [0, 3, 6]
    assert done["peak_memory"]["ram"] > 1e8 and done["steps_per_second"] > 0
    assert [run["state"] for run in client.predict(project, api_name="/list_runs")] == ["stopped", "done"]

    client.predict(project, "001", api_name="/resume_training")
    wait(client, "/run_status", "state", ("running",), project, "001")
    client.predict(project, "001", api_name="/stop_training_now")
    assert wait(client, "/run_status", "state", ("stopped",), project, "001")["step"] >= stopped["step"]

    client.predict(project, "a sticker of sks face", "002", num_images=2, steps=2, api_name="/generate")
    deadline = time.monotonic() + PATIENCE
    while not (samples := client.predict(project, api_name="/list_samples")):
        assert time.monotonic() < deadline
        time.sleep(0.3)
    assert len(samples) == 2 and all(Path(row["file"]).is_file() and Path(row["without"]).is_file() for row in samples)

    found = client.predict(project, "002", api_name="/compare_checkpoints")
    assert [row["step"] for row in found["checkpoints"]] == [0, 3, 6] and found["used"] == 6 and found["why"]
    assert client.predict(project, "002", 3, api_name="/use_checkpoint") == 3
    assert client.predict(project, "002", api_name="/compare_checkpoints")["used"] == 3
    client.predict(project, "002", "imagefolder", api_name="/prepare_download")
    ready = wait(client, "/download_status", "state", ("done",), project, "002", "imagefolder")
    assert Path(ready["file"]).suffix == ".zip" and all(check["ok"] for check in ready["checks"])

    copy = client.predict(project, api_name="/duplicate_project")
    client.predict(project, api_name="/delete_project")
    ids = [row["id"] for row in client.predict(api_name="/list_projects")]
    assert ids[0] == copy and project not in ids
    with pytest.raises(AppError, match="This project was deleted"):
        client.predict(project, "001", api_name="/run_status")
    client.predict(project, api_name="/restore_project")
    assert client.predict(project, "A face", api_name="/rename_project") == "A face"
    listed = client.predict(api_name="/list_projects")
    assert [(row["name"], row["state"]) for row in listed[:2]] == [
        ("My face (copy)", "pictures chosen"),
        ("A face", "trained"),
    ]


def wait_for_step(status: Path, step: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while ((read_json(status) or {}).get("parts") or {}).get("Training", {}).get("done", 0) < step:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_wish_that_cannot_be_met_is_answered_in_a_sentence(server):
    client = client_of(server)
    for endpoint, arguments in (("/rename_project", ("0" * 16, "x")), ("/run_status", ("..", "001")), ("/stop_job", (999,))):
        with pytest.raises(AppError, match="There is no such"):
            client.predict(*arguments, api_name=endpoint)

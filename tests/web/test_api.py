"""The page's endpoints: what a person can do a program can, by names that say it; and with --mcp an assistant."""

import subprocess
import sys
from dataclasses import fields
from importlib.util import find_spec

import pytest

from bat_ui.settings import GenerationSettings, SelectionSettings, TrainingSettings, ValidationSettings
from bat_ui.web.page import build_page
from bat_ui.web.step import Model

# All that is public, by step of the page.  What is missing here was made public by accident, or belongs into this list.
PUBLIC = {
    "list_projects", "project_status", "make_project", "rename_project", "move_project_up", "duplicate_project",
    "delete_project", "restore_project", "list_jobs", "stop_job",
    "add_pictures", "remove_picture", "crop_picture", "cut_out_picture", "use_example", "cut_out", "use_pictures",
    "find_pictures", "stop_finding", "toggle_picture", "toggle_group", "choose_number", "undo_picture", "compare_rules",
    "use_rule",
    "search_pictures", "add_picture", "add_own_pictures",
    "list_stores", "ingest_zip", "ingest_server_folder", "ingest_status",
    "train", "stop_training", "stop_training_now", "resume_training", "delete_run", "restore_run",
    "list_runs", "run_status",
    "generate", "stop_generating", "list_samples",
    "compare_checkpoints", "use_checkpoint", "compare_pictures", "toggle_favourite", "list_favourites",
    "prepare_download", "download_status",
}  # fmt: skip


@pytest.fixture(scope="module")
def page():
    return build_page(Model())[0]


@pytest.fixture(scope="module")
def endpoints(page) -> dict:
    return page.get_api_info()["named_endpoints"]


def test_each_public_event_is_a_named_endpoint_and_no_other_is(page, endpoints):
    assert set(endpoints) == {f"/{name}" for name in PUBLIC}
    assert page.get_api_info()["unnamed_endpoints"] == {}


def test_settings_are_parameters_by_their_own_names(endpoints):
    for name, kinds in {
        "find_pictures": [SelectionSettings],
        "train": [TrainingSettings, ValidationSettings],
        "generate": [GenerationSettings],
    }.items():
        wanted = {field.name for kind in kinds for field in fields(kind)}
        assert wanted <= {parameter["parameter_name"] for parameter in endpoints[f"/{name}"]["parameters"]}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_an_endpoint_and_its_parameters_say_what_they_are(page, endpoints, name):
    [event] = [event for event in page.fns.values() if event.api_name == name]
    assert event.fn.__doc__ and event.fn.__name__ == name
    for parameter in endpoints[f"/{name}"]["parameters"]:
        assert parameter["parameter_name"].isidentifier() and not parameter["parameter_name"].startswith(("param_", "_"))


def test_with_mcp_each_endpoint_is_a_tool_of_the_same_name(page):
    pytest.importorskip("mcp", reason="needs gradio[mcp]")
    from gradio.mcp import GradioMCPServer

    tools = GradioMCPServer(page).tool_to_endpoint
    assert tools == {name: f"/{name}" for name in PUBLIC}


def refused(*options: str) -> str:
    done = subprocess.run([sys.executable, "app.py", "--port", "0", *options], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stdout + done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "options, said",
    [
        (("--host", "0.0.0.0"), "give --auth USER:PASSWORD, too"),
        (("--host", "0.0.0.0", "--auth", "ann"), "give USER:PASSWORD"),
        (("--auth", ":secret"), "give USER:PASSWORD"),
        (("--mcp", "--auth", "ann:secret"), "--mcp asks nobody for a password"),
    ],
)
def test_what_would_not_be_safe_does_not_start(options, said):
    assert said in refused(*options)


@pytest.mark.skipif(find_spec("mcp") is not None, reason="the package is here")
def test_without_its_package_mcp_says_what_to_install():
    assert "pip install 'gradio[mcp]'" in refused("--mcp")

"""Traversal, foreign addresses, other sites and uploads, after Gradio's own list of what once went wrong, on our server."""

import http.client
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import gradio as gr
import httpx
import pytest
from fastapi.testclient import TestClient
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image

from bat_ui.web.guard import MAX_FILES, MAX_REQUEST, MAX_UPLOAD, Guard, is_loopback, password_check
from tests.page_server import client_of

PROJECT = "5ec0" * 4
SECRET = "only for the one at this machine"
META = {"_type": "gradio.FileData"}
HIDDEN = [  # of a project: what a browser must never get
    "settings.json", "draft.json", "selection.json", "subject/subject.json", "sketches.safetensors", "losses.jsonl",
    "status/train.json", "status/train.log", "checkpoints/step-000001/state.safetensors", "lora/notes.txt",
    "samples/.draft/000.png", "samples/linked.png", "picture.png",
]  # fmt: skip
SHOWN = ["subject/a.png", "candidates/b.png", "runs/001/samples/step-000001/c.png", "exports/samples.zip",
         "runs/001/lora/adapter.safetensors"]  # fmt: skip
ADDRESSES = [
    "http://127.0.0.1:22/", "http://localhost/", "http://[::1]/", "http://0.0.0.0/", "http://2130706433/",
    "http://169.254.169.254/latest/meta-data/", "http://metadata.google.internal/", "http://192.168.0.1/",
    "https://example.com/a.png", "HTTP://example.com/a.png", "ftp://example.com/a.png", "file:///etc/passwd",
    "gopher://127.0.0.1/", "http://127.0.0.1.nip.io/", "http://user@127.0.0.1/",
]  # fmt: skip
PATHS = [
    "/etc/passwd", "//etc/passwd", "/../../etc/passwd", "../../../../../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/etc/passwd", "%252e%252e%252fetc%252fpasswd", "..\\..\\etc\\passwd", "/proc/self/environ",
    "/dev/zero", "app.py", "./app.py", ".git/config", "%00/etc/passwd", "/etc/passwd%00.png", "~/.ssh/id_rsa",
    "C:\\Windows\\win.ini", "\\\\host\\share\\a.png", "/", "", "." * 5000,
]  # fmt: skip


@pytest.fixture(scope="module")
def project(running_server) -> Iterator[Path]:
    """A project with a file of each kind, and secrets beside it."""
    folder = running_server.data / "projects" / PROJECT
    for name in HIDDEN + SHOWN:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name != "samples/linked.png":
            (folder / name).write_text(
                json.dumps({"candidates": [], "secret": SECRET}) if name.endswith(".json") else SECRET
            )
    (running_server.data / "stores").mkdir(exist_ok=True)
    (running_server.data / "stores" / "secret.png").write_text(SECRET)
    (folder / "samples" / "linked.png").symlink_to(running_server.data / "stores" / "secret.png")
    yield folder
    shutil.rmtree(folder)


HTTP = httpx.Client(timeout=60)  # one for all requests: making one takes longer than a request


@pytest.fixture(scope="module")
def client(server) -> Client:
    return client_of(server)


def ask(server: str, path: str, method: str = "GET", body: bytes | None = None, **headers) -> tuple[int, bytes, dict]:
    """What the server answers to just these bytes; libraries would tidy up a path before they send it."""
    connection = http.client.HTTPConnection(urlsplit(server).netloc, timeout=60)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in {**headers, **({"Content-Length": str(len(body))} if body is not None else {})}.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders(body)
    answer = connection.getresponse()
    return answer.status, answer.read(), dict(answer.getheaders())


def call(server: str, endpoint: str, data: list) -> str:
    """The last word of an endpoint that is called with this JSON, as the raw event."""
    asked = HTTP.post(f"{server}/gradio_api/call/{endpoint}", json={"data": data})
    if asked.status_code != 200:
        return f"event: refused {asked.status_code} {asked.text}"
    return HTTP.get(f"{server}/gradio_api/call/{endpoint}/{asked.json()['event_id']}").text


@pytest.mark.parametrize("name", SHOWN)
def test_pictures_and_results_of_a_project_are_served(server, project, name):
    assert ask(server, f"/gradio_api/file={quote(str(project / name))}")[:2] == (200, SECRET.encode())


@pytest.mark.parametrize("name", HIDDEN)
def test_what_else_a_project_holds_is_not_served(server, project, name):
    assert SECRET in (project / name).read_text()
    status, said, _ = ask(server, f"/gradio_api/file={quote(str(project / name))}")
    assert status == 403 and SECRET.encode() not in said


@pytest.mark.parametrize(
    "way",
    [
        "{data}/registry.sqlite", "{data}/stores/secret.png", "{data}/server.log", "{data}/projects/../registry.sqlite",
        "{project}/samples/../settings.json", "{project}/subject/..%2fsettings.json", "{project}/SETTINGS.json",
        "{project}/exports/../../../registry.sqlite", "{project}/samples/../../../stores/secret.png", "{project}",
        "{project}/samples", "{project}/exports/samples.zip/../../settings.json", "{data}/uploads/../registry.sqlite",
    ],
)  # fmt: skip
def test_no_detour_leads_to_a_file_that_is_not_shown(server, running_server, project, way):
    status, said, _ = ask(server, "/gradio_api/file=" + way.format(data=running_server.data, project=project))
    assert status in (403, 404) and SECRET.encode() not in said and b"SQLite" not in said


@pytest.mark.parametrize("route", ["/gradio_api/file=", "/static/"])
@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_out_of_the_projects(server, route, path):
    wire = path.replace("\\", "%5c")
    status, said, _ = ask(server, route + wire)
    assert status >= 400 or not path.strip("/")
    assert b"root:" not in said and b"def main" not in said


@pytest.mark.parametrize("route", ["/gradio_api/file=", "/gradio_api/proxy="])
@pytest.mark.parametrize("address", ADDRESSES)
def test_no_address_is_fetched_for_a_browser(server, route, address):
    status, _, headers = ask(server, route + address)
    assert status == 403 and "location" not in headers


@pytest.mark.parametrize("address", ADDRESSES)
def test_no_address_is_fetched_for_a_program(server, address):
    for data in ([{"path": address, "meta": META}], {"path": address}):
        assert call(server, "add_pictures", ["", data, "face", "sks"]).startswith("event: refused 400")
    hidden = json.dumps({"data": ["", [{"path": address, "meta": META}], "face", "sks"]}).replace('"path"', '"p\\u0061th"')
    headers = {"Content-Type": "application/json"}
    assert ask(server, "/gradio_api/call/add_pictures", "POST", hidden.encode(), **headers)[0] == 400


@pytest.mark.parametrize("kind", ["listed", "alone", "bare", "word", "in the text", "with a url"])
@pytest.mark.parametrize("path", ["/etc/passwd", "../../etc/passwd", "{data}/registry.sqlite", "{project}/subject/a.png"])
def test_a_program_cannot_pass_a_file_that_it_did_not_upload(server, running_server, project, kind, path):
    path = path.format(data=running_server.data, project=project)
    file = {"path": path, "meta": META}
    data = {
        "listed": ["", [file], "face", "sks"],
        "alone": ["", file, "face", "sks"],
        "bare": ["", [{"path": path}], "face", "sks"],
        "word": ["", [path], "face", "sks"],
        "in the text": [file, None, "face", "sks"],
        "with a url": ["", [file | {"url": "https://example.com/a.png"}], "face", "sks"],
    }[kind]
    said = call(server, "add_pictures", data)
    assert said.startswith("event: error") and "root:" not in said and SECRET not in said


@pytest.mark.parametrize("id", ["../..", "0" * 16, PROJECT + "/.."])
@pytest.mark.parametrize("endpoint, more", [
    ("project_status", ()), ("list_runs", ()), ("run_status", ("001",)), ("list_samples", ("001",)),
    ("rename_project", ("x",)), ("duplicate_project", ()), ("delete_project", ()), ("restore_project", ()),
    ("use_pictures", ("face",)), ("toggle_picture", ("x",)), ("undo_picture", ()), ("find_pictures", ()),
    ("crop_picture", ("a", "start")), ("toggle_group", ("0", True)), ("choose_number", (3,)), ("add_picture", ("x",)),
    ("compare_rules", ()),
    ("list_favourites", ()), ("compare_checkpoints", ("001",)), ("use_checkpoint", ("001", 1)), ("ingest_status", ()),
    ("prepare_download", ("001", "kohya")), ("download_status", ("001", "kohya")),
    ("train", ()), ("stop_training", ("001",)), ("resume_training", ("001",)), ("generate", ("a face", "001")),
])  # fmt: skip
def test_an_id_is_never_taken_for_a_path(client, running_server, endpoint, more, id):
    before = sorted(running_server.data.glob("*"))
    try:
        said = client.predict(id, *more, api_name=f"/{endpoint}")
    except AppError as problem:
        said = str(problem)
        assert "There is no such project" in said or "step 1" in said or "picture" in said, said
    else:
        assert 'role="alert"' in str(said), said
    assert sorted(running_server.data.glob("*")) == before


@pytest.mark.parametrize("run", ["..", "../001", "/etc", "001/../..", "1", "999", "０01"])
@pytest.mark.parametrize("endpoint", ["run_status", "list_samples"])
def test_a_runs_id_is_never_taken_for_a_path(client, project, endpoint, run):
    with pytest.raises(AppError, match="There is no such run"):
        client.predict(PROJECT, run, api_name=f"/{endpoint}")


@pytest.mark.parametrize("path", ["/etc", "..", "", "/", "{data}", "projects"])
def test_no_folder_of_the_server_is_read_unless_it_was_allowed_at_the_start(client, running_server, project, path):
    path = path.format(data=running_server.data)
    with pytest.raises(AppError, match="--ingest-root"):
        client.predict(PROJECT, path, "mine", "", False, api_name="/ingest_server_folder")


@pytest.mark.parametrize("format", ["../../lora", "/etc", "..", "samples"])
def test_the_format_of_a_download_is_never_taken_for_a_path(client, project, format):
    with pytest.raises(AppError):
        client.predict(PROJECT, "001", format, api_name="/prepare_download")


@pytest.mark.parametrize("picture", ["../../settings.json", "/etc/passwd", ".."])
def test_a_favourites_name_is_never_taken_for_a_path(client, project, picture):
    with pytest.raises(AppError, match="no such picture"):
        client.predict(PROJECT, "001", 1, picture, api_name="/toggle_favourite")


OTHERS = {
    "another site": {"Origin": "https://evil.example", "Sec_Fetch_Site": "cross-site"},
    "an old browser": {"Origin": "https://evil.example"},
    "a file on disk": {"Origin": "null"},
    "another port": {"Origin": "http://localhost:3000", "Sec_Fetch_Site": "same-site"},
    "a name that points here": {"Host": "evil.example", "Origin": "http://evil.example", "Sec_Fetch_Site": "same-origin"},
    "a name that begins alike": {"Host": "localhost.evil.example"},
    "a number that begins alike": {"Host": "127.0.0.1.nip.io:7860"},
    "no name": {"Host": ""},
}


@pytest.mark.parametrize("headers", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("route", ["upload", "call/delete_project", "queue/join", "run/list_projects", "component_server"])
def test_other_sites_can_do_nothing(server, route, headers):
    kind = "multipart/form-data; boundary=x" if route == "upload" else "text/plain"  # what needs no leave of a browser
    status, said, _ = ask(server, f"/gradio_api/{route}", "POST", b"{}", Content_Type=kind, **headers)
    assert status == 403 and b"page" in said


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.example"])
def test_other_sites_get_no_leave_to_read(server, origin):
    asked = {"Origin": origin, "Access_Control_Request_Method": "POST"}
    _, _, answered = ask(server, "/gradio_api/queue/join", "OPTIONS", **asked)
    assert "access-control-allow-origin" not in answered
    status, _, answered = ask(server, "/config", Origin=origin)
    assert status == 403 and "access-control-allow-origin" not in answered


def test_another_site_may_link_to_the_page_but_not_read_it(server):
    foreign = {"Sec_Fetch_Site": "cross-site"}
    assert ask(server, "/", Sec_Fetch_Mode="navigate", **foreign)[0] == 200
    assert ask(server, "/config", Sec_Fetch_Mode="cors", **foreign)[0] == 403
    assert ask(server, "/logout", Sec_Fetch_Mode="navigate", **foreign)[0] == 403
    assert ask(server, "/gradio_api/queue/join", "POST", b"{}", Sec_Fetch_Mode="navigate", **foreign)[0] == 403


def test_no_other_host_is_named_in_what_the_page_may_load(server):
    _, _, headers = ask(server, "/")
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy and "frame-ancestors 'self'" in policy
    assert "http" not in policy and "*" not in policy and headers["x-content-type-options"] == "nosniff"


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "name", ["../../evil.png", "/etc/evil.png", "..\\..\\evil.png", "a/../../evil.png", "..", "!!!", "x" * 300]
)
def test_an_upload_lands_in_its_own_folder_whatever_it_is_called(server, running_server, name):
    answer = HTTP.post(f"{server}/gradio_api/upload", files={"files": (name, picture())})
    if name == "..":
        assert answer.status_code == 400
        return
    [path] = answer.json()
    assert Path(path).resolve().is_relative_to(running_server.data / "uploads") and Path(path).is_file()
    assert len(Path(path).relative_to(running_server.data / "uploads").parts) == 2


def test_a_page_that_was_uploaded_is_not_shown_but_saved(server):
    for name in ("evil.html", "evil.svg"):
        [path] = HTTP.post(f"{server}/gradio_api/upload", files={"files": (name, b"<script>alert(1)</script>")}).json()
        _, _, headers = ask(server, f"/gradio_api/file={path}")
        assert headers["content-disposition"].startswith("attachment")
        assert headers["content-type"] == "application/octet-stream"


def test_too_many_files_are_refused_and_none_is_kept(server, running_server):
    before = sorted((running_server.data / "uploads").rglob("*"))
    files = [("files", (f"{i}.png", b"%d" % i)) for i in range(MAX_FILES + 1)]
    refused = HTTP.post(f"{server}/gradio_api/upload", files=files)
    assert refused.status_code == 400 and "Too many files" in refused.text
    assert sorted((running_server.data / "uploads").rglob("*")) == before
    assert HTTP.post(f"{server}/gradio_api/upload", files=files[:MAX_FILES]).status_code == 200


def test_a_file_that_is_too_large_is_refused_and_not_kept(server, running_server):
    before = sorted((running_server.data / "uploads").rglob("*"))
    refused = HTTP.post(f"{server}/gradio_api/upload", files={"files": ("a.png", b"0" * (50 * 2**20 + 1))})
    assert refused.status_code == 413
    assert sorted((running_server.data / "uploads").rglob("*")) == before


@pytest.mark.parametrize("route, most, kind", [
    ("upload", MAX_UPLOAD, "multipart/form-data; boundary=x"),
    ("component_server", MAX_UPLOAD, "multipart/form-data; boundary=x"),
    ("queue/join", MAX_REQUEST, "application/json"), ("call/make_project", MAX_REQUEST, "application/json"),
])  # fmt: skip
def test_what_is_announced_as_too_large_is_refused_before_it_is_read(server, route, most, kind):
    status, said, _ = ask(server, f"/gradio_api/{route}", "POST", Content_Type=kind, Content_Length=str(most + 1))
    assert status == 413 and b"MB" in said


def test_what_grows_too_large_unannounced_is_refused(server):
    parts = (b" " * 2**16 for _ in range(MAX_REQUEST // 2**16 + 2))
    try:
        status = HTTP.post(f"{server}/gradio_api/queue/join", content=parts).status_code
    except httpx.WriteError:  # the server hung up on the rest
        status = 413
    assert status == 413


def test_a_head_that_is_too_large_is_refused(server):
    assert HTTP.post(f"{server}/gradio_api/upload", files={"files": ("5" * 9000, b"x")}).status_code in (400, 413)


def test_a_picture_bomb_is_refused_before_it_is_decoded(server, client, tmp_path):
    from gradio_client import handle_file

    Image.new("1", (30_000, 30_000)).save(tmp_path / "bomb.png")
    said = client.predict("", [handle_file(str(tmp_path / "bomb.png"))], "face", "sks", api_name="/add_pictures")
    assert "bomb.png has more than 50 million pixels" in str(said)


@pytest.mark.parametrize("host, local", [
    ("127.0.0.1", True), ("127.0.0.2", True), ("::1", True), ("localhost", True),
    ("0.0.0.0", False), ("::", False), ("192.168.0.2", False), ("example.com", False), ("localhost.example.com", False),
    ("", False),
])  # fmt: skip
def test_what_counts_as_this_machine(host, local):
    assert is_loopback(host) == local


@pytest.fixture(scope="module")
def locked():
    """Gradio with our guard and our password check, in this process."""
    from starlette.middleware import Middleware

    with gr.Blocks() as blocks:
        gr.api(lambda: "inside", api_name="look")
    app, _, _ = blocks.launch(
        prevent_thread_lock=True,
        quiet=True,
        auth=password_check("ann", "öffne dich"),
        app_kwargs={"middleware": [Middleware(Guard, local=False)]},
    )
    yield app
    blocks.close()


def test_with_a_password_nothing_is_told_before_it_is_given(locked):
    stranger = TestClient(locked)
    for route in (
        "config",
        "gradio_api/info",
        "gradio_api/file=app.py",
        "gradio_api/queue/status",
        "gradio_api/openapi.json",
    ):
        assert stranger.get(f"/{route}").status_code in (401, 403)
    for route in ("upload", "queue/join", "call/look", "run/look", "component_server"):
        assert stranger.post(f"/gradio_api/{route}", json={"data": [], "session_hash": "x"}).status_code in (401, 403)
    for name, word in (("ann", "wrong"), ("bob", "öffne dich"), ("", ""), ("ann", "")):
        assert stranger.post("/login", data={"username": name, "password": word}).status_code in (400, 422)
    assert stranger.post("/login", data={"username": "ann", "password": "öffne dich"}).status_code == 200
    assert stranger.get("/config").status_code == 200


def test_passwords_are_tried_one_after_the_other():
    import asyncio
    import time

    async def five_tries() -> list[bool]:
        check = password_check("ann", "secret")
        return await asyncio.gather(*(check("ann", word) for word in ("a", "b", "secret", "c")))

    began = time.monotonic()
    assert asyncio.run(five_tries()) == [False, False, True, False]
    assert time.monotonic() - began > 1.9  # of four half seconds: timers may go off a moment early

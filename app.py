"""Start the page: `python app.py`, then open http://127.0.0.1:7860.  `python app.py --help` lists the options."""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from bat_ui.errors import UserError
from bat_ui.options import add_backbone

if TYPE_CHECKING:
    from bat_ui.web.step import Model

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported: nothing is told to anybody
DAY = 24 * 3600
SESSIONS = 200  # pages whose state is kept, nearly a megabyte each; Gradio keeps it for pages that were closed, too


def main() -> None:
    """Parse the options, build the page and serve it until the process is ended."""
    parser = argparse.ArgumentParser(description="Personalize an image model from a few pictures, in the browser.")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument(
        "--auth",
        metavar="USER:PASSWORD",
        default=os.environ.pop("BAT_UI_AUTH", None),
        help="ask for these; the variable BAT_UI_AUTH says the same and, unlike an option, is seen by nobody else",
    )
    parser.add_argument("--mcp", action="store_true", help="let AI assistants on this machine use the page's endpoints, too")
    parser.add_argument("--data", type=Path, help="folder for projects and stores (default: the user's data folder)")
    parser.add_argument(
        "--ingest-root", type=Path, help="folder below which people may make stores of the server's pictures"
    )
    add_backbone(parser)
    args = parser.parse_args()
    if problem := _unsafe(args.host, args.auth, args.mcp) or _taken(args.host, args.port):
        parser.error(problem)
    if args.data:
        os.environ["BAT_UI_DATA"] = str(args.data.resolve())  # for this process and its workers
    if args.ingest_root:
        os.environ["BAT_UI_INGEST_ROOT"] = str(args.ingest_root.resolve())
    try:
        model = _model(args)
    except UserError as problem:
        parser.error(str(problem))
    serve(args.host, args.port, model, args.auth, args.mcp)


def serve(host: str, port: int, model: Model, auth: str | None = None, mcp: bool = False) -> None:
    """Build the page and serve it; returns when the server is stopped."""
    from starlette.middleware import Middleware

    from bat_ui import queue
    from bat_ui.project import data_folder, projects_folder
    from bat_ui.web.guard import Guard, password_check
    from bat_ui.web.page import build_page
    from bat_ui.web.theme import CSS, make_theme

    projects_folder().mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("GRADIO_TEMP_DIR", str(data_folder() / "uploads"))  # where Gradio keeps what browsers send
    _tidy(data_folder())
    queue.keep_going()
    threading.Thread(target=_warm_up, daemon=True).start()
    threading.Thread(target=_purge_daily, daemon=True).start()
    page, heartbeat = build_page(model)
    _yield_to_training()
    page.launch(
        server_name=host,
        server_port=port,
        theme=make_theme(),
        css_paths=CSS,
        auth=password_check(*auth.split(":", 1)) if auth else None,
        app_kwargs={"middleware": [Middleware(Guard, local=not auth)], "routes": [heartbeat]},
        allowed_paths=[str(projects_folder())],  # of these, Guard lets pictures and results through
        max_file_size="50mb",
        state_session_capacity=SESSIONS,
        mcp_server=mcp,
        share=False,
        strict_cors=True,
        enable_monitoring=False,
        ssr_mode=False,
        run_history=False,
        footer_links=["api"],
        quiet=True,
        prevent_thread_lock=True,
        _frontend=False,  # else Gradio ends where its first page takes over three seconds, as beside a training
    )
    print(f"Open {page.local_url} in your browser. Ctrl+C ends the page, not the jobs that it started.", flush=True)
    page.block_thread()


def _model(args: argparse.Namespace) -> Model:
    """The backbone that the options name, fetched by consent.  Raises UserError where it cannot be had."""
    from bat_ui.web.step import Model

    model = Model(args.backbone, args.clip, args.prediction, args.memory).from_anywhere()
    if model.photos:
        from bat_ui.backbones import needed_downloads
        from bat_ui.cli import fetch

        fetch(needed_downloads(model.backbone, model.clip), args.download)
    return model


def _tidy(data: Path) -> None:
    """Remove what a server that was killed left: copies half made, uploads and unpacked zips of more than a day ago."""
    from bat_ui.files import remove_drafts

    remove_drafts(data / "projects")
    for stale in (*(data / "uploads").glob("*"), *(data / "incoming").glob("ingest-*")):
        if stale.is_dir() and time.time() - stale.stat().st_mtime > DAY:
            shutil.rmtree(stale, ignore_errors=True)


def _purge_daily() -> None:
    from bat_ui import registry

    while True:
        registry.purge()
        time.sleep(DAY)


def _yield_to_training() -> None:
    """From here on this thread, and those that it starts to serve the page, wait for a training that needs the processors.

    The queue's thread, which starts the workers, has begun before and is not concerned.
    """
    if sys.platform == "linux":  # where each thread has a priority of its own
        which = os.PRIO_PROCESS, threading.get_native_id()
        os.setpriority(*which, max(10, os.getpriority(*which)))


def _unsafe(host: str, auth: str | None, mcp: bool) -> str | None:
    """What must not be served like this, and how it may be."""
    from bat_ui.web.guard import is_loopback

    if auth is not None and not all(auth.partition(":")):
        return "--auth wants a name and a password: give USER:PASSWORD."
    if not is_loopback(host) and auth is None:
        return f"Anybody who reaches {host} could use the page: give --auth USER:PASSWORD, too."
    if mcp and auth is not None:
        return "--mcp asks nobody for a password: leave out --auth and --host, which keeps it to this machine."
    if mcp and find_spec("mcp") is None:
        return "--mcp needs one more package: pip install 'gradio[mcp]'."
    return None


def _taken(host: str, port: int) -> str | None:
    """Why the page cannot listen there, perhaps since it does already."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except (OSError, OverflowError) as problem:
        why = (getattr(problem, "strerror", None) or "there is no such port").partition(" (")[0]
        return f"The page cannot listen at {host}, port {port} ({why}). Is it open already? Else choose another --port."
    return None


def _warm_up() -> None:
    """Import what the first click needs, while the user still reads."""
    import bat_ui.line  # noqa: F401


if __name__ == "__main__":
    main()

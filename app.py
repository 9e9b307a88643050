"""Start the page: `python app.py`, then open http://127.0.0.1:7860.  `python app.py --help` lists the options."""

from __future__ import annotations

import argparse
import os
import threading
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported: nothing is told to anybody


def main() -> None:
    """Parse the options, build the page and serve it until the process is ended."""
    parser = argparse.ArgumentParser(description="Personalize an image model from a few pictures, in the browser.")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--data", type=Path, help="folder for projects and stores (default: the user's data folder)")
    parser.add_argument("--backbone", default="sticker", help="the backbone to adapt (default: %(default)s)")
    args = parser.parse_args()
    if args.data:
        os.environ["BAT_UI_DATA"] = str(args.data.resolve())  # for this process and its workers
    serve(args.host, args.port, args.backbone)


def serve(host: str, port: int, backbone: str) -> None:
    """Build the page and serve it; returns when the server is stopped."""
    from bat_ui.project import projects_folder
    from bat_ui.web.page import build_page
    from bat_ui.web.theme import CSS, make_theme

    projects_folder().mkdir(parents=True, exist_ok=True)
    if Path(backbone).is_dir():
        backbone = str(Path(backbone).resolve())
    threading.Thread(target=_warm_up, daemon=True).start()
    build_page(backbone).launch(
        server_name=host,
        server_port=port,
        theme=make_theme(),
        css_paths=CSS,
        allowed_paths=[str(projects_folder())],  # the only files of this machine that a browser can ask for
        max_file_size="50mb",
        share=False,
        strict_cors=True,
        enable_monitoring=False,
        ssr_mode=False,
        run_history=False,
        footer_links=["api"],
    )


def _warm_up() -> None:
    """Import what the first click needs, while the user still reads."""
    import bat_ui.line  # noqa: F401


if __name__ == "__main__":
    main()

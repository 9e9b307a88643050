"""The page as a process of its own, for benchmarks and screenshots."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]


@contextmanager
def server(folder: Path, *options: str) -> Iterator[str]:
    """The address of a page on a free port, whose data folder is `folder`.  Raises RuntimeError if it does not start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "app.py", "--port", str(port), "--data", str(folder), *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: process.poll() is not None or _listens(port))
        if process.poll() is not None:
            raise RuntimeError("the server did not start")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def tiny_backbone(folder: Path) -> Path:
    """The tests' own.  Loaded by path, since `tests` is no package."""
    spec = importlib.util.spec_from_file_location("tiny_sticker", ROOT / "tests" / "tiny_sticker.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder.mkdir()
    return module.write_folder(folder)


def wait_for(happened: Callable[[], bool], seconds: float = 3600) -> None:
    """Raises RuntimeError if it has not happened by then."""
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            raise RuntimeError("it did not come to its end")
        time.sleep(0.5)


def _listens(port: int) -> bool:
    with socket.socket() as knock:
        return knock.connect_ex(("127.0.0.1", port)) == 0

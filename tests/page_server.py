"""The page as it is served, for tests that ask it as a browser or a program would, and may kill it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gradio_client import Client


def client_of(address: str) -> Client:
    """A program's way to the page; a machine that is busy with other tests may answer late."""
    return Client(address, verbose=False, httpx_kwargs={"timeout": 60})


@dataclass
class Server:
    """A page of its own, in a process of its own, with a data folder of its own."""

    data: Path
    backbone: Path
    port: int = 0
    program: tuple[str, ...] = ("app.py",)
    process: subprocess.Popen | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, again at the same port, and wait for its first answer."""
        if not self.port:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.port = free.getsockname()[1]
        options = ["--port", str(self.port), "--data", str(self.data), "--backbone", str(self.backbone)]
        with open(self.data / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.program, *options],
                cwd=Path(__file__).parents[1],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "GRADIO_TEMP_DIR": str(self.data / "uploads")},
            )
        deadline = time.monotonic() + 240
        while not self._answers():
            assert self.process.poll() is None and time.monotonic() < deadline, (self.data / "server.log").read_text()
            time.sleep(0.2)

    def kill(self) -> None:
        """End it without a last word; its workers stay."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """End it and its workers, who would outlive it."""
        self.kill()
        for status in self.data.glob("projects/**/status/*.json"):
            record = json.loads(status.read_text())
            if record["state"] == "running" and record.get("pid"):
                with suppress(ProcessLookupError):
                    os.kill(record["pid"], signal.SIGKILL)

    def _answers(self) -> bool:
        try:
            return urllib.request.urlopen(self.address, timeout=5).status == 200
        except (urllib.error.URLError, OSError):
            return False

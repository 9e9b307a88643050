"""A running server on a tiny backbone, and headless Chromium that notes every request to another host."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, expect, sync_playwright

sys.path.insert(0, str(Path(__file__).parent))  # for driving.py, what the tests of this folder share
from driving import dial, find_pictures, open_page, train, upload, watched  # noqa: E402

ROOT = Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
QUIET += ["--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="session")
def server(tmp_path_factory, tiny_backbone_folder):
    """The address of a page of its own, with a data folder of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = tmp_path_factory.mktemp("server")
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "app.py", "--port", str(port), "--data", str(data), "--backbone", str(tiny_backbone_folder)]
    with open(data / "server.log", "wb") as log:
        environment = {**os.environ, "GRADIO_TEMP_DIR": str(data / "uploads")}
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=environment)
    try:
        deadline = time.monotonic() + 120
        while not _answers(address):
            assert process.poll() is None and time.monotonic() < deadline, (data / "server.log").read_text()
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(20)
        for status in data.glob("projects/*/status/*.json"):  # workers outlive the server, but not the tests
            record = json.loads(status.read_text())
            if record["state"] == "running":
                with suppress(ProcessLookupError):
                    os.kill(record["pid"], signal.SIGKILL)


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture()
def page(browser: Browser, server: str):
    """A fresh browser profile at no address yet; fails the test if any other host was asked for anything."""
    context, foreign = watched(browser, server)
    yield context.new_page()
    context.close()
    assert not foreign, f"the page asked other hosts: {foreign}"


@pytest.fixture(scope="session")
def faces(tmp_path_factory) -> list[Path]:
    """Four drawings of a face with different mouths."""
    folder = tmp_path_factory.mktemp("faces")
    for i in range(4):
        image = Image.new("RGB", (96, 96), "white")
        pen = ImageDraw.Draw(image)
        pen.ellipse((8, 8, 88, 88), fill="gold", outline="black")
        pen.rectangle((30 - 4 * i, 50 + 4 * i, 66, 56 + 7 * i), fill=("black", "red", "navy", "green")[i])
        image.save(folder / f"face{i}.png")
    return sorted(folder.glob("*.png"))


@pytest.fixture(scope="session")
def finished(browser: Browser, server: str, faces: list[Path]) -> str:
    """The address of a project that was taken through all four steps in the browser, with few steps each."""
    context, foreign = watched(browser, server)
    page = context.new_page()
    open_page(page, server)
    upload(page, faces)
    expect(page.locator(".card img")).to_have_count(4)
    page.get_by_label("What is it?").fill("face")
    page.get_by_label("Caption of face1").fill("a flat sticker of sks face, red")
    page.get_by_role("button", name="Use these pictures").click()
    find_pictures(page, candidates=24)
    page.locator(".pick").first.click()
    expect(page.locator("#undo")).to_be_enabled()
    page.get_by_role("button", name="Go on to training").click()
    train(page, steps=6)
    page.get_by_role("button", name="Go on to samples").click()
    expect(page.get_by_label("Prompts")).to_have_value(re.compile("a flat sticker of sks face, red"))
    page.get_by_label("Prompts").fill("a sticker of sks face")
    dial(page, "num-images", 2)
    page.get_by_role("button", name="Draw samples").click()
    expect(page.locator(".pair")).to_have_count(2)
    assert not foreign, f"the page asked other hosts: {foreign}"
    address = page.url
    context.close()
    return address


def _answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(address, timeout=5).status == 200
    except (urllib.error.URLError, OSError):
        return False

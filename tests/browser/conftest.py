"""Headless Chromium that notes every request to another host, and a project that was taken through all steps in it."""

import re
import shutil
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

sys.path.insert(0, str(Path(__file__).parent))  # for driving.py, what the tests of this folder share
from driving import dial, find_pictures, open_page, train, upload, watched  # noqa: E402

ROOT = Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
QUIET += ["--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="package")  # its event loop must not run into other tests
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


@pytest.fixture(scope="package")
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

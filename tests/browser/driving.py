"""How the tests of this folder drive the page: by labels, roles and ids, never by waiting for a time."""

import re
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

PATIENCE = 240_000  # milliseconds: workers import their libraries and build a store first, perhaps on a busy machine
expect.set_options(timeout=PATIENCE)


def watched(browser: Browser, server: str, **options):
    """A browser context, and the list in which it notes requests to other hosts."""
    context, foreign = browser.new_context(**options), []
    own = (server + "/", "data:", "blob:")
    context.on("request", lambda request: request.url.startswith(own) or foreign.append(request.url))
    return context, foreign


def open_page(page: Page, address: str) -> None:
    """Load the page and wait until its first event has filled it."""
    page.goto(address)
    expect(page.locator("#hardware")).to_contain_text("Hardware")


def upload(page: Page, files: list[Path]) -> None:
    page.locator("#upload input[type=file]").set_input_files(files)


def settle(page: Page) -> None:
    """Gradio makes the parts of a tab or an accordion when it is opened, and gives them their first values a frame later."""
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 100))))")


def dial(page: Page, elem_id: str, value: int) -> None:
    box = page.locator(f"#{elem_id} input[type=number]")
    expect(box).to_be_visible()
    settle(page)
    box.fill(str(value))
    box.press("Tab")
    expect(box).to_have_value(str(value))


def open_tab(page: Page, number: int) -> None:
    page.get_by_role("tab", name=re.compile(f"^{number} ")).click()


def open_at(page: Page, address: str, number: int) -> None:
    """Load the page of a project that has come beyond step 1, wait until it stands where it stood, and go to a step."""
    open_page(page, address)
    expect(page.get_by_role("tab", name=re.compile("^1 "))).to_have_attribute("aria-selected", "false")
    open_tab(page, number)


def unfold(page: Page, name: str | re.Pattern) -> None:
    """Open an accordion."""
    page.get_by_role("button", name=name).locator("visible=true").click()
    settle(page)


def find_pictures(page: Page, candidates: int) -> None:
    expect(page.get_by_role("button", name="Find helpful pictures")).to_be_visible()
    unfold(page, "Advanced")
    for label, value in (("Candidates", candidates), ("Surrogate steps", 2)):
        page.get_by_label(label).fill(str(value))
        page.get_by_label(label).press("Tab")
        expect(page.get_by_label(label)).to_have_value(str(value))
    page.get_by_role("button", name="Find helpful pictures").click()
    expect(page.locator("#backbone-panel progress")).to_be_visible()
    expect(page.locator(".pick")).to_have_count(candidates)


def train(page: Page, steps: int) -> None:
    dial(page, "steps-dial", steps)
    page.get_by_role("button", name=re.compile("Start training|Train again")).click()
    expect(page.locator("#training-panel")).to_contain_text(f"Trained: {steps} steps")

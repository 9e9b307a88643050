"""The sidebar and the runs in headless Chromium: projects, the queue, undo after a reload, all reachable by keyboard."""

import re

import pytest
from driving import PATIENCE, dial, open_page, open_tab, train, upload, watched
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser


def entry(page: Page, name: str):
    return page.locator("#projects a").filter(has=page.locator("b", has_text=re.compile(f"^{re.escape(name)}$")))


def new_project(page: Page, faces, name: str) -> None:
    upload(page, faces[:3])  # where no project is open, they make one
    expect(page.locator(".card img")).to_have_count(3)
    box = page.get_by_label("Name of the open project")
    box.fill(name)
    box.press("Enter")
    expect(entry(page, name)).to_be_visible()


def test_projects_are_made_named_copied_deleted_and_brought_back(page, server, faces):
    open_page(page, server)
    new_project(page, faces, "First & <b>best</b>")
    first = page.url
    expect(entry(page, "First & <b>best</b>").locator("img")).to_be_visible()
    page.get_by_role("button", name="Duplicate").click()
    expect(entry(page, "First & <b>best</b> (copy)")).to_have_attribute("aria-current", "page")
    expect(page.locator(".card img")).to_have_count(3)
    assert page.url != first
    page.get_by_role("button", name="Delete").click()
    expect(entry(page, "First & <b>best</b> (copy)")).to_have_count(0)
    expect(page.locator(".card img")).to_have_count(0)
    page.get_by_role("button", name="Bring back “First & <b>best</b> (copy)”").click()
    expect(entry(page, "First & <b>best</b> (copy)")).to_have_attribute("aria-current", "page")
    expect(page.locator(".card img")).to_have_count(3)
    page.get_by_role("button", name="New project").click()
    expect(page.locator(".card img")).to_have_count(0)
    entry(page, "First & <b>best</b>").focus()
    page.keyboard.press("Enter")
    expect(page).to_have_url(first)
    expect(entry(page, "First & <b>best</b>")).to_have_attribute("aria-current", "page")


def test_a_link_opens_a_project_and_a_deleted_one_opens_nothing(page, server, faces, browser):
    open_page(page, server)
    new_project(page, faces, "Linked")
    link = page.url
    context, _ = watched(browser, server)
    other = context.new_page()
    open_page(other, link)
    expect(other.locator(".card img")).to_have_count(3)
    page.get_by_role("button", name="Delete").click()
    expect(entry(other, "Linked")).to_have_count(0)  # a second browser follows
    open_page(other, link)
    expect(other.locator(".card img")).to_have_count(0)
    context.close()


def test_a_change_by_hand_is_undone_after_a_reload(finished, page):
    open_page(page, finished)
    open_tab(page, 2)
    card = page.locator(".pick").nth(5)
    before = card.get_attribute("aria-pressed")
    id = card.get_attribute("data-id")
    card.click()
    expect(card).not_to_have_attribute("aria-pressed", before)
    open_page(page, finished)
    open_tab(page, 2)
    expect(page.locator("#undo")).to_be_enabled()
    page.locator("#undo").click()
    expect(page.locator(f'.pick[data-id="{id}"]')).to_have_attribute("aria-pressed", before)


def test_runs_wait_in_the_queue_are_taken_out_and_stopped_at_once(finished, page):
    open_page(page, finished)
    page.get_by_role("button", name="Duplicate").click()  # runs of its own, so that other tests find theirs
    expect(page.get_by_role("tab", name=re.compile("^2 "))).to_have_attribute("aria-selected", "true")
    open_tab(page, 3)
    runs = page.locator("#runs button")
    expect(runs).to_have_count(0)
    train(page, steps=6)
    count = 1
    dial(page, "steps-dial", 2000)
    page.get_by_role("button", name="Train again").click()
    expect(runs).to_have_count(count + 1)
    page.get_by_role("button", name="Train again").click()
    expect(runs).to_have_count(count + 2)
    expect(runs.first).to_contain_text("waits in the queue")
    expect(page.locator("#queue li")).to_have_count(2)
    page.locator("#queue li").last.get_by_role("button").click()
    expect(page.locator("#queue li")).to_have_count(1)
    expect(runs.first).to_contain_text("not begun")
    runs.nth(1).click()
    expect(runs.nth(1)).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#training-panel progress")).to_have_attribute("max", "2000")
    page.wait_for_function("document.querySelector('#training-panel progress')?.value > 2", timeout=PATIENCE)
    expect(page.locator("#training-panel")).to_contain_text("GB of memory")
    expect(page.locator("#run-samples img").first).to_be_visible()
    page.get_by_role("button", name="Stop now").click()
    expect(page.locator("#training-panel")).to_contain_text("Stopped")
    expect(page.get_by_role("button", name="Resume")).to_be_visible()
    expect(page.locator("#queue")).to_contain_text("Nothing runs and nothing waits")
    runs.last.click()
    expect(page.locator("#training-panel")).to_contain_text("Trained: 6 steps")
    expect(page.locator("#run-samples")).to_contain_text("CLIP-I")


def test_the_sidebar_is_folded_away_on_a_phone_and_fits_it(finished, browser, server):
    context, _ = watched(browser, server, viewport={"width": 390, "height": 844})
    page = context.new_page()
    open_page(page, finished)
    open_tab(page, 1)  # nothing is in the way
    toggle = page.locator(".sidebar .toggle-button")
    toggle.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#projects a").first).to_be_in_viewport()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()

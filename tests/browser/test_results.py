"""Step 5 in headless Chromium: the grid, favourites, the slider, the checkpoint in use, and what is taken home."""

import json
import re
import zipfile

import pytest
from driving import open_at, open_page, open_tab, watched
from playwright.sync_api import Page, expect
from safetensors import safe_open

from tests.page_server import client_of

pytestmark = pytest.mark.browser


@pytest.fixture()
def results(finished, page: Page) -> Page:
    """The page at step 5 of the finished project."""
    open_at(page, finished, 5)
    page.locator("#compare-run input").click()
    page.get_by_role("option", name=re.compile("^Run 1, ")).click()  # other tests may have begun further runs
    expect(page.locator('#grid .star:not([data-run="001"])')).to_have_count(0)
    expect(page.locator("#grid thead th").last).to_contain_text(re.compile(r"^Step 6(?!\d)"))
    return page


def project_of(address: str) -> str:
    return address.rsplit("project=", 1)[1]


def test_the_grid_shows_the_same_prompts_before_and_after_training(results):
    heads = results.locator("#grid thead th")
    expect(heads).to_have_count(2)
    expect(heads.first).to_contain_text("Backbone alone")
    expect(heads.last).to_contain_text("Step 6")
    pictures = results.locator("#grid .look img")
    assert pictures.count() >= 6 and pictures.count() % 2 == 0
    for picture in (pictures.first, pictures.last):
        picture.scroll_into_view_if_needed()
        assert picture.evaluate("picture => picture.decode().then(() => picture.naturalWidth)") == 64
    expect(results.locator("#advice h3")).to_be_visible()
    expect(results.locator("#curves svg")).to_have_count(4)


def test_a_picture_is_enlarged_by_keyboard_and_arrows_walk_through_the_grid(results):
    first = results.locator("#grid .look").first
    first.focus()
    results.keyboard.press("Enter")
    dialog = results.locator("dialog[open]")
    expect(dialog).to_be_visible()
    expect(dialog.locator("p")).to_contain_text("backbone alone, seed 0")
    results.keyboard.press("ArrowRight")
    expect(dialog.locator("p")).to_contain_text("step 6, seed 0")
    results.keyboard.press("ArrowDown")
    expect(dialog.locator("p")).to_contain_text("step 6, seed 1")
    results.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(first).to_be_focused()


def test_an_enlarged_picture_stays_when_the_grid_is_drawn_anew(results, finished, server):
    results.locator("#grid .look").first.click()
    expect(results.locator("dialog[open]")).to_be_visible()
    client, project = client_of(server), project_of(finished)
    star = results.locator("#grid .star").nth(1)
    run, step, picture = (star.get_attribute(f"data-{name}") for name in ("run", "step", "star"))
    for pressed in ("true", "false"):  # somebody else likes it, and then no longer
        client.predict(project, run, int(step), picture, api_name="/toggle_favourite")
        expect(star).to_have_attribute("aria-pressed", pressed)
        expect(results.locator("dialog[open]")).to_be_visible()


def test_a_star_keeps_a_picture_among_the_favourites_after_a_reload(results, finished):
    star = results.locator("#grid .star").nth(1)
    star.focus()
    results.keyboard.press("Space")
    expect(star).to_have_attribute("aria-pressed", "true")
    expect(star).to_be_focused()
    expect(results.locator("#favourites .shot")).to_have_count(1)
    open_at(results, finished, 5)
    expect(results.locator("#favourites .shot")).to_have_count(1)
    expect(results.locator("#favourites")).to_contain_text("step 6")
    results.locator("#favourites .star").click()
    expect(results.locator("#favourites .shot")).to_have_count(0)
    expect(results.locator("#grid .star").nth(1)).to_have_attribute("aria-pressed", "false")


def test_the_border_between_two_pictures_is_moved_by_keyboard_and_by_mouse(results):
    pair = results.locator(".ab").first
    slider = pair.locator("input")
    slider.focus()
    for key, cut in (("End", "100%"), ("Home", "0%"), ("ArrowRight", "1%")):
        results.keyboard.press(key)
        assert pair.evaluate("pair => getComputedStyle(pair).getPropertyValue('--cut')").strip() == cut
    box = slider.bounding_box()
    results.mouse.click(box["x"] + 0.75 * box["width"], box["y"] + box["height"] / 2)
    assert 70 <= int(slider.input_value()) <= 80
    line = pair.locator("i").bounding_box()
    assert abs(line["x"] + line["width"] / 2 - box["x"] - box["width"] * int(slider.input_value()) / 100) < 3
    expect(results.locator(".versus tbody tr")).to_have_count(4)


def test_the_checkpoint_that_is_used_is_the_one_that_is_drawn_with_and_downloaded(results, finished, server):
    results.get_by_role("button", name="Use this checkpoint").click()
    expect(results.locator("#used")).to_contain_text(re.compile("taken home: step 6|In use for Run 1: step 6"))
    client = client_of(server)
    found = client.predict(project_of(finished), "001", api_name="/compare_checkpoints")
    assert found["used"] == 6 and found["checkpoints"][-1]["saved"] and found["why"]


def test_the_lora_for_other_tools_is_prepared_checked_and_downloaded(results, tmp_path):
    results.get_by_role("button", name="Prepare").click()
    expect(results.locator("#take-home-panel")).to_contain_text("Ready: LoRA for A1111")
    expect(results.locator("#take-home-panel li")).to_have_count(2)
    with results.expect_download() as download:
        results.locator("#download-export").click()
    download.value.save_as(tmp_path / "kohya.zip")
    names = zipfile.ZipFile(tmp_path / "kohya.zip").namelist()
    assert {"README.md", "sks-face.safetensors"} <= set(names)
    with zipfile.ZipFile(tmp_path / "kohya.zip") as file:
        file.extract("sks-face.safetensors", tmp_path)
    with safe_open(tmp_path / "sks-face.safetensors", "pt") as file:
        assert all(key.startswith("lora_unet_") for key in file.keys())


def test_all_pictures_of_the_checkpoints_are_one_download(results, tmp_path):
    for _ in range(10):  # the button follows the run that was just chosen
        with results.expect_download() as download:
            results.get_by_role("button", name="Download all pictures").click()
        download.value.save_as(tmp_path / "pictures.zip")
        if "step-000006/samples.json" in zipfile.ZipFile(tmp_path / "pictures.zip").namelist():
            break
        results.wait_for_timeout(300)
    with zipfile.ZipFile(tmp_path / "pictures.zip") as file:
        rows = json.loads(file.read("step-000006/samples.json"))
        assert {f"step-000006/{row['file']}" for row in rows} <= set(file.namelist())


def test_a_project_without_a_training_says_what_to_do(page, server):
    open_page(page, server)
    open_tab(page, 5)
    expect(page.locator("#compare-empty")).to_contain_text("Train your subject in step 3 first")
    expect(page.locator("#comparison")).to_be_hidden()


def test_pairs_of_equal_prompts_are_told_to_programs_and_fit_a_phone(finished, server, browser):
    client = client_of(server)
    project = project_of(finished)
    pictures = client.predict(project, "001", 0, "001", 6, api_name="/compare_pictures")
    assert pictures and all(row["a"] != row["b"] for row in pictures)
    context, _ = watched(browser, server, viewport={"width": 390, "height": 844})
    page = context.new_page()
    open_at(page, finished, 5)
    expect(page.locator(".ab")).to_have_count(len(pictures))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()

"""The page in headless Chromium, from a real upload to samples, with what may go wrong on the way."""

import re
import urllib.error
import urllib.request
import zipfile

import pytest
from driving import PATIENCE, dial, open_at, open_page, open_tab, upload, watched
from PIL import Image
from playwright.sync_api import expect
from safetensors.torch import load_file

pytestmark = pytest.mark.browser


def test_a_real_upload_goes_through_all_four_steps_to_samples_with_and_without_the_adapter(finished, page):
    open_page(page, finished)
    expect(page.locator(".pair")).to_have_count(2)
    pictures = page.locator(".pair img")
    expect(pictures).to_have_count(4)
    for i in range(4):
        assert pictures.nth(i).evaluate("picture => picture.decode().then(() => picture.naturalWidth)") == 64
    expect(page.locator(".pair").first).to_contain_text("a sticker of sks face")


def test_the_adapter_and_the_samples_can_be_downloaded(finished, page, tmp_path):
    open_page(page, finished)
    for button, name in (("Download the LoRA", "adapter.safetensors"), ("Download the samples", "samples.zip")):
        with page.expect_download() as download:
            page.get_by_role("button", name=button).click()
        download.value.save_as(tmp_path / name)
    assert all("lora" in key for key in load_file(tmp_path / "adapter.safetensors"))
    assert {"000.png", "001.png", "without/000.png"} <= set(zipfile.ZipFile(tmp_path / "samples.zip").namelist())


def test_a_reload_and_a_second_browser_find_the_project_again(finished, page, browser, server):
    open_page(page, finished)
    open_tab(page, 3)
    expect(page.locator("#training-panel")).to_contain_text("Trained: 6 steps")
    expect(page.locator("#losses svg")).to_be_visible()
    assert page.locator("#steps-dial input[type=number]").input_value() == "6"
    open_page(page, server)  # without ?project=: the browser remembers
    expect(page).to_have_url(re.compile("project=[0-9a-f]{16}"))
    expect(page.locator(".pair")).to_have_count(2)
    stranger, _ = watched(browser, server)
    other = stranger.new_page()
    open_page(other, server)
    expect(other.locator(".pair")).to_have_count(0)
    stranger.close()


def test_captions_that_were_typed_are_kept(finished, page):
    open_page(page, finished)
    open_tab(page, 1)
    expect(page.get_by_label("Caption of face1")).to_have_value("a flat sticker of sks face, red")
    expect(page.get_by_label("What is it?")).to_have_value("face")


def test_a_caption_that_is_being_typed_outlives_new_pictures(page, server, faces):
    open_page(page, server)
    upload(page, faces[:2])
    expect(page.locator(".card img")).to_have_count(2)
    box = page.locator(".card textarea").first
    box.press_sequentially("not finished")
    upload(page, faces[2:3])  # the box was not left
    expect(page.locator(".card img")).to_have_count(3)
    expect(box).to_have_value("not finished")


def test_the_keyboard_drops_and_takes_a_picture_and_undo_takes_it_back(finished, page):
    open_page(page, finished)
    open_tab(page, 2)
    card, taken = page.locator(".pick").nth(3), page.locator("#taken")
    before, summary = card.get_attribute("aria-pressed"), taken.inner_text()
    after = {"true": "false", "false": "true"}[before]
    card.focus()
    page.keyboard.press("Space")
    expect(card).to_have_attribute("aria-pressed", after)
    expect(card).to_be_focused()
    page.keyboard.press("Enter")
    expect(card).to_have_attribute("aria-pressed", before)
    page.keyboard.press("Enter")
    expect(card).to_have_attribute("aria-pressed", after)
    for pressed in (before, after, before):
        page.get_by_role("button", name="Undo").click()
        expect(card).to_have_attribute("aria-pressed", pressed)
    expect(taken).to_have_text(summary)


def test_every_candidate_says_what_is_known_of_it_and_shows_its_picture(finished, page):
    open_page(page, finished)
    open_tab(page, 2)
    cards = page.locator(".pick")
    expect(cards).to_have_count(24)
    for card in (cards.first, cards.last):
        expect(card).to_contain_text("sticker of")
        expect(card).to_contain_text("CLIP similarity")
        card.scroll_into_view_if_needed()
        assert card.locator("img").evaluate("picture => picture.decode().then(() => picture.naturalWidth)") == 64
    page.get_by_role("button", name="Groups and their verdicts").click()
    expect(page.locator("#groups tbody tr").first).to_be_visible()


def test_how_long_a_training_takes_is_said_before_it_starts_and_follows_the_dials(finished, page):
    open_page(page, finished)
    open_tab(page, 3)
    said, seconds = page.locator("#estimate"), []
    for steps in (2, 2000):
        before = said.inner_text()
        dial(page, "steps-dial", steps)
        expect(said).not_to_have_text(before)
        expect(said).to_contain_text(re.compile(r"Takes about .* on this machine and at most .* GB of memory"))
        number, unit = re.search(r"about ([\d.]+) (s|min|h)\b", said.inner_text()).groups()
        seconds.append(float(number) * {"s": 1, "min": 60, "h": 3600}[unit])
    assert seconds[1] > 2 * seconds[0]


def begin_long_training(address, browser, server):
    """A page, in a browser of its own, whose button for a training of 2,000 steps was clicked."""
    context, _ = watched(browser, server)
    page = context.new_page()
    open_page(page, address)
    open_tab(page, 3)
    dial(page, "steps-dial", 2000)
    page.get_by_role("button", name="Train again").click()
    return page


def test_training_goes_on_while_the_page_is_closed_and_can_be_stopped_and_resumed(finished, browser, server):
    page = begin_long_training(finished, browser, server)
    expect(page.get_by_role("button", name="Stop and save")).to_be_visible()
    page.context.close()  # the browser is gone, profile and all
    context, _ = watched(browser, server)
    page = context.new_page()
    open_page(page, finished)
    expect(page.locator("#training-panel")).to_contain_text(re.compile("Training: .* of 2,000"))
    page.get_by_role("button", name="Stop and save").click()
    expect(page.locator("#training-panel")).to_contain_text("Stopped and saved at step")
    stopped = int(re.search(r"step ([\d,]+)", page.locator("#training-panel").inner_text())[1].replace(",", ""))
    assert 1 <= stopped < 2000
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("#training-panel progress")).to_have_attribute("max", "2000")
    page.wait_for_function(f"document.querySelector('#training-panel progress')?.value > {stopped}", timeout=PATIENCE)
    page.get_by_role("button", name="Stop and save").click()
    expect(page.locator("#training-panel")).to_contain_text("Stopped and saved at step")
    context.close()


def test_a_step_out_of_sight_is_drawn_when_its_tab_is_opened(finished, page, browser, server):
    other = begin_long_training(finished, browser, server)
    expect(other.locator("#training-panel progress")).to_have_attribute("max", "2000")
    open_page(page, finished)
    expect(page.locator("#training-panel progress")).to_have_attribute("max", "2000")
    open_tab(page, 1)
    other.get_by_role("button", name="Stop and save").click()
    expect(other.locator("#training-panel")).to_contain_text("Stopped and saved at step")
    for _ in range(3):
        with page.expect_response(lambda response: "/heartbeat" in response.url):
            pass
    assert page.locator("#training-panel progress").count() == 1
    open_tab(page, 3)
    expect(page.locator("#training-panel")).to_contain_text("Stopped and saved at step")
    other.context.close()


def text_file(folder):
    (folder / "text.png").write_text("no picture at all")
    return "text.png is not a JPEG, PNG or WebP picture"


def huge_picture(folder):
    Image.new("1", (20_000, 20_000)).save(folder / "huge.png")
    return "huge.png has more than 50 million pixels"


def animated_picture(folder):
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "moving.png", save_all=True, append_images=frames[1:])
    return "moving.png is animated"


def truncated_picture(folder):
    Image.effect_noise((200, 200), 90).save(folder / "cut.png")
    whole = (folder / "cut.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    return "cut.png is damaged or cut short"


def fifty_pictures(folder):
    for i in range(50):
        Image.new("RGB", (32, 32), (i, i, i)).save(folder / f"{i}.png")
    return "pictures are too many"


BAD = [text_file, huge_picture, animated_picture, truncated_picture, fifty_pictures]


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_a_bad_upload_is_said_in_a_sentence_and_loses_nothing(make, page, server, faces, tmp_path):
    open_page(page, server)
    upload(page, faces[:3])
    expect(page.locator(".card img")).to_have_count(3)
    sentence = make(tmp_path)
    upload(page, sorted(tmp_path.iterdir()))
    expect(page.get_by_role("alert")).to_contain_text(sentence)
    expect(page.locator(".card img")).to_have_count(3)
    expect(page.locator(".card img").first).to_be_visible()


def test_no_picture_and_an_empty_class_noun_are_each_said_in_a_sentence(page, server, faces):
    open_page(page, server)
    page.get_by_role("button", name="Use these pictures").click()
    expect(page.get_by_role("alert")).to_contain_text("There is no picture of the subject")
    upload(page, faces[:3])
    expect(page.locator(".card img")).to_have_count(3)
    page.get_by_role("button", name="Use these pictures").click()
    expect(page.get_by_role("alert")).to_contain_text("Say what the subject is")
    expect(page.get_by_role("alert")).to_be_in_viewport()
    expect(page.locator(".card img")).to_have_count(3)


def test_steps_out_of_order_say_what_is_missing(page, server):
    open_page(page, server)
    for step, button in ((2, "Find helpful pictures"), (3, "Start training"), (4, "Draw samples")):
        open_tab(page, step)
        page.get_by_role("button", name=button).click()
        expect(page.get_by_role("alert").locator("visible=true")).to_contain_text("step 1")


def test_an_example_subject_brings_pictures_captions_and_class_noun(page, server):
    open_page(page, server)
    page.locator("#example-flat-cat").click()
    expect(page.locator(".card img")).to_have_count(4)
    expect(page.get_by_label("What is it?")).to_have_value("cat")
    caption = page.get_by_label("Caption of crying-cat")
    expect(caption).to_have_value("a flat sticker of crying sks cat")
    expect(caption).to_be_editable()


def test_what_is_pasted_into_a_caption_or_the_noun_outlives_a_reload(page, server):
    open_page(page, server)
    page.locator("#example-flat-cat").click()
    for label in ("Caption of crying-cat", "What is it?"):
        page.get_by_label(label).fill("")
        page.get_by_label(label).focus()
        page.keyboard.insert_text(f"pasted {label.split()[0].lower()}")
        page.keyboard.press("Tab")
    expect(page.locator("#default-caption")).to_contain_text("pasted what")
    page.reload()
    expect(page.get_by_label("Caption of crying-cat")).to_have_value("pasted caption")
    expect(page.get_by_label("What is it?")).to_have_value("pasted what")


def test_back_opens_the_project_before(finished, page):
    open_page(page, finished)
    expect(page.locator(".pair")).to_have_count(2)
    page.get_by_role("button", name="New project").click()
    expect(page).not_to_have_url(re.compile("project="))
    expect(page.locator(".pair")).to_have_count(0)
    page.go_back()
    expect(page).to_have_url(re.compile("project=[0-9a-f]{16}"))
    expect(page.locator(".pair")).to_have_count(2)


def test_only_files_of_projects_are_served(finished, page, server):
    open_at(page, finished, 1)  # other tests may have begun runs that have no samples
    picture = page.locator(".card img").first.evaluate("picture => picture.src")
    assert urllib.request.urlopen(picture).status == 200
    projects = picture.split("file=")[1].split("/projects/")[0]
    for path in (f"{projects}/stores/sticker/store.json", "/etc/passwd", f"{projects}/projects/../server.log"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{server}/gradio_api/file={path}")
        assert refused.value.code in (403, 404)


def test_a_step_opened_before_the_page_is_filled_shows_no_error(finished, page):
    page.goto(finished)
    open_tab(page, 4)
    expect(page.get_by_label("Prompts")).not_to_have_value("")
    expect(page.get_by_text("Error", exact=True)).to_have_count(0)

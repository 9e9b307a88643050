"""Pictures that people add by hand in step 2: found in the store by words, or their own.

In: words, clicks, uploads.  Out: the choice with them (bat_ui/additions.py), what was found as small cards.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from html import escape
from pathlib import Path

import gradio as gr
from gradio.components import Component
from PIL import Image

from bat_ui.errors import UserError
from bat_ui.pictures import SUFFIXES
from bat_ui.subject import filled, template_of
from bat_ui.web import picks
from bat_ui.web.parts import TELL_WHICH_PICTURE, Updates, alert, answering, hint, html, message_box, refusing, required
from bat_ui.web.picks import Change
from bat_ui.web.step import Model, Shared

PIXELS = 96  # of a small card's picture
OWN_LABEL = (
    "Your own pictures are not the backbone's training data: whether they keep the model from forgetting is not known. They "
    "are labelled so here, in the report and in the model card, and the next search by ALBAT checks whether they agree."
)


def data_uri(picture: Image.Image, side: int = PIXELS) -> str:
    """A small copy of a picture that stands in the markup itself."""
    small, file = picture.copy(), io.BytesIO()
    small.thumbnail((side, side))
    small.save(file, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def build_additions(shared: Shared, view: list[Component], own: list[Component], revised: Callable[..., Updates]) -> None:
    """Lay out both ways and wire their events; `revised(*view, change)` changes the choice and gives updates of `own`."""
    id = shared.project
    message = message_box("additions-message")
    with gr.Row(elem_id="search-row"):
        words = gr.Textbox(
            "",
            label="Look for pictures by words",
            info="In the pictures that the model was trained on, or in the store that you chose.",
            placeholder="sleeping cat",
            max_lines=1,
            elem_id="search-words",
            scale=3,
            min_width=220,
        )
        search = gr.Button("Search", elem_id="search-store", scale=1, min_width=110)
    results = gr.HTML("", js_on_load=TELL_WHICH_PICTURE, apply_default_css=False, elem_id="search-results")
    found = gr.State([])
    html("<h3>Your own pictures</h3>")
    html(f"<p class='facts'>{escape(OWN_LABEL)}</p>")
    with gr.Row():
        caption = gr.Textbox(
            "",
            label="What do they show?",
            info="One description for all of them, without your subject's made-up word.",
            placeholder=filled(template_of(shared.model.backbone), "a", "cat"),
            max_lines=1,
            elem_id="own-caption",
            min_width=220,
        )
        files = gr.File(
            label="Your own pictures (JPEG, PNG or WebP)",
            file_count="multiple",
            file_types=list(SUFFIXES),
            elem_id="own-upload",
            height=150,
            min_width=220,
        )
        add_them = gr.Button("Add them", elem_id="add-own", scale=0, min_width=110)

    def look(project_id: str, said: str) -> Updates:
        rows = _search(project_id, said, shared.model)
        listed = [{"id": f.id, "caption": f.caption, "picture": data_uri(f.picture)} for f in rows]
        return {found: listed, results: _cards(project_id, listed)}

    def add(project_id: str, *rest, event: gr.EventData) -> Updates:
        *known, listed = rest
        return {**revised(project_id, *known, _adder(project_id, event.id, shared.model)), **_shown(project_id, listed)}

    def _shown(project_id: str, listed: list[dict]) -> Updates:
        return {results: _cards(project_id, listed)}

    def add_own(
        project_id: str, pictures: list[str] | None, caption: str, known: list, count: int, compare_with: str = ""
    ) -> Updates:
        """Add uploaded pictures of the user's own, all called `caption`, to what is trained on beside the subject."""
        problems: list[str] = []
        adder = _own_adder(project_id, pictures or [], caption, shared.model, problems)
        updates = revised(project_id, known, count, compare_with, adder)
        return {**updates, files: None, message: alert(*problems)}

    def search_pictures(project: str, words: str) -> list[dict]:
        """The pictures of the project's store that suit some words best: id, caption, CLIP similarity."""
        with refusing():
            rows = _search(project, words, shared.model)
        return [{"id": f.id, "caption": f.caption, "similarity": round(f.similarity, 4)} for f in rows]

    def add_picture(project: str, picture: str) -> list[str]:
        """Take a picture of the project's store, by its id, candidate or not; returns the ids of all that are taken."""
        with refusing():
            return picks.taken(picks.revise(required(project), _adder(project, picture, shared.model)))

    private = {"api_visibility": "private", "show_progress": "hidden"}
    for event in (search.click, words.submit):
        event(answering(message, look), [id, words], [message, found, results], api_visibility="private")
    results.click(_clicked(message, add), [*view, found], [message, results, *own], **private)
    add_them.click(
        answering(message, add_own), [id, files, caption, *view[1:]], [message, files, *own],
        api_name="add_own_pictures",
    )  # fmt: skip
    gr.api(search_pictures, api_name="search_pictures")
    gr.api(add_picture, api_name="add_picture")


def _clicked(message: gr.HTML, handler: Callable[..., Updates]) -> Callable[..., Updates]:
    """`answering` for a handler of a click, whose data Gradio gives by annotation."""

    def clicked(project_id: str, known: list, count: int, versus: str, listed: list, event: gr.EventData) -> Updates:
        return answering(message, handler)(project_id, known, count, versus, listed, event=event)

    return clicked


def _search(project_id: str, words: str, model: Model) -> list:
    from bat_ui import additions
    from bat_ui.backbones import clip_of
    from bat_ui.choice import Choice

    choice = Choice.load(required(project_id).choice)
    clip = additions.clip_model(model.clip or clip_of(model.backbone))
    return additions.search_store(additions.store_of(choice), clip, words, template=template_of(model.backbone))


def _adder(project_id: str, picture: str, model: Model) -> Change:
    from bat_ui import additions
    from bat_ui.backbones import clip_of

    def add(choice, _sketches):
        clip = additions.clip_model(model.clip or clip_of(model.backbone))
        return additions.add_from_store(required(project_id), choice, additions.store_of(choice), clip, picture)

    return add


def _own_adder(project_id: str, files: list[str], caption: str, model: Model, problems: list[str]) -> Change:
    from bat_ui import additions
    from bat_ui.backbones import clip_of

    def add(choice, _sketches):
        if not files:
            raise UserError("There is no picture: choose some of your own.")
        clip = additions.clip_model(model.clip or clip_of(model.backbone))
        after, said = additions.add_own(required(project_id), choice, clip, [Path(file) for file in files], caption)
        problems.extend(said)
        return after

    return add


def _cards(project_id: str, listed: list[dict]) -> str:
    """What was found, each with what a click does."""
    from bat_ui.choice import Choice

    if not listed:
        return hint("Nothing was found.")
    choice = Choice.load(required(project_id).choice)
    taken, known = {c.id for c in choice.chosen}, {c.id for c in choice.candidates}
    buttons = "".join(
        f'<button type="button" class="found" data-id="{escape(row["id"])}"{" disabled" if row["id"] in taken else ""}>'
        f'<img src="{row["picture"]}" alt="" width="72" height="72"><span>{escape(row["caption"])}</span>'
        f"<b>{'Taken' if row['id'] in taken else 'Take' if row['id'] in known else 'Add'}</b></button>"
        for row in listed
    )
    return f'<div class="found-grid" role="group" aria-label="What was found">{buttons}</div>'

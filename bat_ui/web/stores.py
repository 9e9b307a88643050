"""Stores of pictures in step 2: which there are, which one is searched, and how people bring in pictures of their own.

In: clicks, an uploaded zip or a folder of the server (hostile until checked: store/catalogue.py).  Out: the chosen store's
name, a job of the queue.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path

import gradio as gr
from gradio.components import Component

from bat_ui import queue, registry
from bat_ui.errors import UserError
from bat_ui.project import Project, data_folder
from bat_ui.settings import SelectionSettings
from bat_ui.web.additions import data_uri
from bat_ui.web.parts import (
    Updates,
    alert,
    answering,
    fingerprint,
    hint,
    html,
    message_box,
    note,
    once_a_second,
    opened,
    progress_bar,
    refusing,
    required,
    stop_button,
    stop_verb,
)
from bat_ui.web.step import Model, Shared

TELL_WHICH = """element.addEventListener('click', (event) => {
    const card = event.target.closest('[data-store]');
    if (card) trigger('click', {store: card.dataset.store});
});"""
OWN_TITLE = "The model's own training pictures"


@dataclass(frozen=True)
class Stores:
    """`chosen` holds the name of the store to search, "" for the backbone's own; `show` and `components` as of a step."""

    chosen: gr.Textbox
    show: Callable[[Project | None], Updates]
    components: list[Component]


def build_stores(shared: Shared) -> Stores:
    """Lay out the list and the form and wire their events."""
    id, model, photos = shared.project, shared.model, shared.model.photos
    chosen = gr.Textbox("", visible=False, label="store")
    with gr.Accordion("Where to look", open=False, elem_id="stores") as panel:
        stores = gr.HTML("", js_on_load=TELL_WHICH, apply_default_css=False, elem_id="store-list")
        message = message_box("stores-message")
        with gr.Accordion("Bring in pictures", open=False):
            html(
                "<p class='facts'>A zip of pictures, 50 MB at most, each with its description in a text file of its name "
                "(cat.jpg, cat.txt), or in metadata.jsonl or a CSV.</p>"
            )
            with gr.Row():
                title = gr.Textbox(
                    "", label="Name of the store", placeholder="street cats", max_lines=1, elem_id="store-title"
                )
                rights = gr.Textbox("", label="Licence", placeholder="not stated", max_lines=1, elem_id="store-licence")
            stands_in = gr.Checkbox(
                True,
                label="They stand in for the model's training data",
                info="Leave this on unless the model was trained on these very pictures; report and model card will say so.",
                elem_id="store-proxy",
            )
            archive = gr.File(label="Zip of pictures", file_types=[".zip"], elem_id="store-upload", height=150)
            root = _root()
            with gr.Row(visible=root is not None, elem_id="folder-row"):
                folder = gr.Textbox(
                    "",
                    label="Or a folder of the server", info="Below the folder that was allowed when the page was started.",
                    max_lines=1, elem_id="store-folder", scale=3,
                )  # fmt: skip
                bring = gr.Button("Bring it in", elem_id="ingest-folder", scale=1, min_width=110)
        progress = html("", elem_id="ingest-panel")
        stop = gr.Button("Stop", visible=False, elem_id="stop-ingest", size="sm")
    listed = gr.State(False)  # nothing is, before somebody looks or something comes in
    own = [panel, stores, progress, stop, listed]

    def follow(project: Project | None, store: str) -> Updates:
        status = queue.status(project, "ingest")
        return {
            panel: gr.update(label=f"Where to look: {_title(store, photos)}"),
            stores: _list(store, photos),
            progress: _progress(status),
            stop: stop_button(status),
            listed: True,
        }

    def show(project: Project | None) -> Updates:
        store = project.remembered(SelectionSettings).store if project else ""
        return {panel: gr.update(label=f"Where to look: {_title(store, photos)}"), stores: "", progress: "", listed: False}

    def draw_again(project_id: str, store: str, listed: bool) -> Updates:
        project = opened(project_id)
        return follow(project, store) if listed or _busy(project) else gr.skip()

    def expand(project_id: str, store: str) -> Updates:
        return follow(opened(project_id), store)

    def choose(project_id: str, event: gr.EventData) -> Updates:
        store = chosen_store(event.store, model)
        return {chosen: store, **follow(opened(project_id), store)}

    def ingest_zip(project_id: str, file: str | None, name: str, licence: str, proxy: bool, store: str = "") -> Updates:
        """Make a store called `name` of an uploaded zip of pictures with captions, as a job of a project; `ingest_status`
        says how far it is."""
        from bat_ui.store.catalogue import keep_upload

        if not file:
            return {}
        place = _name(name)
        project = opened(project_id) or registry.make()  # not before all else is good
        _queue(project, model, str(keep_upload(Path(file))), place, name, licence, proxy, Path(file).stem)
        return {**follow(project, store), archive: None, id: project.folder.name}

    def ingest_folder(project_id: str, asked: str, name: str, licence: str, proxy: bool, store: str) -> Updates:
        source, place = _allowed(asked), _name(name)
        project = opened(project_id) or registry.make()
        _queue(project, model, str(source), place, name, licence, proxy)
        return {**follow(project, store), id: project.folder.name}

    def halt(project_id: str) -> Updates:
        project = required(project_id)
        stop_verb(project, "ingest")
        return {stop: stop_button(queue.status(project, "ingest"))}

    def ingest_server_folder(project: str, folder: str, name: str, licence: str = "", proxy: bool = True) -> str:
        """Make a store of a folder below the server's allowed one, as a job of a project; returns the store's name."""
        with refusing():
            source, place = _allowed(folder), _name(name)
            _queue(required(project), model, str(source), place, name, licence, proxy)
        return place

    def list_stores() -> list[dict]:
        """The stores that can be searched: name, title, size, source, licence, whether it is a proxy."""
        return [{key: value for key, value in row.items() if key != "samples"} for row in _stores(photos)]

    def ingest_status(project: str) -> dict:
        """How the last bringing in of pictures of a project stands: state, message, how many are done."""
        with refusing():
            status = queue.status(required(project), "ingest")
        return {"state": status["state"], "message": status.get("message", ""), "done": status.get("done", 0)}

    private = {"api_visibility": "private", "show_progress": "hidden", "concurrency_id": "look_at_stores"}
    shared.heartbeat.follow(_seen, [id, chosen], draw_again, [id, chosen, listed], own, "look_at_stores")
    panel.expand(expand, [id, chosen], own, **private)
    stores.click(answering(message, choose), id, [message, chosen, *own], **private)
    form = [title, rights, stands_in, chosen]
    archive.upload(answering(message, ingest_zip), [id, archive, *form], [id, message, archive, *own], api_name="ingest_zip")
    bring.click(answering(message, ingest_folder), [id, folder, *form], [id, message, *own], **private)
    stop.click(answering(message, halt), id, [message, stop], **private)
    for endpoint in (list_stores, ingest_server_folder, ingest_status):
        gr.api(endpoint, api_name=endpoint.__name__)
    return Stores(chosen, show, [panel, stores, progress, listed])


def chosen_store(name: str, model: Model) -> str:
    """The name of a store that is listed, "" for the backbone's own.  Raises UserError for any other name or place."""
    if name and name not in {listed["name"] for listed in _stores(model.photos)}:
        raise UserError("There is no such store: choose one from the list.")
    return name


def _stores(photos: bool) -> list[dict]:
    """What is listed; stickers, which the built-in backbone was trained on, are of no use to one for photos."""
    folder = data_folder() / "stores"
    markers = sorted(folder.glob("*/store.json"))
    rows = _read(tuple((str(path), path.stat().st_mtime_ns) for path in markers))
    return [row for row in rows if row["name"] or not photos]


@lru_cache(maxsize=2)
def _read(_changed: tuple) -> tuple[dict, ...]:
    from bat_ui.store.catalogue import OWN_STORE, list_stores  # here, since it takes seconds to import

    rows = []
    for listed in list_stores():
        name, info = Path(listed.place).name, listed.info
        facts = {"title": info.title, "pictures": info.count, "source": info.source, "licence": info.licence}
        row = {"name": name, **facts, "proxy": info.proxy, "samples": [data_uri(picture) for picture in listed.samples]}
        if name == OWN_STORE:
            rows.insert(0, row | {"name": "", "title": OWN_TITLE})
        else:
            rows.append(row)
    return tuple(rows)


def _title(store: str, photos: bool) -> str:
    if not store:
        return "choose a store" if photos else OWN_TITLE.lower()
    return next((f"“{row['title']}”" for row in _stores(photos) if row["name"] == store), "a store that is gone")


def _list(chosen: str, photos: bool) -> str:
    rows = _stores(photos)
    if photos and not rows:
        return hint("There is no store yet. Bring in pictures that the model was trained on, or ones like them.")
    if not photos and not any(row["name"] == "" for row in rows):
        rows.insert(0, {"name": "", "title": OWN_TITLE, "samples": [], "proxy": False})
    return f'<div class="stores" role="group" aria-label="Stores">{"".join(_card(row, chosen) for row in rows)}</div>'


def _card(row: dict, chosen: str) -> str:
    if "pictures" in row:
        source = f"from {row['source']}" if row["source"] else "source not stated"
        facts = f"{row['pictures']:,} pictures · {source} · licence: {row['licence']}"
    else:
        facts = "They are made ready at the first search."
    stands_in = "<span class='origin'>stands in for the model's training data</span>" if row["proxy"] else ""
    faces = "".join(f'<img src="{uri}" alt="" width="56" height="56">' for uri in row["samples"])
    return (
        f'<button type="button" class="store" data-store="{escape(row["name"])}" '
        f'aria-pressed="{str(row["name"] == chosen).lower()}"><b>{escape(row["title"])}</b>'
        f"<span>{escape(facts)}</span>{stands_in}<span class='faces'>{faces}</span></button>"
    )


def _progress(status: dict) -> str:
    if status["state"] in ("waiting", "running"):
        return progress_bar(status)
    if status["state"] == "failed":
        return alert(status.get("message") or "The pictures could not be brought in.")
    if status["state"] == "stopped":
        return note("Stopped. What was brought in so far stays; bring in the same pictures again to go on.")
    return note(status["message"]) if status["state"] == "done" and status.get("message") else ""


@once_a_second
def _busy(project: Project | None) -> bool:
    return queue.status(project, "ingest")["state"] in ("waiting", "running")


@once_a_second
def _seen(project_id: str, store: str) -> str:
    project = opened(project_id)
    times = "-".join(f"{path.stat().st_mtime_ns:x}" for path in (data_folder() / "stores").glob("*/store.json"))
    if project is None:
        return f"{times} {store}."
    state = queue.status(project, "ingest")["state"]
    return f"{times} {store} {fingerprint(project, project.status_file('ingest'), project.stop_file('ingest'))} {state}"


def _queue(
    project: Project, model: Model, source: str, place: str, title: str, licence: str, proxy: bool, called: str = ""
) -> None:
    """An ingest as a job; `called` names an upload's pictures, a folder's have its name."""
    from bat_ui.store.catalogue import clean_title
    from bat_ui.subject import plain_name

    licence = " ".join(licence.split())[:200]
    given = {"backbone": model.backbone, "clip": model.clip, "store": place, "title": clean_title(title)}
    given |= {"name": called and plain_name(called), "licence": licence}
    options = [f"--{name}={value}" for name, value in given.items() if value]
    queue.add(project, "ingest", [*options, *(["--proxy"] * proxy), "--", source])


def _name(title: str) -> str:
    from bat_ui.store.catalogue import new_store_name

    return new_store_name(title or "")


def _root() -> Path | None:
    from bat_ui.store.catalogue import ingest_root

    return ingest_root()


def _allowed(asked: str) -> Path:
    """The folder of the server that somebody asked for.  Raises UserError unless it is below the allowed one."""
    from bat_ui.store.catalogue import folder_under

    root = _root()
    if root is None:
        raise UserError("No folder of the server may be brought in: start the page with --ingest-root FOLDER to allow one.")
    if not asked.strip():
        raise UserError("Say which folder below the allowed one.")
    return folder_under(root, asked.strip())

"""Small parts that the steps share: messages, progress, pictures by address, events that answer errors in a sentence."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, wraps
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr
from gradio.components import Component

from bat_ui import queue, registry
from bat_ui.errors import UserError, explained
from bat_ui.project import Project, Run

log = logging.getLogger("bat_ui.web")

Updates = dict[Component, Any]
# One listener for all cards: a click, or Enter or Space on a focused card, tells which picture it was.
TELL_WHICH_PICTURE = """element.addEventListener('click', (event) => {
    const card = event.target.closest('[data-id]');
    if (!card || card.disabled) return;
    card.setAttribute('aria-busy', 'true');
    setTimeout(() => card.removeAttribute('aria-busy'), 8000);
    trigger('click', {id: card.dataset.id});
});"""
REVEAL = """new MutationObserver(() => element.querySelector('.bad')?.scrollIntoView({block: 'nearest'}))
    .observe(element, {childList: true, subtree: true});"""
UNEXPECTED = "Something unexpected went wrong; the terminal that runs the page says more. Nothing of yours was lost."


def html(value: str, elem_id: str | None = None, elem_classes: str | None = None) -> gr.HTML:
    """Plain markup in the page's own style."""
    return gr.HTML(value, elem_id=elem_id, elem_classes=elem_classes, js_on_load=None, apply_default_css=False)


def message_box(elem_id: str) -> gr.HTML:
    """Where a step says what is wrong, in sight even if the button that was pressed is far below."""
    return gr.HTML("", js_on_load=REVEAL, apply_default_css=False, elem_id=elem_id, elem_classes="message")


def alert(*sentences: str) -> str:
    """What is wrong, read out by screen readers."""
    lines = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
    return f'<div class="notice bad" role="alert">{lines}</div>' if sentences else ""


def note(*sentences: str) -> str:
    """What is good to know."""
    lines = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
    return f'<div class="notice" role="status">{lines}</div>' if sentences else ""


def hint(text: str) -> str:
    """What an empty place is for."""
    return f'<p class="empty">{escape(text)}</p>'


def answering(message: gr.HTML, handler: Callable[..., Updates]) -> Callable[..., Updates]:
    """The handler as an event's function: an error is said in `message`, everything else on the page stays."""

    @wraps(handler)
    def answered(*values, **named) -> Updates:
        try:
            return {message: "", **handler(*values, **named)}
        except Exception as problem:
            said = explained(problem)
            if said is None:
                log.exception("An event of the page failed")
            again = f"<!-- {time.monotonic_ns()} -->"  # so that what is said twice is shown twice
            return {message: alert(said or UNEXPECTED) + again}

    return answered


@contextmanager
def refusing() -> Iterator[None]:
    """For endpoints without a place on the page: a problem of the user becomes the answer's error."""
    try:
        yield
    except UserError as problem:
        raise gr.Error(str(problem), print_exception=False) from problem


def opened(id: str | None) -> Project | None:
    """The project with that id, None if there is none (any more)."""
    try:
        return registry.find(id or "")
    except UserError:
        return None


def required(id: str | None, sentence: str = "Choose pictures of your subject in step 1 first.") -> Project:
    """The project with that id.  Raises UserError if there is none (any more), with `sentence` where none is open."""
    if not id:
        raise UserError(sentence)
    return registry.find(id)


def run_among(runs: Sequence[Run], id: str | None) -> Run | None:
    """The run with that id, else the latest one; None where there is none."""
    return next((run for run in runs if run.folder.name == id), runs[-1] if runs else None)


def stop_verb(run: Run, verb: str, now: bool = False) -> None:
    """Stop a verb that waits or runs there; one that does neither is left as it is."""
    for job in queue.active():
        if job.place.folder == run.folder and job.verb == verb:
            queue.stop(job, now)


def stop_button(status: Mapping[str, Any], label: str = "Stop") -> Any:
    """The update of a verb's stop button: there while the verb waits or runs, and at rest once it was pressed."""
    waiting, running = status["state"] == "waiting", status["state"] == "running"
    stopping = running and status.get("stopping", False)
    value = "Take out of the queue" if waiting else "Stopping …" if stopping else label
    return gr.update(visible=waiting or running, value=value, interactive=not stopping)


def once_a_second(look: Callable[..., Any]) -> Callable[..., Any]:
    """`look`, by its arguments and at most once a second, whoever asks: many browsers may have one project open."""

    @lru_cache(maxsize=256)
    def kept(second: int, *values: Any) -> Any:
        return look(*values)

    @wraps(look)
    def shared(*values: Any) -> Any:
        return kept(int(time.monotonic()), *values)

    return shared


def fingerprint(run: Run, *files: Path) -> str:
    """A word that changes when the project, the run or one of the files does."""
    times = (file.stat().st_mtime_ns if file.exists() else 0 for file in files)
    return "-".join([str(run.folder), *(f"{time:x}" for time in times)])


def status_word(status: Mapping[str, Any]) -> str:
    """A word that changes when what the page says of a job's status does, but for how far it is, and with every job."""
    return f"{status.get('job', '')}{status['state']}{status.get('place', '')}{status.get('stopping', '')}"


def address(path: Path) -> str:
    """Where the browser finds a file of a project, relative to the page; new whenever the file is."""
    return f"gradio_api/file={quote(str(path))}?v={path.stat().st_mtime_ns:x}"


def small_pictures(folder: Path, rows: Iterable[Mapping[str, Any]], seeds: bool = False) -> str:
    """Samples of a listing, `file` in `folder`, each under a small picture with its prompt and, if `seeds`, its seed."""
    figures = []
    for row in rows:
        picture, prompt = escape(address(folder / row["file"])), escape(row["prompt"])
        seed = f" <small>seed {row['seed']}</small>" if seeds else ""
        figures.append(
            f'<figure><img src="{picture}" alt="{prompt}" width="112" height="112" loading="lazy">'
            f"<figcaption>{prompt}{seed}</figcaption></figure>"
        )
    return f'<div class="strip">{"".join(figures)}</div>'


def progress_bar(status: Mapping[str, Any]) -> str:
    """A waiting or running verb in words and as a bar, with the time that is left if it can be told."""
    if status["state"] == "waiting":
        return note(f"Waiting in the queue, place {status['place']}: it starts by itself when the device is free.")
    done, total, what = status["done"], status["total"], status["what"]
    if total <= 1:
        return f'<div class="run"><p>{escape(what)} …</p><progress aria-label="{escape(what)}"></progress></div>'
    left = time_left(status)
    words = f"{what}: {done:,} of {total:,}" + (f" · {left} left of this part" if left else "")
    return (
        f'<div class="run"><p>{escape(words)}</p>'
        f'<progress aria-label="{escape(what)}" value="{done}" max="{total}"></progress></div>'
    )


def time_left(status: Mapping[str, Any]) -> str:
    """Roughly how long the present part still takes, from its own pace; empty until there is one."""
    made, seconds = status["done"] - status.get("first", 0), status["updated"] - status["since"]
    if made < 1 or seconds < 2:
        return ""
    return duration((status["total"] - status["done"]) * seconds / made)


def duration(seconds: float) -> str:
    """Roughly how long that is, in words."""
    if seconds < 90:
        return f"about {max(round(seconds / 5) * 5, 5)} s"
    return f"about {seconds / 60:.0f} min" if seconds < 90 * 60 else f"about {seconds / 3600:.1f} h"

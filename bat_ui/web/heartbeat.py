"""How a page notices what changed: it asks for a few words once a second, and a step is drawn anew when its word differs.

In: for each step a function that gives a word.  Out: hidden boxes that hold the words, whose changes are ordinary events,
and the route that the page's script asks: many may look, and an event of Gradio costs many times as much as this route.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from bat_ui.web.parts import Updates

PATH = "/heartbeat"
SECONDS = 1.0  # between two looks of a page
A_SECOND = os.cpu_count() or 1  # looks that the server answers; where more browsers look, each looks less often
LONGEST = 30.0  # seconds between two looks of a page, however many look
LATE = 5.0  # seconds; a page that has not asked for twice its wait and these is gone and not counted

# The page keeps what it heard last, and tells a step of it when that step's tab is in sight.
ASK = """async (...values) => {
    const words = values.slice(%(about)d), about = JSON.stringify(values.slice(0, %(about)d)), tabs = %(tabs)s;
    const beat = window.batBeat ??= {page: Math.random().toString(36).slice(2), next: 0};
    const insight = tab => !tab || document.getElementById(tab)?.offsetParent;
    const heard = () => beat.about === about ? beat.words.map((word, i) => insight(tabs[i]) ? word : words[i]) : words;
    if (Date.now() < beat.next || document.hidden) return heard();
    beat.next = Infinity;
    let wait = 1;
    try {
        const asked = new URLSearchParams({page: beat.page, about});
        const answer = await fetch('.%(path)s?' + asked, {signal: AbortSignal.timeout(20000)});
        if (answer.ok) {
            const told = await answer.json();
            wait = told.wait;
            Object.assign(beat, {about, words: told.words});
        }
    } catch {
    } finally {
        beat.next = Date.now() + 1000 * wait - 500;
    }
    return heard();
}"""


@dataclass(frozen=True)
class _Part:
    """`look` gives the word from the values of `about`; `box` holds it in the page."""

    look: Callable[..., str]
    about: Sequence[Component]
    box: gr.Textbox


class Heartbeat:
    """What all steps look at, asked as one."""

    def __init__(self) -> None:
        self._parts: list[_Part] = []
        self._pages: dict[str, float] = {}  # when each page is taken for gone
        self.route = Route(PATH, self._answer)

    def follow(
        self,
        look: Callable[..., str],
        about: Sequence[Component],
        handler: Callable[..., Updates],
        inputs: Sequence[Component],
        outputs: Sequence[Component],
    ) -> None:
        """Draw `outputs` by `handler` whenever the word that `look` gives for the values of `about` becomes another one."""
        box = gr.Textbox("", visible=False, label="heartbeat")
        self._parts.append(_Part(look, about, box))
        box.change(handler, [*inputs], [*outputs], show_progress="hidden", api_visibility="private")

    def start(self) -> None:
        """Beat from now on; no more can be followed."""
        about = [component for part in self._parts for component in part.about]
        boxes = [part.box for part in self._parts]
        script = ASK % {"about": len(about), "path": PATH, "tabs": [_tab_of(box) for box in boxes]}
        gr.Timer(SECONDS).tick(None, [*about, *boxes], boxes, js=script, api_visibility="private")

    def words(self, values: Sequence[Any]) -> list[str]:
        """The words of all parts for the values of all that they are about, in order.  Raises ValueError for others."""
        if len(values) != sum(len(part.about) for part in self._parts):
            raise ValueError("these are not the values that the page asks about")
        if not all(value is None or isinstance(value, str) for value in values):
            raise ValueError("only words are asked about")
        words, values = [], list(values)
        for part in self._parts:
            own, values = values[: len(part.about)], values[len(part.about) :]
            word = part.look(*own)
            words.append(f"{hash(word):x}" if word else "")
        return words

    def wait(self, page: str) -> float:
        """Seconds until `page` should ask again: longer the more pages ask."""
        now = time.monotonic()
        others = {name: gone for name, gone in self._pages.items() if now < gone and name != page}
        wait = min(max(SECONDS, (len(others) + 1) / A_SECOND), LONGEST)
        self._pages = others | {page: now + 2 * wait + LATE}
        return wait

    def _answer(self, request: Request) -> JSONResponse | PlainTextResponse:
        if not _may_look(request):
            return PlainTextResponse("Log in first.", 401)
        try:
            values = json.loads(request.query_params.get("about", ""))
            if not isinstance(values, list):
                raise ValueError("a list is asked about")
            words = self.words(values)
        except (ValueError, RecursionError):
            return PlainTextResponse("Only the page's own script asks here.", 400)
        wait = self.wait(request.query_params.get("page", "")[:32])
        return JSONResponse({"words": words, "wait": wait}, headers={"Cache-Control": "no-store"})


def _tab_of(part: Block) -> str:
    """The id in the page of the tab that a part is in, "" where it is in none."""
    while part is not None and not isinstance(part, gr.Tab):
        part = part.parent
    return part.elem_id if part else ""


def _may_look(request: Request) -> bool:
    """Whether Gradio, asked by the same cookies, would let that browser in."""
    app = request.app
    names = (f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}")
    return app.auth is None or any(request.cookies.get(name) in app.tokens for name in names)

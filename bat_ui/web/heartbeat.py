"""How a page notices what changed: it asks once a second, and what differs is drawn anew.

In: functions that give the texts of parts that move all the time, and for each step one that gives a word for all the rest.
Out: the route that the page's script asks, and hidden boxes that hold the words, whose changes are ordinary events.  An
event of Gradio costs many times as much as this route, and keeps a browser busy with a clock that nobody sees meanwhile.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from bat_ui.web.parts import Updates, once_a_second

PATH = "/heartbeat"
SECONDS = 1.0  # between two looks of a page
A_SECOND = os.cpu_count() or 1  # looks that the server answers; where more browsers look, each looks less often
LONGEST = 30.0  # seconds between two looks of a page, however many look
LATE = 5.0  # seconds; a page that has not asked for twice its wait and these is gone and not counted

# The page keeps what it heard last, and tells a step of it when that step's tab is in sight.  Texts are put on the page when
# they come and not again, since an event may have changed them meanwhile; those that the page has are not sent again.
ASK = """async (...values) => {
    const asked = values.splice(0, %(about)d).map(value => value == null ? null : String(value));
    const about = JSON.stringify(asked), tabs = %(tabs)s, own = %(own)s;
    const words = values.splice(0, tabs.length), shown = values;
    const beat = window.batBeat ??= {page: Math.random().toString(36).slice(2), next: 0, told: []};
    const insight = tab => !tab || document.getElementById(tab)?.offsetParent;
    const known = () => beat.about === about ? words.map((word, i) => insight(tabs[i]) ? beat.words[i] : word) : words;
    if (Date.now() < beat.next || document.hidden) return [...known(), ...shown];
    beat.next = Infinity;
    beat.failed = (beat.failed ?? 0) + 1;
    let wait = 1, texts = shown;
    try {
        const has = own.map((tab, i) => insight(tab) ? beat.told[i]?.mark ?? '' : null);
        const query = new URLSearchParams({page: beat.page, about, has: JSON.stringify(has)});
        const answer = await fetch('.%(path)s?' + query, {signal: AbortSignal.timeout(20000)});
        if (answer.status === 401) location.reload();
        if (answer.ok) {
            beat.failed = 0;
            const told = await answer.json();
            wait = told.wait;
            told.texts.forEach((text, i) => { if (text) beat.told[i] = text; });
            texts = has.flatMap((mark, i) => mark === null ? Array(%(counts)s[i]).fill(null) : beat.told[i].texts);
            texts = texts.map((text, i) => text ?? shown[i]);
            Object.assign(beat, {about, words: told.words});
        }
    } catch {
    } finally {
        document.body.classList.toggle('lost', beat.failed > 3);
        beat.next = Date.now() + 1000 * wait - 500;
    }
    return [...known(), ...texts];
}"""


@dataclass(frozen=True)
class _Part:
    """`look` gives the word from the values of `about`; `box` holds it in the page."""

    look: Callable[..., str]
    about: Sequence[Component]
    box: gr.Textbox


@dataclass(frozen=True)
class _Mirror:
    """`draw` gives the texts of `outputs`, which are in one tab, from the values of `about`."""

    draw: Callable[..., Sequence[str]]
    about: Sequence[Component]
    outputs: Sequence[gr.HTML]


class Heartbeat:
    """What all steps look at, asked as one."""

    def __init__(self) -> None:
        self._parts: list[_Part] = []
        self._mirrors: list[_Mirror] = []
        self._pages: dict[str, float] = {}  # when each page is taken for gone
        self.route = Route(PATH, self._answer)

    def follow(
        self,
        look: Callable[..., str],
        about: Sequence[Component],
        handler: Callable[..., Updates],
        inputs: Sequence[Component],
        outputs: Sequence[Component],
        concurrency_id: str | None = None,
    ) -> None:
        """Draw `outputs` by `handler` whenever the word that `look` gives for the values of `about` becomes another one.

        Events with the same `concurrency_id` are answered in the order in which they came.  The choice among runs shares it
        with what draws the chosen one anew: else a late answer about the run before would be drawn over it.
        """
        box = gr.Textbox("", visible=False, label="heartbeat")
        self._parts.append(_Part(look, about, box))
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        box.change(handler, [*inputs], [*outputs], concurrency_id=concurrency_id, **quiet)

    def mirror(self, draw: Callable[..., Sequence[str]], about: Sequence[Component], outputs: Sequence[gr.HTML]) -> None:
        """Keep the texts of `outputs` as `draw` gives them for the values of `about`, while their tab is in sight."""
        self._mirrors.append(_Mirror(once_a_second(draw), about, outputs))

    def start(self) -> None:
        """Beat from now on; no more can be followed."""
        about = [component for part in (*self._parts, *self._mirrors) for component in part.about]
        boxes, shown = [part.box for part in self._parts], [output for part in self._mirrors for output in part.outputs]
        script = ASK % {
            "about": len(about),
            "path": PATH,
            "tabs": [_tab_of(box) for box in boxes],
            "own": [_tab_of(part.outputs[0]) for part in self._mirrors],
            "counts": [len(part.outputs) for part in self._mirrors],
        }
        gr.Timer(SECONDS).tick(
            None, [*about, *boxes, *shown], [*boxes, *shown], js=script, show_progress="hidden", api_visibility="private"
        )

    def answer(self, about: Any, has: Any) -> dict[str, list]:
        """`words` of all parts and `texts` of all mirrors for the values of all that they are about, in order.

        has: for each mirror the mark of the texts that the page has, "" for none, None where they are out of sight; no texts
        come (None) where they are that, or still the same.  Raises ValueError for other questions.
        """
        if not isinstance(about, list) or not all(value is None or isinstance(value, str) for value in about):
            raise ValueError("words are asked about")
        if not isinstance(has, list) or len(has) != len(self._mirrors):
            raise ValueError("each mirror's mark is wanted")
        if len(about) != sum(len(part.about) for part in (*self._parts, *self._mirrors)):
            raise ValueError("these are not the values that the page asks about")
        values = iter(about)
        words = [part.look(*islice(values, len(part.about))) for part in self._parts]
        texts: list[dict | None] = []
        for part, mark in zip(self._mirrors, has):
            own = tuple(islice(values, len(part.about)))
            drawn = None if mark is None else list(part.draw(*own))
            now = f"{hash(tuple(drawn)):x}" if drawn else mark
            texts.append(None if now == mark else {"mark": now, "texts": drawn})
        return {"words": [f"{hash(word):x}" if word else "" for word in words], "texts": texts}

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
            told = self.answer(*(json.loads(request.query_params.get(name, "")) for name in ("about", "has")))
        except (ValueError, RecursionError):
            return PlainTextResponse("Only the page's own script asks here.", 400)
        wait = self.wait(request.query_params.get("page", "")[:32])
        return JSONResponse(told | {"wait": wait}, headers={"Cache-Control": "no-store"})


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

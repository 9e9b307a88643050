"""Step 2 of the page: find backbone pictures that help, look at them, drop and keep some by hand.

In: a project with a subject.  Out: its selection.json, by a worker; revised here, in a moment, from the saved sketches.
"""

from __future__ import annotations

import threading
from contextlib import suppress

import gradio as gr

from bat_ui.errors import UserError
from bat_ui.project import Project
from bat_ui.settings import SelectionSettings, TrainingSettings
from bat_ui.web import candidates, workers
from bat_ui.web.binding import bound, remember, remembered, settings_from, shown
from bat_ui.web.parts import (
    Updates,
    alert,
    answering,
    fingerprint,
    hint,
    html,
    message_box,
    note,
    opened,
    progress_bar,
    refusing,
    required,
    stop_button,
)
from bat_ui.web.step import Shared, Step

RULES = [
    ("ALBAT: those that agree with your subject and teach the most about it", "albat"),
    ("Nearest: those that look most like it", "nearest"),
    ("Random: any", "random"),
    ("None: your pictures alone", "none"),
]
AT_ONCE = 60  # pictures shown before "Show more"

# One listener for all cards: a click, or Enter or Space on a focused card, tells which picture it was.
TELL_WHICH = """element.addEventListener('click', (event) => {
    const card = event.target.closest('[data-id]');
    if (!card) return;
    card.setAttribute('aria-busy', 'true');
    setTimeout(() => card.removeAttribute('aria-busy'), 8000);
    trigger('click', {id: card.dataset.id});
});"""

_revising = threading.Lock()  # a selection is read, revised and written by one event at a time


def build_backbone_step(shared: Shared) -> Step:
    """Lay out the step and wire its events."""
    id = shared.project
    html(
        "<h2>Pictures that help</h2><p>A model that learns from a few pictures alone forgets the rest. Some of the pictures "
        "that it was first trained on, shown again beside yours, keep it from that, if they are the right ones.</p>"
    )
    rule = gr.Radio(RULES, label="How to choose them", elem_id="rule", elem_classes="stacked")
    number = gr.Slider(
        0, 200, step=1, label="How many", info="0 takes as many as the predicted-error curve suggests.", elem_id="number"
    )
    with gr.Accordion("Advanced", open=False):
        with gr.Row():
            widgets = bound(
                SelectionSettings,
                {
                    "rule": rule,
                    "num_backbone": number,
                    "shortlist": gr.Number(
                        label="Candidates", info="Pictures that are looked at closely.", minimum=1, precision=0
                    ),
                    "surrogate_steps": gr.Number(
                        label="Surrogate steps", info="Of the short first training.", minimum=1, precision=0
                    ),
                    "draws": gr.Number(label="Draws", info="Noises for each candidate.", minimum=1, precision=0),
                    "sketch_size": gr.Number(
                        label="Sketch size", info="Numbers kept of each gradient.", minimum=1, precision=0
                    ),
                    "seed": gr.Number(label="Seed", info="Of everything random.", minimum=0, precision=0),
                },
            )
    with gr.Row():
        find = gr.Button("Find helpful pictures", variant="primary", elem_id="find")
        stop = gr.Button("Stop", visible=False, elem_id="stop-find")
    message = message_box("backbone-message")
    panel = html("", elem_id="backbone-panel")
    curve = html("", elem_id="curve")
    with gr.Row(visible=False, elem_id="pick-tools") as tools:
        summary = html("", elem_id="backbone-summary")
        undo = gr.Button("Undo", interactive=False, elem_id="undo", size="sm", scale=0)
        go_on = gr.Button("Go on to training", variant="primary", elem_id="to-training", size="sm", scale=0)
    cards = gr.HTML("", js_on_load=TELL_WHICH, apply_default_css=False, elem_id="candidates")
    more = gr.Button("Show more", visible=False, elem_id="show-more")
    with gr.Accordion("Groups and their verdicts", open=False, visible=False) as details:
        groups = html("", elem_id="groups")
    seen, order, limit, undone = gr.State(""), gr.State([]), gr.State(AT_ONCE), gr.State([])
    own = [find, stop, panel, summary, curve, tools, undo, cards, more, details, groups, seen, order]

    def follow(project: Project | None, known: list[str], count: int, can_undo: bool) -> Updates:
        """All but the settings; the cards stay where they are for as long as they are the same pictures."""
        now = _seen(project)  # before anything is read, so that a change meanwhile is noticed at the next tick
        status = project.status("select") if project else {"state": "absent"}
        running = status["state"] == "running"
        choice = None if running else _choice(project)
        if choice and sorted(known) != sorted(c.id for c in choice.candidates):
            known = [c.id for c in choice.candidates]
            if choice.rule == "albat":
                threading.Thread(target=_judge, args=(project,), daemon=True).start()  # before the first click needs it
        listed = choice is not None and bool(choice.candidates)
        return {
            find: gr.update(interactive=not running),
            stop: stop_button(project, "select"),
            panel: _panel(project, status, choice),
            summary: candidates.summary(choice) if choice else "",
            curve: candidates.curve(choice) if choice else "",
            tools: gr.update(visible=choice is not None),
            undo: gr.update(interactive=can_undo, visible=listed),
            cards: candidates.cards(project, choice, known[:count]) if listed else "",
            more: gr.update(visible=listed and len(known) > count),
            details: gr.update(visible=listed and bool(choice.groups)),
            groups: candidates.groups(project, choice) if listed and choice.groups else "",
            seen: now,
            order: known if listed else [],
        }

    def show(project: Project | None) -> Updates:
        updates = {**follow(project, [], AT_ONCE, False), limit: AT_ONCE, undone: [], message: ""}
        return {**shown(project, SelectionSettings, widgets), **updates}

    def tick(project_id: str, before: str, known: list, count: int, past: list) -> Updates:
        project = opened(project_id)
        if _seen(project) == before:
            return gr.skip()
        return follow(project, known, count, bool(past))

    def start(project_id: str, **values) -> Updates:
        project = required(project_id)
        if not project.subject_marker.is_file():
            raise UserError("Finish step 1 first: press “Use these pictures” there.")
        settings = settings_from(SelectionSettings, values)
        remember(project, settings)
        parts = [remembered(project, TrainingSettings), settings]
        workers.start(project, "select", [f"--backbone={shared.backbone}", *workers.options(parts)])
        return {**follow(project, [], AT_ONCE, False), limit: AT_ONCE, undone: []}

    def halt(project_id: str) -> Updates:
        project = required(project_id)
        workers.stop(project, "select")
        return {stop: stop_button(project, "select")}

    def revised(project_id: str, known: list, count: int, past: list, how) -> Updates:
        from bat_ui.choice import Choice  # here and below, since it takes seconds to import

        project = required(project_id)
        with _revising:
            if project.status("select")["state"] == "running":
                raise UserError("New pictures are being looked for: wait for them.")
            before = Choice.load(project.choice)
            after = how(before, project.sketches)
            if after != before:
                after.save(project.choice)
                past = [*past, (before.dropped, before.kept, before.num_backbone)]
        return {**follow(project, known, count, bool(past)), undone: past}

    def toggle_card(project_id: str, known: list, count: int, past: list, event: gr.EventData) -> Updates:
        from bat_ui.choice import toggle

        return revised(project_id, known, count, past, lambda choice, sketches: toggle(choice, event.id, sketches))

    def undo_last(project_id: str, known: list, count: int, past: list) -> Updates:
        from bat_ui.choice import revise

        if not past:
            return {}
        dropped, kept, m = past[-1]

        def back(choice, sketches):
            return revise(choice, sketches, dropped=dropped, kept=kept, num_backbone=m)

        updates = revised(project_id, known, count, past, back)
        return {**updates, undone: past[:-1], undo: gr.update(interactive=len(past) > 1)}

    def set_number(project_id: str, wanted: int | None, known: list, count: int, past: list) -> Updates:
        from bat_ui.choice import revise

        project = opened(project_id)
        if project is None or _choice(project) is None or not _choice(project).candidates:
            return {}

        def resize(choice, sketches):
            return revise(choice, sketches, dropped=choice.dropped, kept=choice.kept, num_backbone=wanted or None)

        return revised(project_id, known, count, past, resize)

    def show_more(project_id: str, known: list, count: int, past: list) -> Updates:
        project = required(project_id)
        return {**follow(project, known, count + AT_ONCE, bool(past)), limit: count + AT_ONCE}

    def toggle_picture(project: str, picture: str) -> list[str]:
        """Take a backbone picture, by its id, or drop it; returns the ids of all that are taken then."""
        from bat_ui.choice import Choice, toggle

        with refusing():
            revised(project, [], AT_ONCE, [], lambda choice, sketches: toggle(choice, picture, sketches))
            return [c.id for c in Choice.load(required(project).choice).chosen]

    view = [id, order, limit, undone]
    private = {"api_visibility": "private", "show_progress": "hidden"}
    shared.timer.tick(tick, [id, seen, order, limit, undone], own, queue=False, **private)
    find.click(
        answering(message, start), id, [message, limit, undone, *own], inputs_kwargs=widgets, api_name="find_pictures"
    )
    stop.click(answering(message, halt), id, [message, stop], api_name="stop_finding")
    cards.click(
        answering(message, toggle_card), view, [message, undone, *own],
        trigger_mode="multiple", concurrency_limit=1, **private,
    )  # fmt: skip
    gr.api(toggle_picture, api_name="toggle_picture")
    undo.click(answering(message, undo_last), view, [message, undone, *own], **private)
    number.release(answering(message, set_number), [id, number, order, limit, undone], [message, undone, *own], **private)
    more.click(answering(message, show_more), view, [message, limit, *own], **private)
    go_on.click(lambda: gr.Tabs(selected=3), None, shared.tabs, **private)
    return Step(show, [message, limit, undone, *widgets.values(), *own])


def _judge(project: Project) -> None:
    from bat_ui.choice import judge

    with suppress(UserError):
        judge(project.sketches)


def _choice(project: Project | None):
    from bat_ui.choice import Choice

    if project is None or not project.choice.is_file():
        return None
    return Choice.load(project.choice)


def _seen(project: Project | None) -> str:
    if project is None:
        return ""
    return (
        fingerprint(project, project.subject_marker, project.status_file("select"), project.choice)
        + (
            project.status("select")["state"]  # a worker that dies writes nothing
        )
    )


def _panel(project: Project | None, status: dict, choice) -> str:
    """What is going on, or what to do."""
    if status["state"] == "running":
        return progress_bar(status)
    if status["state"] == "failed":
        return alert(status.get("message") or "The search failed.")
    said = ""
    if status["state"] == "stopped":
        said = note("The search was stopped." + (" The earlier choice is still here." if choice else ""))
    if choice is None:
        return said or hint("No pictures are chosen yet.")
    subject = project.subject_marker
    if subject.is_file() and subject.stat().st_mtime_ns > project.choice.stat().st_mtime_ns:
        said += note("You changed your pictures since these were found: find helpful pictures again.")
    return said

"""Step 2 of the page: find backbone pictures that help, look at them, drop, keep and add some by hand.

In: a project with a subject.  Out: its selection.json, by a worker; revised here, in a moment, from the saved sketches.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import replace

import gradio as gr

from bat_ui import queue
from bat_ui.errors import UserError
from bat_ui.project import Project
from bat_ui.settings import SelectionSettings, TrainingSettings
from bat_ui.web import candidates, picks
from bat_ui.web.additions import build_additions
from bat_ui.web.binding import bound, settings_from, shown
from bat_ui.web.draft import check_used
from bat_ui.web.parts import (
    TELL_WHICH_PICTURE,
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
    required,
    status_word,
    stop_button,
    stop_verb,
)
from bat_ui.web.picks import Change
from bat_ui.web.step import Shared, Step
from bat_ui.web.stores import build_stores, chosen_store

RULES = [
    ("ALBAT: nearest to its class, without kinds that pull away from your subject", "albat"),
    ("Nearest: those that look most like it", "nearest"),
    ("Random: any", "random"),
    ("None: your pictures alone", "none"),
]
VERSUS = [("nothing", ""), *((name, rule) for rule, name in candidates.RULE_NAMES.items() if rule != "none")]
AT_ONCE = 60  # pictures shown before "Show all"
ALL = 100_000

TELL_WHICH_PICTURE_GROUP = """element.addEventListener('click', (event) => {
    const button = event.target.closest('[data-group]');
    if (button) trigger('click', {group: Number(button.dataset.group), take: button.dataset.take === 'true'});
});"""


def build_backbone_step(shared: Shared) -> Step:
    """Lay out the step and wire its events."""
    id, model = shared.project, shared.model
    html(
        "<h2>Pictures that help</h2><p>A model that learns from a few pictures alone forgets the rest. Some of the pictures "
        "that it was first trained on, shown again beside yours, keep it from that, if they are the right ones.</p>"
    )
    rule = gr.Radio(RULES, label="How to choose them", elem_id="rule", elem_classes="stacked")
    number = gr.Slider(
        0, 200, step=1, label="How many", info="0 takes as many as the predicted-error curve suggests.", elem_id="number"
    )
    store = build_stores(shared)
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
                        label="Surrogate steps", info="0: until your pictures are learned.", minimum=0, precision=0
                    ),
                    "draws": gr.Number(label="Draws", info="Noises for each candidate.", minimum=1, precision=0),
                    "sketch_size": gr.Number(
                        label="Sketch size", info="Numbers kept of each gradient.", minimum=1, precision=0
                    ),
                    "seed": gr.Number(label="Seed", info="Of everything random.", minimum=0, precision=0),
                    "store": store.chosen,
                },
            )
    with gr.Row():
        find = gr.Button("Find helpful pictures", variant="primary", elem_id="find")
        stop = gr.Button("Stop", visible=False, elem_id="stop-find")
    message = message_box("backbone-message")
    panel = html("", elem_id="backbone-panel")
    curve = html("", elem_id="curve")
    # Apart from what is drawn anew at every click, so that they stay open.
    symbols = gr.HTML(candidates.SYMBOLS, visible=False, js_on_load=None, apply_default_css=False, elem_id="curve-symbols")
    with gr.Row(visible=False, elem_id="pick-tools") as tools:
        summary = html("", elem_id="backbone-summary")
        undo = gr.Button("Undo", interactive=False, elem_id="undo", size="sm", scale=0)
        go_on = gr.Button("Go on to training", variant="primary", elem_id="to-training", size="sm", scale=0)
    with gr.Row(visible=False, elem_id="compare-tools") as comparing:
        versus = gr.Dropdown(
            VERSUS, value="", label="Compare with what another rule would choose", elem_id="versus", min_width=240
        )
        use_rule = gr.Button("Take its choice instead", visible=False, elem_id="use-rule", size="sm", scale=0)
    compared = html("", elem_id="compared")
    with gr.Accordion("Groups and their verdicts", open=False, visible=False) as details:
        groups = gr.HTML("", js_on_load=TELL_WHICH_PICTURE_GROUP, apply_default_css=False, elem_id="groups")
        html(candidates.SYMBOLS, elem_id="groups-symbols")
    cards = gr.HTML("", js_on_load=TELL_WHICH_PICTURE, apply_default_css=False, elem_id="candidates", render=False)
    more = gr.Button("Show all", visible=False, elem_id="show-more", render=False)
    further = gr.Accordion("Add pictures by hand", open=False, visible=False, elem_id="additions")
    order, limit = gr.State([]), gr.State(AT_ONCE)
    view = [id, order, limit, versus]
    own = [find, stop, panel, summary, curve, symbols, tools, undo, comparing, use_rule, compared]
    own += [cards, more, details, groups, further, order, number]

    def follow(project: Project | None, known: list[str], count: int, rule: str) -> Updates:
        """All but the settings; the cards stay where they are, those of added pictures come first."""
        status = queue.status(project, "select")
        busy = status["state"] in ("waiting", "running")
        choice = None if status["state"] == "running" else picks.choice_of(project)
        if choice and set(known) != {c.id for c in choice.candidates}:
            known = _order(choice, known)
            if choice.groups:
                threading.Thread(target=_judge, args=(project,), daemon=True).start()  # before the first click needs it
        listed = choice is not None and bool(choice.candidates)
        other = picks.other_choice(project, choice, rule) if listed and rule else None
        return {
            find: gr.update(interactive=not busy),
            stop: stop_button(status),
            panel: _panel(project, status),
            summary: candidates.summary(choice) if choice else "",
            curve: candidates.curve(choice) + candidates.when(choice) if choice else "",
            symbols: gr.update(visible=choice is not None and len(choice.errors) > 1),
            tools: gr.update(visible=choice is not None),
            undo: gr.update(interactive=listed and picks.can_undo(project), visible=listed),
            comparing: gr.update(visible=listed and bool(choice.comparable)),
            use_rule: gr.update(visible=other is not None and other.rule != choice.rule),
            compared: _compared(project, choice, other, rule) if listed and rule else "",
            cards: candidates.cards(project, choice, known[:count], other) if listed else "",
            more: gr.update(visible=listed and len(known) > count, value=f"Show all {len(known)}"),
            details: gr.update(visible=listed and bool(choice.groups)),
            groups: candidates.groups(project, choice) if listed and choice.groups else "",
            further: gr.update(visible=choice is not None),
            order: known if listed else [],
            number: gr.update(value=choice.num_backbone or 0) if choice and choice.groups else gr.skip(),
        }

    def show(project: Project | None) -> Updates:
        updates = {**follow(project, [], AT_ONCE, ""), limit: AT_ONCE, versus: "", message: ""}
        if updates[number] == gr.skip():
            del updates[number]
        return {**shown(project, SelectionSettings, widgets, model.photos), **updates}

    def draw_again(project_id: str, known: list, count: int, rule: str) -> Updates:
        updates = follow(opened(project_id), known, count, rule)
        if updates[order] == known:  # the same selection: its number may be under the reader's hand
            del updates[number]
        return updates

    def draw_panel(project_id: str) -> list[str]:
        project = opened(project_id)
        return [_panel(project, queue.status(project, "select"))]

    def start(project_id: str, **values) -> Updates:
        """Look for backbone pictures that help, in the queue; `project_status` says how far it is, under `search`."""
        project = required(project_id)
        if not project.subject_marker.is_file():
            raise UserError("Finish step 1 first: press “Use these pictures” there.")
        check_used(project)
        settings = settings_from(SelectionSettings, values)
        settings = replace(settings, store=chosen_store(settings.store, model))
        if model.photos and not settings.store and settings.rule != "none":
            raise UserError("This model comes without pictures: choose a store, or bring one in, at “Where to look”.")
        parts = [project.remembered(TrainingSettings, model.photos), settings]
        queue.add(project, "select", [*model.options, *queue.options(parts)])
        project.remember(settings)
        return {**follow(project, [], AT_ONCE, ""), limit: AT_ONCE, versus: ""}

    def halt(project_id: str) -> Updates:
        """Stop looking for backbone pictures; an earlier choice stays."""
        project = required(project_id)
        stop_verb(project, "select")
        return {stop: stop_button(queue.status(project, "select"))}

    def revised(project_id: str, known: list, count: int, rule: str, change: Change, whole: bool = False) -> Updates:
        project = required(project_id)
        picks.revise(project, change, whole)
        return follow(project, known, count, rule)

    def toggle_card(project_id: str, known: list, count: int, rule: str, event: gr.EventData) -> Updates:
        return revised(project_id, known, count, rule, picks.toggled(event.id))

    def click_group(project_id: str, known: list, count: int, rule: str, event: gr.EventData) -> Updates:
        return revised(project_id, known, count, rule, picks.group_marked(event.group, event.take))

    def compare(project_id: str, known: list, count: int, rule: str) -> Updates:
        return follow(required(project_id), known, count, rule)

    def take_rule(project_id: str, known: list, count: int, rule: str) -> Updates:
        return {**revised(project_id, [], count, "", picks.by_rule(rule), whole=True), versus: ""}

    def undo_last(project_id: str, known: list, count: int, rule: str) -> Updates:
        project = required(project_id)
        before = picks.choice_of(project)
        after = picks.undo(project)
        return follow(project, known if after is None or after.rule == before.rule else [], count, rule)

    def set_number(project_id: str, wanted: int | None, known: list, count: int, rule: str) -> Updates:
        project = opened(project_id)
        choice = picks.choice_of(project)
        if choice is None or not choice.looked_at:
            return {}
        return revised(project_id, known, count, rule, picks.resized(wanted))

    def show_all(project_id: str, known: list, rule: str) -> Updates:
        return {**follow(required(project_id), known, ALL, rule), limit: ALL}

    with further:
        build_additions(shared, view, own, revised)
    cards.render()
    more.render()
    private = {"api_visibility": "private", "show_progress": "hidden", "concurrency_id": "look_at_candidates"}
    each = {"trigger_mode": "multiple", **private}  # a click while the one before is answered counts, too
    shared.heartbeat.follow(_seen, [id], draw_again, view, own, "look_at_candidates")
    shared.heartbeat.mirror(draw_panel, [id], [panel])
    find.click(
        answering(message, start), id, [message, limit, versus, *own], inputs_kwargs=widgets, api_name="find_pictures"
    )
    stop.click(answering(message, halt), id, [message, stop], api_name="stop_finding")
    cards.click(answering(message, toggle_card), view, [message, *own], **each)
    groups.click(answering(message, click_group), view, [message, *own], **each)
    versus.input(answering(message, compare), view, [message, *own], **private)
    use_rule.click(answering(message, take_rule), view, [message, versus, *own], **private)
    picks.build_endpoints()
    undo.click(answering(message, undo_last), view, [message, *own], **each)
    latest = {"trigger_mode": "always_last", **private}
    number.release(answering(message, set_number), [id, number, *view[1:]], [message, *own], **latest)
    more.click(answering(message, show_all), [id, order, versus], [message, limit, *own], **private)
    go_on.click(lambda: gr.Tabs(selected=3), None, shared.tabs, **private)

    def show_step(project: Project | None) -> Updates:
        return {**show(project), **store.show(project)}

    return Step(show_step, [message, limit, versus, *widgets.values(), *own, *store.components])


def _order(choice, known: list[str]) -> list[str]:
    """All candidates' ids: in the order in which they lie on the page, added ones before them; else as they are ranked."""
    ids = [c.id for c in choice.candidates]
    kept = [id for id in known if id in set(ids)]
    if len(kept) < len(known) // 2 or not kept:  # another selection
        kept = [c.id for c in choice.looked_at]
    return [id for id in ids if id not in set(kept)] + kept


def _compared(project: Project, choice, other, rule: str) -> str:
    from bat_ui.choice import predicted_error

    if other is None:
        name = candidates.RULE_NAMES.get(rule, rule)
        return note(
            f"What “{name}” would choose is not known: find helpful pictures by ALBAT once, then all can be compared."
        )
    errors = tuple(predicted_error(one, project.sketches) for one in (choice, other))
    return candidates.comparison(choice, other, errors)


def _judge(project: Project) -> None:
    from bat_ui.choice import judge

    with suppress(UserError):
        judge(project.sketches)


@once_a_second
def _seen(project_id: str) -> str:
    project = opened(project_id)
    if project is None:
        return ""
    status = queue.status(project, "select")  # a worker that dies writes nothing, and the queue moves on
    return fingerprint(project, project.subject_marker, project.choice) + status_word(status)


def _panel(project: Project | None, status: dict) -> str:
    """What is going on, or what to do."""
    if status["state"] in ("waiting", "running"):
        return progress_bar(status)
    if status["state"] == "failed":
        return alert(status.get("message") or "The search failed.")
    said, found = "", project is not None and project.choice.is_file()
    if status["state"] == "stopped":
        said = note("The search was stopped." + (" The earlier choice is still here." if found else ""))
    if not found:
        return said or hint("No pictures are chosen yet.")
    if project.is_outdated:
        said += note("You changed your pictures since these were found: find helpful pictures again.")
    return said

"""Changes of the choice by hand, one at a time: for the clicks of step 2, and for programs as endpoints of their own.

In: a project and what to change.  Out: its choice, saved so that the change can be undone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr

from bat_ui.errors import UserError
from bat_ui.project import Project
from bat_ui.web.parts import refusing, required

if TYPE_CHECKING:  # it takes seconds to import, and the page should be up before; so below, too
    from bat_ui.choice import Choice

Change = Callable[["Choice", Path], "Choice"]  # of a choice and the file of its sketches

_revising = threading.Lock()  # a choice is read, revised and written by one event at a time


def choice_of(project: Project | None) -> Choice | None:
    """The choice that was made in a project; None before."""
    from bat_ui.choice import Choice

    if project is None or not project.choice.is_file():
        return None
    return Choice.load(project.choice)


def other_choice(project: Project, choice: Choice, rule: str) -> Choice | None:
    """What another rule would choose; None if it cannot tell from this choice."""
    from bat_ui import choice as choices

    return choices.by_rule(choice, rule, project.sketches) if rule in choice.comparable else None


def revise(project: Project, change: Change, whole: bool = False) -> Choice:
    """Change the choice by hand; `whole`: so much that undoing needs all of it.  Raises UserError while a search runs."""
    from bat_ui import history
    from bat_ui.choice import Choice

    with _revising:
        if project.status("select")["state"] == "running":
            raise UserError("New pictures are being looked for: wait for them.")
        before = Choice.load(project.choice)
        after = change(before, project.sketches)
        history.save_change(project, before, after, whole)
    return after


def can_undo(project: Project) -> bool:
    """Whether something was changed by hand since the search."""
    from bat_ui import history

    return history.can_undo(project)


def undo(project: Project) -> Choice | None:
    """Take the last change by hand back; None if there is none."""
    from bat_ui import history

    with _revising:
        return history.undo(project)


def toggled(picture: str) -> Change:
    """One picture dropped, or taken."""
    from bat_ui.choice import toggle

    return lambda choice, sketches: toggle(choice, picture, sketches)


def group_marked(group: int, take: bool) -> Change:
    """A group taken, or dropped, as a whole."""
    from bat_ui.choice import mark_group

    return lambda choice, sketches: mark_group(choice, group, take, sketches)


def resized(number: int | None) -> Change:
    """That many pictures; without a number as many as the predicted-error curve suggests."""
    from bat_ui import choice as choices

    return lambda choice, sketches: choices.revise(
        choice, sketches, dropped=choice.dropped, kept=choice.kept, num_backbone=number or None
    )


def by_rule(rule: str) -> Change:
    """What another rule would choose from the same candidates."""
    from bat_ui import choice as choices

    return lambda choice, sketches: choices.by_rule(choice, rule, sketches)


def taken(choice: Choice) -> list[str]:
    """The ids of all pictures that are taken."""
    return [c.id for c in choice.chosen]


def build_endpoints() -> None:
    """For programs, each by its function's name."""
    for endpoint in (toggle_picture, toggle_group, choose_number, undo_picture, compare_rules, use_rule):
        gr.api(endpoint, api_name=endpoint.__name__)


def toggle_picture(project: str, picture: str) -> list[str]:
    """Take a backbone picture, by its id, or drop it; returns the ids of all that are taken then."""
    with refusing():
        return taken(revise(required(project), toggled(picture)))


def toggle_group(project: str, group: int, take: bool) -> list[str]:
    """Take all backbone pictures of a group, or drop them; returns the ids of all that are taken then."""
    with refusing():
        return taken(revise(required(project), group_marked(group, take)))


def choose_number(project: str, number: int = 0) -> list[str]:
    """Take that many backbone pictures, 0 for as many as the predicted-error curve suggests, beside those that were kept
    by hand; returns the ids of all that are taken then."""
    with refusing():
        if number < 0:
            raise UserError("Fewer than none cannot be taken: give 0 or more.")
        return taken(revise(required(project), resized(number)))


def use_rule(project: str, rule: str) -> list[str]:
    """Make the choice what another rule would choose from the same candidates; returns the ids that are taken then."""
    with refusing():
        return taken(revise(required(project), by_rule(rule), whole=True))


def undo_picture(project: str) -> list[str]:
    """Take the last change by hand back; returns the ids of all pictures that are taken then."""
    from bat_ui.choice import Choice

    with refusing():
        found = required(project)
        return taken(undo(found) or Choice.load(found.choice))


def compare_rules(project: str) -> list[dict]:
    """What each rule would choose from the same candidates, as many as are taken now, with its predicted error."""
    from bat_ui.choice import Choice, predicted_error

    with refusing():
        found, rows = required(project), []
        choice = Choice.load(found.choice)
        for rule in choice.comparable:
            other = other_choice(found, choice, rule)
            ids = [c.id for c in other.looked_at if c.chosen]
            rows.append({"rule": rule, "taken": ids, "predicted_error": predicted_error(other, found.sketches)})
    return rows

"""What was changed by hand in a choice, step by step, on disk: so that it can be undone after a reload, too.

In: a project and its choice before a change.  Out: history.json; a new selection begins without one (line.select).
"""

from __future__ import annotations

from dataclasses import asdict

from bat_ui.choice import Candidate, Choice, revise
from bat_ui.files import read_json, write_json
from bat_ui.project import Project

MOST = 200  # changes that can be undone
PARTS = ("dropped", "kept", "num_backbone")


def can_undo(project: Project) -> bool:
    """True if something was changed by hand since the selection."""
    return bool(read_json(project.choice_history))


def save_change(project: Project, before: Choice, after: Choice, whole: bool = False) -> None:
    """Save a choice that was changed by hand so that it can be undone: for a change of rule, the choice as a `whole`."""
    if after == before:
        return
    past = read_json(project.choice_history) or []
    noted = {part: getattr(before, part) for part in PARTS} | {"extra": [asdict(c) for c in before.extra]}
    write_json(project.choice_history, [*past, {"choice": asdict(before)} if whole else noted][-MOST:])
    after.save(project.choice)


def undo(project: Project) -> Choice | None:
    """The choice as it was before the last change, saved; None if there is nothing to undo."""
    past = read_json(project.choice_history)
    if not past:
        return None
    choice = _before(Choice.load(project.choice), past[-1], project)
    choice.save(project.choice)
    write_json(project.choice_history, past[:-1])
    return choice


def _before(choice: Choice, noted: dict, project: Project) -> Choice:
    if "choice" in noted:
        return Choice.from_record(noted["choice"])
    extra = tuple(Candidate(**c) for c in noted.get("extra", ()))
    return revise(choice, project.sketches, **{part: noted[part] for part in PARTS}, extra=extra)

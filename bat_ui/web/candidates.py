"""How a choice of backbone pictures looks: summary, predicted-error curve, cards, groups, all as markup.

In: a `Choice` and the project that holds its pictures.  Out: HTML.  Everything that is shown comes from the choice; what
a rule does not compute is not shown.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from bat_ui.project import Project
from bat_ui.web.charts import Mark, Series, line_chart
from bat_ui.web.parts import address

if TYPE_CHECKING:  # it takes seconds to import, and the page should be up before
    from bat_ui.choice import Candidate, Choice

VERDICTS = {
    "valid": "agrees with your subject",
    "doubtful": "may disagree with your subject",
    "harmful": "pulls away from your subject",
    "too small to judge": "too few alike to judge",
}


def summary(choice: Choice) -> str:
    """How many are taken and what that is predicted to bring."""
    taken, total = len(choice.chosen), len(choice.candidates)
    if not total:
        return "<p>No backbone pictures: training will see your pictures alone.</p>"
    words = f'<b id="taken">{taken} of {total} taken</b>'
    by_hand = len(choice.dropped) + len(choice.kept)
    if by_hand:
        words += f", {by_hand} changed by hand"
    if not taken:
        words += ": none was found that is sure to agree with your subject. Take some by hand, or train without."
    elif taken < len(choice.errors):
        words += f": the predicted error falls to {choice.errors[taken] / choice.errors[0]:.0%} of what it is without any."
    else:
        words += "."
    return f"<p>{words}</p><p>Click a picture to drop or take it. Pictures stay where they are; ranks follow.</p>"


def curve(choice: Choice) -> str:
    """The predicted-error curve with the present choice and the bend; empty for rules that predict nothing."""
    if len(choice.errors) < 2:
        return ""
    points = list(enumerate(float(e) for e in choice.errors))
    taken = min(len(choice.chosen), len(points) - 1)
    marks = [Mark(taken, points[taken][1], f"{taken} taken")]
    if choice.knee is not None and choice.knee != taken and choice.knee < len(points):
        marks.insert(0, Mark(choice.knee, points[choice.knee][1], f"bend at {choice.knee}", "bend"))
    return line_chart(
        [Series("", points, "line")],
        x_label="backbone pictures",
        y_label="Predicted error, 1 = without backbone pictures",
        description=f"The predicted error falls from 1 without backbone pictures to {points[taken][1]:.2f} with {taken}.",
        marks=marks,
    )


def cards(project: Project, choice: Choice, ids: list[str]) -> str:
    """The candidates with these ids as buttons that are pressed where a picture is taken."""
    by_id = {c.id: c for c in choice.candidates}
    buttons = "".join(_card(project, choice, by_id[id]) for id in ids)
    return f'<div class="grid" role="group" aria-label="Backbone pictures">{buttons}</div>'


def _card(project: Project, choice: Choice, c: Candidate) -> str:
    facts = []
    if c.similarity is not None:
        facts.append(f"CLIP similarity {c.similarity:.2f}")
    if c.verdict:
        facts.append(VERDICTS.get(c.verdict, c.verdict))
    if c.gain is not None and choice.errors:
        facts.append(f"lowers the predicted error by {_percent(c.gain)}")
    hand = "kept by hand" if c.id in choice.kept else "dropped by hand" if c.id in choice.dropped else ""
    picture = project.candidate_picture(c.id)
    source = escape(address(picture)) if picture.is_file() else ""
    return (
        f'<button type="button" class="pick {escape((c.verdict or "").split(" ")[0])}" data-id="{escape(c.id)}" '
        f'aria-pressed="{str(c.chosen).lower()}">'
        f'<img src="{source}" alt="" loading="lazy" width="96" height="96">'
        f'<span class="rank">{f"#{c.rank}" if c.rank else "–"}</span><span class="tick" aria-hidden="true">✓</span>'
        f"<b>{escape(c.caption)}</b>" + "".join(f"<span>{escape(fact)}</span>" for fact in facts)
        + (f"<i>{hand}</i>" if hand else "") + "</button>"
    )  # fmt: skip


def groups(project: Project, choice: Choice) -> str:
    """A table of the groups: some of their pictures, the verdict, what it rests on."""
    rows = []
    for group in choice.groups:
        members = [c for c in choice.candidates if c.group == group["group"]]
        low, high = group["interval"]
        rows.append(
            f"<tr><td>{''.join(_face(project, c) for c in members[:5])}</td><td>{_verdict(group['verdict'])}</td>"
            f"<td>{sum(c.chosen for c in members)} of {group['size']}</td>"
            f"<td>{group['disagreement']:.2f} <small>({low:.2f} to {high:.2f})</small></td></tr>"
        )
    titles = "".join(f"<th>{title}</th>" for title in ("Group", "Verdict", "Taken", "Disagreement"))
    return (
        "<p>Pictures that look alike are judged together. Disagreement is 0 where a group pulls the adapter just where "
        "your pictures do, and 1 where it is as far off as an adapter that knows nothing.</p>"
        f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _percent(part: float) -> str:
    return f"{part:.1%}" if part >= 0.0005 else "less than 0.1%"


def _face(project: Project, c: Candidate) -> str:
    file = project.candidate_picture(c.id)
    if not file.is_file():
        return ""
    return f'<img src="{escape(address(file))}" alt="{escape(c.caption)}" loading="lazy" width="40" height="40">'


def _verdict(verdict: str) -> str:
    return escape(VERDICTS.get(verdict, verdict))

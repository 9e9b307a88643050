"""How a choice of backbone pictures looks: summary, predicted-error curve, cards, groups, all as markup.

In: a `Choice` and the project that holds its pictures.  Out: HTML.  Everything that is shown comes from the choice; what
a rule does not compute is not shown.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from bat_ui.project import Project
from bat_ui.web.charts import Mark, Series, line_chart
from bat_ui.web.parts import address

if TYPE_CHECKING:  # it takes seconds to import, and the page should be up before
    from bat_ui.choice import Candidate, Choice

VERDICTS = {
    "valid": "close enough to help",
    "doubtful": "may pull away from your subject",
    "harmful": "pulls away from your subject",
    "too small to judge": "too few alike to judge",
}
RULE_NAMES = {
    "albat": "ALBAT",
    "without_validity": "ALBAT without asking whether they agree",
    "by_group": "ALBAT from the kinds that teach most, near or not",
    "nearest": "Nearest",
    "random": "Random",
    "none": "None",
}
ORIGINS = {"added": "added by you", "own": "your own picture"}
MISFIT = "Its caption hardly fits it."
SYMBOLS = """<details class="symbols"><summary>The symbols behind these words</summary>
<p>A picture's <b>kind</b> is its group <i>j</i> by k-means in CLIP space. Its <b>disagreement</b> is λ<sub>j</sub>δ: the
variance λ<sub>j</sub> by which the group's best adapter differs from your subject's, beside the variance 1/δ of an adapter
that knows nothing, estimated by maximum marginal likelihood of the group's summed gradient
G<sub>j</sub> ~ N(0, σ²[H<sub>j</sub> + H<sub>j</sub>(C + λ<sub>j</sub>I)H<sub>j</sub>]). <b>Evidence</b> is the likelihood
ratio of the best λ<sub>j</sub> against 0 (Proposition 1).</p>
<p>Its <b>best weight</b> is the λ at which training on your pictures and this kind alone has the lowest predicted
error.</p>
<p>The <b>predicted error</b> of a set S is tr(Q M<sub>S</sub>) + Σ<sub>j</sub> λ<sub>j</sub> tr(Q M<sub>S</sub>
H<sub>S,j</sub>² M<sub>S</sub>) with
M<sub>S</sub> = (C<sup>−1</sup> + Σ<sub>S</sub> w<sub>c</sub> H<sub>c</sub>/σ²)<sup>−1</sup>:
what your few pictures leave open and what disagreeing kinds bring in, at the weights w<sub>c</sub> that training gives, as a
part of the error with no S. Pictures are added one by one, nearest to your class
prompt in CLIP space first and those of kinds that pull away last, until most of what can be won is won, 40
at least (Proposition 2).</p></details>"""


def summary(choice: Choice) -> str:
    """How many are taken and what that is predicted to bring."""
    taken, total = len(choice.chosen), len(choice.candidates)
    if not total:
        return "<p>No backbone pictures: training will see your pictures alone.</p>"
    words = f'<b id="taken">{taken} of {total} taken</b>'
    if choice.rule != "albat":
        words += f" by the rule “{escape(RULE_NAMES.get(choice.rule, choice.rule))}”"
    added = sum(c.unchecked for c in choice.chosen)
    looked_at = taken - added
    by_hand = len(choice.dropped) + len(choice.kept)
    if by_hand:
        words += f", {by_hand} changed by hand"
    if not taken:
        words += ": training will see your pictures alone."
    elif looked_at and looked_at < len(choice.errors):
        error = choice.errors[looked_at] / choice.errors[0]
        times = "" if abs(choice.strength - 1) < 0.05 else f"{choice.strength:.2g} times "
        weight = f"in the end they count {times}as much as your pictures"
        agreed = ", if all kinds agreed with your subject," if choice.rule == "without_validity" else ""
        if error < 1:
            words += f": {weight}, and the predicted error{agreed} falls to {error:.0%} of what it is without any."
        else:
            words += f": the prediction sees no help in them; {weight}, to keep yours from being learned by heart."
    else:
        words += "."
    if misfits := [c for c in choice.chosen if not c.caption_fits]:
        have = "has a caption that hardly fits" if len(misfits) == 1 else "have captions that hardly fit"
        named = ", ".join(f"“{escape(c.caption)}”" + (f" (#{c.rank})" if c.rank else "") for c in misfits[:3])
        more = " and others" if len(misfits) > 3 else ""
        words += f" {len(misfits)} of them {have}, and wrong words teach wrong things: look at {named}{more}."
    if added:
        words += (
            f" <span id='unchecked'>{added} added by you {'are' if added > 1 else 'is'} not checked and not counted in "
            "the prediction; “Find helpful pictures” by ALBAT checks them, too.</span>"
        )
    return f"<p>{words}</p><p>Click a picture to drop or take it. Pictures stay where they are; ranks follow.</p>"


def curve(choice: Choice) -> str:
    """The predicted-error curve with the present and the default number; empty for rules that predict nothing."""
    if len(choice.errors) < 2:
        return ""
    points = list(enumerate(float(e) for e in choice.errors))
    taken = min(sum(c.chosen for c in choice.looked_at), len(points) - 1)
    marks = [Mark(taken, points[taken][1], f"{taken} taken")]
    said = f"The predicted error goes from 1 without backbone pictures to {points[taken][1]:.2f} with {taken}."
    suggested = choice.knee is not None and 0 < choice.knee < len(points)
    if suggested and choice.knee == taken:
        marks = [Mark(taken, points[taken][1], f"{taken} taken, as suggested")]
    elif suggested:
        marks.insert(0, Mark(choice.knee, points[choice.knee][1], f"{choice.knee} suggested", "suggested"))
    chart = line_chart(
        [Series("", points, "line")],
        x_label="backbone pictures",
        y_label="Predicted error, 1 = without backbone pictures",
        description=said,
        marks=marks,
    )
    best = min(points, key=lambda p: p[1])
    tells = f"The curve says how much is left to go wrong with so many pictures: lowest with {best[0]} ({best[1]:.2f})."
    if suggested and best[0] >= choice.knee:
        won = (points[0][1] - points[choice.knee][1]) / (points[0][1] - best[1])
        tells += f" {won:.0%} of that fall is won with {choice.knee}, as suggested"
        if points[-1][1] > best[1] + 0.01:
            tells += "; with many more it rises again."
        else:
            tells += f"; more of them {'repeat what is known' if won > 0.9 else 'count for little each'}."
    elif suggested:
        tells += (
            f" {choice.knee} are suggested all the same: fewer would be learned by heart, which the curve does not know."
        )
    tells += " It weighs pictures by theory; in our tests it did not foretell which choice trained best."
    return f"{chart}<p class='facts'>{tells}</p>"


def when(choice: Choice) -> str:
    """The loss of left-out pictures over steps with its turning point, in words too; empty where nobody left any out."""
    if not choice.left_out:
        return ""
    points = [(row["step"], row["loss"]) for row in choice.left_out]
    turning, lowest, last = choice.subject_steps, min(points, key=lambda point: point[1])[0], points[-1][0]
    tells = "An adapter of some of your pictures was tried on the others. "
    if last == lowest:
        tells += f"To the end of the trial it got no worse: backbone pictures come in late, from step {turning} on."
    elif last == turning:
        tells += f"It was best at about step {lowest} and hardly worse to the end of the trial: backbone pictures come in "
        tells += f"late, from step {turning} on."
    elif turning == points[0][0]:
        tells += (
            "It was best after a few steps, because your pictures differ so much: backbone pictures come in almost at once."
        )
    elif turning == lowest:
        tells += f"It got better until about step {turning}, then it learned by heart: backbone pictures come in there."
    else:
        tells += f"It was best at about step {lowest} and hardly worse up to step {turning}, then it learned by heart: "
        tells += "backbone pictures come in there."
    if choice.chosen:
        tells += " From there on they count more and more, so that yours are not learned by heart after all: in the last "
        tells += f"steps yours are {1 / (1 + choice.strength):.0%} of what is learned. In a run of fewer than "
        tells += f"{2 * turning} steps they come in at half of it."
    chart = line_chart(
        [Series("", points, "line")],
        x_label="training steps",
        y_label="Loss of your own pictures that an adapter has not seen",
        description=tells,
        marks=[Mark(turning, float(np.interp(turning, *zip(*points))), f"backbone pictures from step {turning}")],
        zero=False,
    )
    return f"{chart}<p class='facts'>{tells}</p>"


def cards(project: Project, choice: Choice, ids: list[str], other: Choice | None = None) -> str:
    """The candidates with these ids as buttons that are pressed where a picture is taken, with marks of what `other`,
    the choice of another rule, takes or drops."""
    by_id = {c.id: c for c in choice.candidates}
    theirs = None if other is None else {c.id for c in other.chosen}
    buttons = "".join(_card(project, choice, by_id[id], _mark(by_id[id], other, theirs)) for id in ids)
    return f'<div class="grid" role="group" aria-label="Backbone pictures">{buttons}</div>'


def _card(project: Project, choice: Choice, c: Candidate, mark: str) -> str:
    facts = [] if c.similarity is None else [f"CLIP similarity: subject {c.similarity:.2f}"]
    if facts and c.class_similarity is not None:
        facts[0] += f", class {c.class_similarity:.2f}"
    facts.append(choice.reason(c))
    picture, small = project.candidate_picture(c.id), project.candidate_thumbnail(c.id)
    shown = small if small.is_file() else picture
    source = escape(address(shown)) if shown.is_file() else ""
    rank = f"#{c.rank}" if c.rank else "–"
    label = f'<span class="origin">{ORIGINS[c.origin]}</span>' if c.origin in ORIGINS else ""
    return (
        f'<button type="button" class="pick {escape((c.verdict or c.origin).split(" ")[0])}" data-id="{escape(c.id)}" '
        f'aria-pressed="{str(c.chosen).lower()}">'
        f'<img src="{source}" alt="" loading="lazy" decoding="async" width="96" height="96">'
        f'<span class="rank">{rank}</span><span class="tick" aria-hidden="true">✓</span>'
        f"<b>{escape(c.caption)}</b>"
        + "".join(f"<span>{escape(fact)}</span>" for fact in facts)
        + ("" if c.caption_fits else f'<span class="misfit">{MISFIT}</span>')
        + label
        + mark
        + "</button>"
    )


def _mark(c: Candidate, other: Choice | None, theirs: Collection[str] | None) -> str:
    """What another rule does with a candidate, where it does something else."""
    if other is None or c.unchecked or (c.id in theirs) == c.chosen:
        return ""
    verb = "would take it" if c.id in theirs else "would leave it out"
    return f'<span class="versus">{RULE_NAMES[other.rule].split(" ")[0]} {verb}</span>'


def comparison(choice: Choice, other: Choice, errors: tuple[float | None, float | None]) -> str:
    """How a choice and that of another rule differ, with the predicted error of each."""
    mine, theirs = ({c.id for c in one.looked_at if c.chosen} for one in (choice, other))
    name, both = RULE_NAMES[other.rule], len(mine & theirs)
    words = (
        f"<b>{escape(name)}</b> would take {len(theirs)} of the same candidates: {both} that are taken now and "
        f"{len(theirs - mine)} other{'s' * (len(theirs - mine) != 1)}."
    )
    if None not in errors:
        words += (
            f" The predicted error is {errors[0]:.0%} of what it is without any for the present pictures, and "
            f"{errors[1]:.0%} for those of this rule."
        )
    if other.rule == "random":
        words += " Random draws among these candidates here; chosen above, it draws from the whole store."
    return f'<div class="notice" role="status"><p>{words}</p></div>'


def groups(project: Project, choice: Choice) -> str:
    """A table of the groups: some of their pictures, the verdict, what it rests on, and a click for all of them."""
    rows = []
    for group in choice.groups:
        members = [c for c in choice.candidates if c.group == group["group"]]
        low, high = group["interval"]
        taken, number = sum(c.chosen for c in members), group["group"]
        rows.append(
            f"<tr><td>{''.join(_face(project, c) for c in members[:5])}</td>"
            f"<td><b>{_verdict(group['verdict'])}</b><br><small>{_evidence(group)}</small></td>"
            f"<td>{taken} of {group['size']}</td>"
            f"<td>{group['disagreement']:.2f} <small>({low:.2f} to {_number(high)}){_allowed(group)}</small></td>"
            f"<td>{_weight(group.get('strength'))}</td>"
            f"<td>{_button(number, True, taken == len(members))}{_button(number, False, not taken)}</td></tr>"
        )
    titles = "".join(
        f"<th>{title}</th>" for title in ("Group", "Verdict", "Taken", "Disagreement", "Best weight", "All of it")
    )
    return (
        "<p>Pictures that look alike are judged together. Disagreement is 0 where a group pulls the adapter just where "
        "your pictures do, and 1 where it is as far off as an adapter that knows nothing; in brackets, where it lies with "
        "95% certainty, and below how far off a kind may be and still help. The best weight is how much a kind should "
        "count beside your pictures if it were the only one.</p>"
        f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _evidence(group: dict) -> str:
    """What a verdict rests on, in a sentence."""
    if group["verdict"] == "too small to judge":
        return "With so few, even a strong pull elsewhere would not show."
    ratio = math.exp(min(max(group["evidence"], 0.0), 20.0))
    if ratio < 1.1:
        return "Nothing in how it pulls the model speaks against it."
    times = "over 1,000 times" if ratio > 1000 else f"{ratio:,.0f} times" if ratio >= 2 else f"{ratio:.1f} times"
    # Of the gradients under either, not of either: a likelihood ratio is no odds.
    enough = ", but it is not too far off to help" if group["verdict"] == "valid" else ""
    return f"What was measured fits “disagrees with your subject” {times} better than “agrees”{enough}."


def _button(group: int, take: bool, idle: bool) -> str:
    verb = "Take" if take else "Drop"
    return (
        f'<button type="button" class="small" data-group="{group}" data-take="{str(take).lower()}"'
        f'{" disabled" if idle else ""} aria-label="{verb} all of group {group + 1}">{verb} all</button>'
    )


def _allowed(group: dict) -> str:
    return f"<br>may be up to {_number(group['tolerance'])}" if "tolerance" in group else ""


def _weight(strength: float | None) -> str:
    return "–" if strength is None else f"{strength:.2g}" if strength >= 0.01 else "under 0.01"


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 100 else "over 100"


def _face(project: Project, c: Candidate) -> str:
    small = project.candidate_thumbnail(c.id)
    file = small if small.is_file() else project.candidate_picture(c.id)
    if not file.is_file():
        return ""
    return f'<img src="{escape(address(file))}" alt="{escape(c.caption)}" loading="lazy" width="40" height="40">'


def _verdict(verdict: str) -> str:
    return escape(VERDICTS.get(verdict, verdict))

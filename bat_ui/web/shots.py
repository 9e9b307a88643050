"""Pictures of checkpoints as markup: the grid of steps and prompts, the favourites, pairs under a slider, curves.

In: what comparison.py finds.  Out: HTML; compare.js makes it move.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path

from bat_ui.comparison import Pair, Recommendation
from bat_ui.web.charts import Mark, Series, line_chart
from bat_ui.web.parts import address, hint

SCRIPT = Path(__file__).with_name("compare.js").read_text(encoding="utf-8")
METRICS = {  # title, its name in papers, what it means, whether more is better
    "clip_i": ("Likeness", "CLIP-I", "How much the pictures look like yours. Higher is more alike.", True),
    "clip_t": ("Following the prompt", "CLIP-T", "How well the pictures show what the prompt says. Higher is better.", True),
    "diversity": ("Variety", "diversity", "How much pictures of one prompt differ. Near 0 they are all the same.", True),
    "pres": ("Others look like yours", "PRES", "How much any other of its kind looks like yours. Lower is better.", False),
}  # fmt: skip
SHARES = {
    "likeness": "Likeness gained",
    "prompt": "Prompt followed",
    "variety": "Variety kept",
    "class": "Others left alone",
}


def step_name(step: int) -> str:
    """A checkpoint as people call it."""
    return f"step {step:,}" if step else "backbone alone"


def grid(
    run: str, drawn: Mapping[int, Sequence[Mapping]], liked: Collection[tuple[int, str]], best: int | None, used: int | None
) -> str:
    """A table with a column for each step and a row for each prompt and seed, always from the same noise."""
    if not drawn:
        return ""
    steps = list(drawn)
    cells = {(step, _what(row)): row for step, rows in drawn.items() for row in rows}
    rows = list(dict.fromkeys(_what(row) for rows in drawn.values() for row in rows))
    heads = "".join(f'<th scope="col">{_head(step, best, used)}</th>' for step in steps)
    body = []
    for (of, prompt), group in groupby(rows, key=lambda what: what[:2]):
        words = escape(prompt) + (" <small>any of its kind, for comparison</small>" if of == "class" else "")
        body.append(f'<tr><th scope="rowgroup" colspan="{len(steps)}"><span>{words}</span></th></tr>')
        for what in group:
            shots = (_shot(run, step, cells.get((step, what)), liked) for step in steps)
            body.append(f"<tr>{''.join(f'<td>{shot}</td>' for shot in shots)}</tr>")
    label = "Pictures of each checkpoint, at the same seeds"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table class="shots"><thead><tr>{heads}</tr>'
        f"</thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def strip(found: Sequence[tuple[str, str, Mapping]]) -> str:
    """The favourites of all runs, each with its run's id and name."""
    if not found:
        return hint("The star on a picture puts it here, to keep what you like together.")
    shots = "".join(
        f"<figure>{_shot(run, row['step'], row, {(row['step'], row['file'].name)})}"
        f"<figcaption>{escape(name.partition(',')[0])}, {step_name(row['step'])}<br>{escape(row['prompt'])}</figcaption>"
        "</figure>"
        for run, name, row in found
    )
    return f'<div class="strip">{shots}</div>'


def sliders(pairs: Sequence[Pair], a: str, b: str) -> str:
    """Pairs of pictures with a border that can be dragged, or moved by the arrow keys."""
    figures = []
    for pair in pairs:
        what = f"{escape(pair.prompt)} <small>seed {pair.seed}</small>"
        label = f"Border between A and B: {pair.prompt}, seed {pair.seed}"
        figures.append(
            f'<figure class="ab"><div><img src="{escape(address(pair.b))}" alt="B, {escape(b)}: {escape(pair.prompt)}">'
            f'<img src="{escape(address(pair.a))}" alt="A, {escape(a)}: {escape(pair.prompt)}"><i aria-hidden="true"></i>'
            f'<input type="range" min="0" max="100" value="50" aria-label="{escape(label)}"></div>'
            f"<figcaption>{what}</figcaption></figure>"
        )
    return f'<div class="abs">{"".join(figures)}</div>' if figures else ""


def side_by_side(a: Mapping, b: Mapping) -> str:
    """The metrics of two checkpoints, with the better of each in words and not only by its look."""
    rows = []
    for key, (title, name, meaning, more) in METRICS.items():
        ours, theirs = a.get(key), b.get(key)
        if ours is None and theirs is None:
            continue
        better = None if ours is None or theirs is None or ours == theirs else (ours > theirs) == more
        cells = _value(ours, better is True) + _value(theirs, better is False)
        rows.append(f'<tr><th scope="row">{title} <small>{name}. {meaning}</small></th>{cells}</tr>')
    if not rows:
        return ""
    head = '<tr><td></td><th scope="col">A</th><th scope="col">B</th></tr>'
    return f'<div class="scroll"><table class="versus"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'


def advice(found: Recommendation) -> str:
    """The recommendation with its reason, its shares as bars, and what to beware of."""
    title = f"Recommended: {step_name(found.step)}" if found.step is not None else "No recommendation"
    bars = "".join(
        f'<div><dt>{SHARES[name]}</dt><dd><progress aria-label="{SHARES[name]}" value="{share:.2f}"></progress>'
        f"<b>{share:.0%}</b></dd></div>"
        for name, share in found.shares.items()
    )
    cautions = "".join(f"<p><small>{escape(text)}</small></p>" for text in found.cautions)
    return (
        f'<div class="advice"><h3>{title}</h3><p>{escape(found.why)}</p>{f"<dl>{bars}</dl>" if bars else ""}{cautions}</div>'
    )


def curves(rows: Sequence[Mapping], best: int | None) -> str:
    """One chart for each metric: the run's checkpoints, what the backbone alone has, and the recommended checkpoint."""
    charts = []
    for key, (title, name, meaning, _) in METRICS.items():
        points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        if len(points) < 2:
            continue
        alone = [Series("", [(points[0][0], points[0][1]), (points[-1][0], points[0][1])], "backbone")]
        marks = [Mark(*point, "recommended") for point in points if point[0] == best]
        said = ", ".join(f"{measured(value)} at step {step}" for step, value in points)
        chart = line_chart(
            [*(alone if points[0][0] == 0 else []), Series("", points, "subject")],
            x_label="step",
            y_label=f"{title} ({name})",
            description=f"{title}: {said}.",
            marks=marks,
            zero=False,
        )
        charts.append(f"<div>{chart}<p>{meaning}</p></div>")
    legend = (
        '<p class="legend">Measured at each checkpoint, by step: <span>with what was learned</span>'
        '<span class="backbone">backbone alone</span></p>'
    )
    return f'{legend}<div class="curves">{"".join(charts)}</div>' if charts else ""


def measured(value: float) -> str:
    """A metric in two decimals, or as many as show two digits: variety is often small."""
    return f"{value:.2f}" if abs(value) >= 0.1 or not value else f"{value:.2g}"


def _head(step: int, best: int | None, used: int | None) -> str:
    badges = [word for word, is_it in (("recommended", step == best), ("in use", step == used)) if is_it]
    return step_name(step).capitalize() + "".join(f"<em>{word}</em>" for word in badges)


def _value(value: float | None, better: bool) -> str:
    said = "–" if value is None else measured(value)
    return f'<td class="better">{said} better</td>' if better else f"<td>{said}</td>"


def _what(row: Mapping) -> tuple[str, str, int]:
    return row["of"], row["prompt"], row["seed"]


def _shot(run: str, step: int, row: Mapping | None, liked: Collection[tuple[int, str]]) -> str:
    if row is None or not row["file"].is_file():
        return ""
    words = f"{row['prompt']}, {step_name(step)}, seed {row['seed']}"
    pressed = str((step, row["file"].name) in liked).lower()
    return (
        f'<span class="shot"><button type="button" class="look" title="Enlarge"><img src="{escape(address(row["file"]))}" '
        f'alt="{escape(words)}" loading="lazy" width="96" height="96"></button><button type="button" class="star" '
        f'data-run="{run}" data-step="{step}" data-star="{row["file"].name}" aria-pressed="{pressed}" '
        f'aria-label="Favourite: {escape(words)}">★</button></span>'
    )

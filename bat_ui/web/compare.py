"""Step 5 of the page: checkpoints beside each other, the recommended one and why, any two under a slider, favourites.

In: a project with runs that drew samples at their checkpoints.  Out: the checkpoint that is drawn with and taken home, and
favourites, both kept in the run; the same as endpoints.
"""

from __future__ import annotations

import gradio as gr

from bat_ui import adapters, comparison, registry
from bat_ui.errors import UserError
from bat_ui.files import read_json_lines
from bat_ui.project import Project, Run
from bat_ui.samples import steps_with_samples
from bat_ui.settings import ValidationSettings
from bat_ui.web import shots
from bat_ui.web.parts import (
    Updates,
    answering,
    fingerprint,
    hint,
    html,
    message_box,
    note,
    once_a_second,
    opened,
    refusing,
    required,
    run_among,
)
from bat_ui.web.step import Shared, Step
from bat_ui.web.take_home import build_take_home
from bat_ui.web.words import run_name

NOTHING = "Here you will compare what is drawn while a training goes on. Train your subject in step 3 first."
NO_SAMPLES = "Nothing was drawn while this run trained: set “Pictures of each” in step 3, Advanced, and train again."


def build_comparison_step(shared: Shared) -> Step:
    """Lay out the step and wire its events."""
    id = shared.project
    html(
        "<h2>Compare</h2><p>Training longer makes the pictures more like yours, then too much so. At each checkpoint the "
        "same prompts are drawn from the same noise, so that you can see where it is best.</p>"
    )
    message = message_box("compare-message")
    empty = html("", elem_id="compare-empty")
    with gr.Column(visible=False, elem_id="comparison") as everything:
        chosen = gr.Dropdown([], label="Run", elem_id="compare-run", allow_custom_value=True)
        advice = html("", elem_id="advice")
        with gr.Row(elem_id="use-row", elem_classes="beside"):
            step = gr.Dropdown([], label="Checkpoint", elem_id="checkpoint", allow_custom_value=True, min_width=160)
            use = gr.Button("Use this checkpoint", variant="primary", elem_id="use-checkpoint", min_width=160)
        used = html("", elem_id="used")
        grid = gr.HTML("", js_on_load=shots.SCRIPT, apply_default_css=False, elem_id="grid")
        html("<h3>Favourites</h3>")
        strip = gr.HTML("", js_on_load=shots.SCRIPT, apply_default_css=False, elem_id="favourites")
        curves = html("", elem_id="curves")
        html("<h3>Two beside each other</h3><p>Drag the border in a picture: A is on its left, B on its right.</p>")
        with gr.Row():
            a = gr.Dropdown([], label="A", elem_id="compare-a", allow_custom_value=True, min_width=240)
            b = gr.Dropdown([], label="B", elem_id="compare-b", allow_custom_value=True, min_width=240)
        pairs = gr.HTML("", js_on_load=shots.SCRIPT, apply_default_css=False, elem_id="pairs")
        take_home = build_take_home(shared, chosen)
    suggested = gr.State(["", None, None])  # what the page itself chose for `step`, `a` and `b`, which a person may change
    own = [empty, everything, chosen, advice, step, use, used, grid, strip, curves, a, b, pairs, suggested]

    def follow(
        project: Project | None,
        wanted: str | None,
        picked: str | None = None,
        left: str | None = None,
        right: str | None = None,
    ) -> Updates:
        """Everything; `wanted` is the run, else the latest one, `picked` the step in the list, `left` and `right` are what
        A and B are; each as suits where it is none of what there is."""
        run = _run(project, wanted)
        if run is None:
            return {empty: hint(NOTHING), everything: gr.update(visible=False), chosen: gr.update(choices=[], value=None)}
        drawn, saved = steps_with_samples(run), adapters.saved_steps(run)
        found, in_use = comparison.recommendation(run), adapters.used_step(run)
        sides = _sides(project)
        known = [value for _, value in sides]
        left, right = _two(known, run, found.step, left, right)
        liked = {(row["step"], row["file"].name) for row in comparison.favourites(run)}
        best_guess = found.step if found.step is not None else in_use if in_use is not None else max(saved, default=None)
        picked = picked if picked in map(str, saved) else ""
        return {
            empty: "",
            everything: gr.update(visible=True),
            chosen: gr.update(choices=_names(project), value=run.folder.name),
            advice: shots.advice(found) if drawn else hint(NO_SAMPLES),
            step: gr.update(choices=[(_title(s, found.step), str(s)) for s in saved], value=picked or str(best_guess or "")),
            use: gr.update(interactive=bool(saved)),
            used: _used(project, run, in_use),
            grid: shots.grid(run.folder.name, drawn, liked, found.step, in_use),
            strip: _strip(project),
            curves: shots.curves(read_json_lines(run.metrics), found.step),
            a: gr.update(choices=sides, value=left),
            b: gr.update(choices=sides, value=right),
            pairs: _pairs(project, left, right),
            suggested: [str(best_guess or ""), *_two(known, run, found.step)],
        }

    def show(project: Project | None) -> Updates:
        return {**follow(project, None), **take_home.show(project), message: ""}

    def draw_again(project_id: str, wanted: str | None, before: list, *now: str | None) -> Updates:
        picked, *two = now
        by_hand = [None if picked == before[0] else picked, *([None, None] if two == before[1:] else two)]
        updates = follow(opened(project_id), wanted, *by_hand)
        if wanted and chosen in updates:
            updates[chosen].pop("value")  # another run may have been chosen meanwhile
        return updates

    def look_at(project_id: str, wanted: str) -> Updates:
        return follow(required(project_id), wanted)

    def look_at_two(project_id: str, left: str, right: str) -> Updates:
        return {pairs: _pairs(required(project_id), left, right)}

    def mark(project_id: str, wanted: str, event: gr.EventData) -> Updates:
        project = required(project_id)
        comparison.toggle_favourite(project.run(event.run), event.step, event.picture)
        updates = follow(project, wanted)
        return {part: updates[part] for part in (grid, strip)}

    def put_to_use(project_id: str, wanted: str, picked: str, left: str, right: str) -> Updates:
        project = required(project_id)
        run = _required_run(project, wanted)
        if not str(picked).isdecimal():
            raise UserError("No checkpoint is chosen: choose one from the list first.")
        adapters.use_checkpoint(run, int(picked))
        return follow(project, run.folder.name, picked, left, right)

    private = {"api_visibility": "private", "show_progress": "hidden", "concurrency_id": "look_at_checkpoints"}
    shared.heartbeat.follow(_seen, [id, chosen], draw_again, [id, chosen, suggested, step, a, b], own, "look_at_checkpoints")
    chosen.input(answering(message, look_at), [id, chosen], [message, *own], **private)
    for side in (a, b):
        side.input(answering(message, look_at_two), [id, a, b], [message, pairs], **private)
    for place in (grid, strip):
        place.click(answering(message, mark), [id, chosen], [message, grid, strip], **private)
    use.click(answering(message, put_to_use), [id, chosen, step, a, b], [message, *own], **private)
    for endpoint in ENDPOINTS:
        gr.api(endpoint, api_name=endpoint.__name__)
    return Step(show, [message, *own, *take_home.components])


def compare_checkpoints(project: str, run: str = "") -> dict:
    """The checkpoints of a run, the latest if none is named: pictures and metrics of each, the one in use, the recommended
    one, its shares of likeness, prompt, variety and class, and why."""
    with refusing():
        found = _required_run(registry.find(project), run)
    advised, saved = comparison.recommendation(found), adapters.saved_steps(found)
    measured = {row["step"]: row for row in read_json_lines(found.metrics)}
    drawn = steps_with_samples(found)
    return {
        "run": found.folder.name,
        "used": adapters.used_step(found),
        "recommended": advised.step,
        "why": advised.why,
        "cautions": list(advised.cautions),
        "shares": advised.shares,
        "checkpoints": [
            {
                **measured.get(step, {"step": step}),
                "saved": step in saved,
                "samples": [{**row, "file": str(row["file"])} for row in drawn.get(step, [])],
            }
            for step in sorted({*measured, *drawn, *saved})
        ],
    }


def use_checkpoint(project: str, run: str, step: int) -> int:
    """Make a checkpoint's adapter the run's: the one that is drawn with, exported and downloaded; returns the step."""
    with refusing():
        adapters.use_checkpoint(registry.find(project).run(run), step)
    return step


def compare_pictures(project: str, run_a: str, step_a: int, run_b: str, step_b: int) -> list[dict]:
    """The pictures of two checkpoints that have prompt and seed in common: prompt, seed, what they are of, files a and b."""
    with refusing():
        home = registry.find(project)
        pairs = comparison.pairs(home.run(run_a), step_a, home.run(run_b), step_b)
    return [{"prompt": p.prompt, "seed": p.seed, "of": p.of, "a": str(p.a), "b": str(p.b)} for p in pairs]


def toggle_favourite(project: str, run: str, step: int, picture: str) -> bool:
    """Mark a picture by its file name in the samples at a step, or take the mark away; true if it is marked now."""
    with refusing():
        return comparison.toggle_favourite(registry.find(project).run(run), step, picture)


def list_favourites(project: str) -> list[dict]:
    """The marked pictures of all runs: run, step, prompt, seed, file."""
    with refusing():
        runs = registry.find(project).runs
    return [{**r, "run": run.folder.name, "file": str(r["file"])} for run in runs for r in comparison.favourites(run)]


ENDPOINTS = (compare_checkpoints, use_checkpoint, compare_pictures, toggle_favourite, list_favourites)


def _run(project: Project | None, id: str | None) -> Run | None:
    """The run with that id, else the latest one with samples or checkpoints; None where there is none."""
    return run_among(_worth_looking(project), id)


def _worth_looking(project: Project | None) -> list[Run]:
    return (
        [run for run in project.runs if run.metrics.is_file() or run.adapter or adapters.saved_steps(run)] if project else []
    )


def _required_run(project: Project, id: str | None) -> Run:
    if id:
        return project.run(id)
    run = _run(project, None)
    if run is None:
        raise UserError("There is nothing to compare yet: train your subject in step 3 first.")
    return run


@once_a_second
def _seen(project_id: str, wanted: str | None) -> str:
    project = opened(project_id)
    run = _run(project, wanted)
    if project is None or run is None:
        return project.folder.name if project else ""
    files = [run.metrics, run.samples, run.lora, run.checkpoints, run.folder / "favourites.json"]
    others = [each.folder / name for each in project.runs for name in ("metrics.jsonl", "favourites.json")]
    return fingerprint(run, *files, *others)


def _names(project: Project) -> list[tuple[str, str]]:
    return [(run_name(run), run.folder.name) for run in reversed(_worth_looking(project))]


def _title(step: int, best: int | None) -> str:
    return shots.step_name(step).capitalize() + (" (recommended)" if step == best else "")


def _sides(project: Project) -> list[tuple[str, str]]:
    """What A and B can be: each step with pictures of each run, as RUN/STEP."""
    return [
        (f"{run_name(run)}: {shots.step_name(step)}", f"{run.folder.name}/{step}")
        for run in reversed(project.runs)
        for step in steps_with_samples(run)
    ]


def _two(
    known: list[str], run: Run, best: int | None, left: str | None = None, right: str | None = None
) -> tuple[str | None, str | None]:
    """What A and B are: as wanted, else the run's recommended or last step beside that of another run, or the backbone."""
    if left in known and right in known:
        return left, right
    mine = [value for value in known if value.startswith(f"{run.folder.name}/")]
    if not mine:
        return (known[0], known[-1]) if known else (None, None)
    ours = f"{run.folder.name}/{best}"
    ours = ours if ours in mine else mine[-1]
    others = [value for value in known if value not in mine and value.partition("/")[2] == ours.partition("/")[2]]
    return ours, others[0] if others else mine[0]


def _side(project: Project, value: str | None) -> tuple[Run, int]:
    run, _, step = (value or "").partition("/")
    if not step.isdecimal():
        raise UserError("Choose a checkpoint for A and one for B from the lists.")
    return project.run(run), int(step)


def _pairs(project: Project, left: str | None, right: str | None) -> str:
    if left is None or right is None:
        return ""
    (run_a, step_a), (run_b, step_b) = _side(project, left), _side(project, right)
    found = comparison.pairs(run_a, step_a, run_b, step_b)
    if not found:
        return hint("These two have no prompt in common: give both runs the same prompts in step 3, Advanced.")
    names = [f"{run_name(run)}, {shots.step_name(step)}" for run, step in ((run_a, step_a), (run_b, step_b))]
    measured = [
        next((row for row in read_json_lines(run.metrics) if row["step"] == step), {})
        for run, step in ((run_a, step_a), (run_b, step_b))
    ]
    denoising = {run.remembered(ValidationSettings).validation_steps for run in (run_a, run_b)}
    unlike = note("The two runs drew with different numbers of denoising steps, which alone makes a difference.")
    return shots.sliders(found, *names) + (unlike if len(denoising) > 1 else "") + shots.side_by_side(*measured)


def _strip(project: Project) -> str:
    return shots.strip([(run.folder.name, run_name(run), row) for run in project.runs for row in comparison.favourites(run)])


def _used(project: Project, run: Run, step: int | None) -> str:
    if run.adapter is None:
        return hint("This run has no adapter yet: let it come to its end, or use one of its checkpoints.")
    which = shots.step_name(step) if step is not None else "the run's last adapter"
    if len(_worth_looking(project)) > 1:
        name = run_name(run).partition(",")[0]
        where = f"It is taken home, and drawn with in step 4 where {name} is chosen."
        return f'<p class="facts">In use for {name}: {which}. {where}</p>'
    return f'<p class="facts">Drawn with in step 4 and taken home: {which}.</p>'

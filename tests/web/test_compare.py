"""Step 5 as markup and as endpoints: every picture in its place, text escaped, the better one in words."""

import re
from pathlib import Path
from xml.etree import ElementTree

import gradio as gr
import pytest

from bat_ui import registry
from bat_ui.comparison import Pair, Recommendation
from bat_ui.files import write_json
from bat_ui.project import Run
from bat_ui.web import compare, shots, take_home
from bat_ui.web.compare import compare_checkpoints, compare_pictures, list_favourites, toggle_favourite, use_checkpoint
from bat_ui.web.page import build_page
from bat_ui.web.step import Model


def listing(folder: Path, step: int, prompts=("a <b>cat</b>",), seeds=(0, 1)) -> list[dict]:
    home = folder / f"step-{step:06d}"
    home.mkdir(parents=True)
    rows = [{"prompt": p, "seed": s, "of": "subject"} for p in prompts for s in seeds]
    for i, row in enumerate(rows):
        row["file"] = home / f"{i:02d}.png"
        row["file"].write_bytes(b"picture")
    write_json(home / "samples.json", [{**row, "file": row["file"].name} for row in rows])
    return rows


def tree(markup: str) -> ElementTree.Element:
    closed = re.sub(r"<(img|input|br)([^>]*)>", r"<\1\2/>", markup)
    return ElementTree.fromstring(f"<div>{closed}</div>")


def test_the_grid_has_a_column_for_each_step_and_a_row_for_each_prompt_and_seed(tmp_path):
    drawn = {0: listing(tmp_path, 0), 20: listing(tmp_path, 20), 40: listing(tmp_path, 40)[:1]}
    found = tree(shots.grid("001", drawn, {(20, "01.png")}, 20, 40))
    heads = ["".join(head.itertext()) for head in found.findall(".//thead//th")]
    assert heads == ["Backbone alone", "Step 20recommended", "Step 40in use"]
    rows = [[cell.find(".//img") for cell in row] for row in found.findall(".//tbody/tr") if row.find("td") is not None]
    assert [[image is not None for image in row] for row in rows] == [[True] * 3, [True, True, False]]
    for seed, row in enumerate(rows):
        for step, image in zip((0, 20, 40), row):
            assert image is None or f"step-{step:06d}/{seed:02d}.png" in image.get("src")
    stars = [star.get("aria-pressed") for star in found.findall(".//button[@data-star]")]
    assert stars == ["false", "false", "false", "false", "true"]


def test_prompts_cannot_bring_markup(tmp_path):
    [one, *_] = listing(tmp_path, 0, ('"><script>x</script>',))
    pair = Pair(one["prompt"], 0, "subject", one["file"], one["file"])
    strip = shots.strip([("001", "Run 1", {**one, "step": 0})])
    for markup in (shots.grid("001", {0: [one]}, (), None, None), strip, shots.sliders([pair], "<a>", "<b>")):
        assert "<script>" not in markup and "<a>" not in markup and tree(markup) is not None


def test_the_better_value_is_said_in_words_and_less_is_better_for_pres():
    a = {"clip_i": 0.5, "clip_t": 0.3, "diversity": None, "pres": 0.4}
    b = {"clip_i": 0.4, "clip_t": 0.3, "diversity": None, "pres": 0.2}
    rows = [[cell.text for cell in row.findall("td")] for row in tree(shots.side_by_side(a, b)).findall(".//tbody/tr")]
    assert rows == [["0.50 better", "0.40"], ["0.30", "0.30"], ["0.40", "0.20 better"]]
    assert shots.side_by_side({}, {}) == ""


def test_each_metric_has_a_curve_with_the_recommended_checkpoint_and_what_it_means():
    rows = [{"step": s, "clip_i": 0.1 * s, "clip_t": 0.3, "diversity": None, "pres": 0.2} for s in (0, 2, 4)]
    found = tree(shots.curves(rows, 2))
    assert len(found.findall(".//svg")) == 3 and len(found.findall(".//circle")) == 3
    assert "look like yours" in "".join(found.itertext()) and shots.curves(rows[:1], None) == ""


def test_advice_shows_shares_as_bars_and_cautions():
    found = tree(shots.advice(Recommendation(20, "Because.", {"likeness": 1.0, "class": 0.5}, ("Few <pictures>.",))))
    assert [bar.get("value") for bar in found.findall(".//progress")] == ["1.00", "0.50"]
    assert "Recommended: step 20" in "".join(found.itertext()) and "Few <pictures>." in "".join(found.itertext())
    assert "No recommendation" in shots.advice(Recommendation(None, "Why not."))


@pytest.fixture()
def project():
    """Two runs with samples, metrics and one saved checkpoint each."""
    project = registry.make()
    write_json(project.subject_marker, {})
    write_json(project.choice, {"candidates": []})
    for _ in range(2):
        run = project.new_run()
        for step in (0, 20):
            listing(run.samples, step, ("x",))
        metrics = [
            f'{{"step": {s}, "clip_i": {0.1 + s / 100}, "clip_t": 0.3, "diversity": 0.1, "pres": 0.2}}' for s in (0, 20)
        ]
        run.metrics.write_text("\n".join(metrics) + "\n")
        (run.checkpoints / "step-000020").mkdir(parents=True)
        (run.checkpoints / "step-000020" / "pytorch_lora_weights.safetensors").write_bytes(b"weights")
    return project


def test_programs_get_what_the_page_shows(project):
    id = project.folder.name
    found = compare_checkpoints(id)
    assert (found["run"], found["used"], found["recommended"]) == ("002", None, 20)
    assert [(c["step"], c["saved"], len(c["samples"])) for c in found["checkpoints"]] == [(0, False, 2), (20, True, 2)]
    pairs = compare_pictures(id, "001", 0, "002", 20)
    assert [(p["prompt"], p["seed"], Path(p["a"]).parent.name, Path(p["b"]).parts[-4]) for p in pairs] == [
        ("x", 0, "step-000000", "002"),
        ("x", 1, "step-000000", "002"),
    ]
    assert toggle_favourite(id, "001", 20, "01.png") and toggle_favourite(id, "002", 0, "00.png")
    assert [(f["run"], f["step"], f["seed"]) for f in list_favourites(id)] == [("001", 20, 1), ("002", 0, 0)]


def test_programs_are_refused_in_a_sentence(project):
    id = project.folder.name
    for call, said in (
        (lambda: compare_checkpoints("0" * 16), "no such project"),
        (lambda: compare_checkpoints(id, "../002"), "no such run"),
        (lambda: compare_checkpoints(registry.make().folder.name), "nothing to compare"),
        (lambda: use_checkpoint(id, "001", 10), "no checkpoint of step 10"),
        (lambda: use_checkpoint(id, "001", 20), "damaged"),  # it has no manifest
        (lambda: toggle_favourite(id, "001", 20, "../samples.json"), "no such picture"),
        (lambda: take_home.download_status(id, "001", "../kohya"), "no such format"),
    ):
        with pytest.raises(gr.Error, match=said):
            call()


def test_without_a_choice_the_run_before_is_compared_at_the_same_step(project):
    last, known = project.runs[-1], [value for _, value in compare._sides(project)]
    assert compare._two(known, last, 20, None, None) == ("002/20", "001/20")
    assert compare._two(known, last, 20, "001/0", "002/0") == ("001/0", "002/0")
    assert compare._two(known, last, 20, "001/0", "gone/0") == ("002/20", "001/20")


def test_the_list_follows_the_recommendation_until_a_person_chooses(project):
    run = project.runs[0]
    listing(run.samples, 40, ("x",))
    (run.checkpoints / "step-000040").mkdir()
    (run.checkpoints / "step-000040" / "pytorch_lora_weights.safetensors").write_bytes(b"weights")
    handlers = [event.fn for event in build_page(Model())[0].fns.values() if event.fn]
    [draw_again] = [fn for fn in handlers if fn.__qualname__ == "build_comparison_step.<locals>.draw_again"]

    def shown(before: list, *now: str) -> dict:
        updates = {part.elem_id: value for part, value in draw_again(project.folder.name, "001", before, *now).items()}
        return {name: updates[name]["value"] for name in ("checkpoint", "compare-a", "compare-b")}

    by_itself = ["40", "001/40", "001/0"]
    assert shown(by_itself, *by_itself) == {"checkpoint": "20", "compare-a": "001/20", "compare-b": "002/20"}
    by_hand = ["20", "002/0", "001/40"]
    assert list(shown(["40", "001/20", "001/0"], *by_hand).values()) == by_hand


def test_a_zip_is_offered_until_the_adapter_is_another(project):
    run = Run(project.runs[0].folder)
    run.lora.mkdir()
    run.exports.mkdir()
    (run.exports / "kohya.zip").write_bytes(b"zip")
    assert take_home._current(run, "kohya") == run.exports / "kohya.zip" and take_home._current(run, "diffusers") is None
    (run.lora / "pytorch_lora_weights.safetensors").write_bytes(b"newer")
    assert take_home._current(run, "kohya") is None

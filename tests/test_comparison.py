"""Comparison: the recommendation against its definition written out, pairs, favourites."""

import math
import random

import pytest

from bat_ui.comparison import favourites, pairs, recommend, shares, toggle_favourite
from bat_ui.errors import UserError
from bat_ui.files import write_json
from bat_ui.project import Run

BACKBONE = {"step": 0, "clip_i": 0.2, "clip_t": 0.3, "diversity": 0.4, "pres": 0.2}


def row(step, clip_i, clip_t=0.3, diversity=0.4, pres=0.2):
    return {"step": step, "clip_i": clip_i, "clip_t": clip_t, "diversity": diversity, "pres": pres}


def draw(run: Run, step: int, listing: list[tuple[str, int, str]]) -> None:
    """Samples at a step: prompt, seed, what they are of."""
    folder = run.samples / f"step-{step:06d}"
    folder.mkdir(parents=True)
    rows = [{"file": f"{i:02d}.png", "prompt": p, "seed": s, "of": of} for i, (p, s, of) in enumerate(listing)]
    for each in rows:
        (folder / each["file"]).write_bytes(b"picture")
    write_json(folder / "samples.json", rows)


def naive_recommendation(rows, saved):
    """The same in logarithms, one checkpoint after the other."""
    first = next(r for r in rows if r["step"] == 0)
    candidates = sorted((r for r in rows if r["step"] in saved and r["step"] != 0), key=lambda r: r["step"])
    top = max(r["clip_i"] for r in candidates)
    if top <= first["clip_i"]:
        return None
    scores = []
    for r in candidates:
        score = math.log(max((r["clip_i"] - first["clip_i"]) / (top - first["clip_i"]), 1e-300))
        score += math.log(min(r["clip_t"] / first["clip_t"], 1))
        score += math.log(min(r["diversity"] / first["diversity"], 1))
        score += math.log(min((1 - r["pres"]) / (1 - first["pres"]), 1))
        scores.append(score)
    for r, score in zip(candidates, scores):
        if score >= max(scores) + math.log(0.95):
            return r["step"]


def test_the_recommendation_is_its_definition_written_out():
    rng = random.Random(0)
    for _ in range(300):
        rows = [row(s, rng.uniform(0.1, 0.9), *(rng.uniform(0.05, 0.9) for _ in range(3))) for s in range(0, 60, 10)]
        saved = [s for s in range(10, 60, 10) if rng.random() < 0.8] or [10]
        assert recommend(rows, saved, 40).step == naive_recommendation(rows, saved)


def test_an_overtrained_checkpoint_is_not_recommended_though_it_is_most_alike():
    rows = [BACKBONE, row(100, 0.5, 0.29), row(200, 0.7, 0.28, 0.36, 0.3), row(300, 0.72, 0.2, 0.1, 0.68)]
    found = recommend(rows, [100, 200, 300], 40)
    assert found.step == 200 and "Step 200 has 96% of the likeness" in found.why and "93% of how well" in found.why
    assert "90% of its variety" in found.why and "further" in found.why and not found.cautions


def test_of_checkpoints_that_are_as_good_the_earliest_is_recommended():
    rows = [BACKBONE, row(100, 0.3), row(200, 0.69), row(300, 0.7), row(400, 0.7)]
    assert recommend(rows, [100, 200, 300, 400], 40).step == 200


def test_only_a_checkpoint_with_a_file_is_recommended():
    assert recommend([BACKBONE, row(100, 0.3), row(200, 0.7)], [100], 40).step == 100


@pytest.mark.parametrize(
    "rows, saved, said",
    [
        ([], [], "Nothing was measured"),
        ([BACKBONE | {"clip_i": None}, row(100, None)], [100], "Nothing was measured"),
        ([BACKBONE], [], "No checkpoint is saved"),
        ([row(100, 0.5)], [100], "The backbone alone was not measured"),
        ([BACKBONE, row(100, 0.2), row(200, 0.1)], [100, 200], "train for more steps"),
    ],
)
def test_where_nothing_can_be_recommended_a_sentence_says_why(rows, saved, said):
    found = recommend(rows, saved, 40)
    assert found.step is None and said in found.why


def test_it_says_when_it_rests_on_little():
    found = recommend([BACKBONE | {"diversity": None}, row(100, 0.5, diversity=None)], [100], 3)
    assert found.step == 100 and set(found.shares) == {"likeness", "prompt", "class"} and "variety" not in found.why
    assert [word in " ".join(found.cautions) for word in ("only one checkpoint", "Only 3 pictures", "Not everything")] == [
        True
    ] * 3


def test_shares_lie_between_nothing_and_all():
    found = shares(row(9, 0.1, 0.6, 0.1, 1.0), BACKBONE, 0.6)
    assert found == {"likeness": 0.0, "prompt": 1.0, "variety": pytest.approx(0.25), "class": 0.0}
    assert shares(row(9, 0.6, diversity=0.0), BACKBONE | {"diversity": 0.0}, 0.6)["variety"] == 1.0


def test_pairs_have_prompt_and_seed_in_common(tmp_path):
    a, b = Run(tmp_path / "a"), Run(tmp_path / "b")
    draw(a, 0, [("x", 0, "subject"), ("x", 1, "subject"), ("y", 0, "subject"), ("c", 0, "class")])
    draw(b, 20, [("c", 0, "class"), ("z", 0, "subject"), ("x", 1, "subject"), ("y", 1, "subject")])
    assert [(p.prompt, p.seed, p.of) for p in pairs(a, 0, b, 20)] == [("x", 1, "subject"), ("c", 0, "class")]
    assert [(p.a.name, p.b.name) for p in pairs(a, 0, b, 20)] == [("01.png", "02.png"), ("03.png", "00.png")]
    assert pairs(a, 0, b, 99) == []


def test_a_mark_is_kept_on_disk_taken_away_and_forgotten_with_its_picture(tmp_path):
    run = Run(tmp_path)
    draw(run, 0, [("x", 0, "subject")])
    draw(run, 20, [("x", 0, "subject"), ("y", 0, "subject")])
    assert toggle_favourite(run, 20, "01.png") and toggle_favourite(run, 0, "00.png")
    assert [(f["step"], f["prompt"]) for f in favourites(Run(tmp_path))] == [(20, "y"), (0, "x")]
    assert not toggle_favourite(run, 20, "01.png")
    assert [f["step"] for f in favourites(run)] == [0]
    write_json(run.samples / "step-000000" / "samples.json", [])
    assert favourites(run) == []


@pytest.mark.parametrize("name", ["../../settings.json", "samples.json", "", "02.png"])
def test_only_a_picture_of_the_samples_can_be_marked(name, tmp_path):
    run = Run(tmp_path)
    draw(run, 20, [("x", 0, "subject"), ("y", 0, "subject")])
    with pytest.raises(UserError, match="no such picture"):
        toggle_favourite(run, 20, name)
    assert not (tmp_path / "favourites.json").exists()

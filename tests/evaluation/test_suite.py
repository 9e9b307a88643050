"""The suite on a tiny random backbone: rows, resuming, shards, common noise, the oracle's list."""

import json
from dataclasses import replace
from importlib.resources import files
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import ImageChops

from bat_ui.albat.strength import MOST
from bat_ui.backbones import load_backbone
from bat_ui.backbones.encoded import Encoded
from bat_ui.backbones.sticker import data
from bat_ui.cli import main
from bat_ui.errors import UserError
from bat_ui.evaluation import metrics, plan, results, rules, subjects, suite
from bat_ui.evaluation.command import QUICK
from bat_ui.evaluation.rules import RULES
from bat_ui.evaluation.values import repeated
from bat_ui.settings import SelectionSettings, TrainingSettings

SELECTION = SelectionSettings(shortlist=16, surrogate_steps=2, draws=2, sketch_size=64)
TINY = plan.EvaluationSettings(
    seeds=(0,),
    subjects=("flat/cat-faces",),
    steps=(1, 3),
    numbers=(5,),
    loss_draws=2,
    prior_pictures=4,
    prior_draws=2,
    sample_steps=(),
    selection=SELECTION,
    training=TrainingSettings(rank=2, batch_size=4),
)


@pytest.fixture(scope="module", autouse=True)
def few_extra_sketches():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "EXTRA", 6)
        yield


@pytest.fixture(scope="module")
def backbone(tiny_backbone_folder):
    return load_backbone(str(tiny_backbone_folder))


@pytest.fixture(scope="module")
def finished(backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evidence")
    written = suite.run(backbone, TINY, plan.plan(TINY), folder / "results.jsonl", folder / "cache")
    return folder, written


def test_every_rule_leaves_one_row_a_checkpoint(finished):
    folder, written = finished
    rows = results.read_rows(folder / "results.jsonl")
    assert written == len(rows) == 2 * (len(RULES) - 1) + 1  # the backbone has step 0 alone
    assert {(r["rule"], r["step"]) for r in rows} == {(r, s) for r in RULES[1:] for s in (1, 3)} | {("backbone", 0)}
    assert all(r["heldout_loss"] > 0 and r["prior_loss"] > 0 and r["seconds"] >= 0 for r in rows)
    assert all(r["num"] == 5 for r in rows if r["rule"] in ("random", "prior", "nearest_class", "gradient_cosine"))
    assert all(0 <= r["rho"] for r in rows if r["rule"] not in ("backbone", "prior"))


def test_a_finished_suite_writes_nothing_more(finished, backbone):
    folder, _ = finished
    before = (folder / "results.jsonl").read_bytes()
    assert suite.run(backbone, TINY, plan.plan(TINY), folder / "results.jsonl", folder / "cache") == 0
    assert (folder / "results.jsonl").read_bytes() == before


@pytest.mark.parametrize("rows_kept, torn", [(0, b""), (3, b""), (4, b'{"split": "sui')])
def test_a_killed_run_goes_on_to_the_same_rows_and_repeats_none(rows_kept, torn, finished, backbone, tmp_path):
    folder, _ = finished
    settings = replace(TINY, rules=("none", "random", "nearest_class", "gradient_cosine"))
    jobs = plan.plan(settings)
    whole = [r for r in results.read_rows(folder / "results.jsonl") if r["rule"] in settings.rules]
    path = tmp_path / "results.jsonl"
    lines = [json.dumps(r).encode() + b"\n" for r in whole]
    path.write_bytes(b"".join(lines[:rows_kept]) + torn)
    assert suite.run(backbone, settings, jobs, path, folder / "cache") == len(whole) - rows_kept
    again = [json.loads(line) for line in path.read_text().splitlines()]  # no line is torn
    timed = ("seconds", "selection_seconds", "measuring_seconds")
    assert [{k: v for k, v in r.items() if k not in timed} for r in again] == [
        {k: v for k, v in r.items() if k not in timed} for r in whole
    ]


def test_no_number_of_the_plain_training_changes_when_it_is_measured_less_often(finished, backbone, tmp_path):
    folder, _ = finished
    settings = replace(TINY, rules=("random",), steps=(3,))
    suite.run(backbone, settings, plan.plan(settings), tmp_path / "r.jsonl", folder / "cache")
    (row,) = results.read_rows(tmp_path / "r.jsonl")
    (same,) = [r for r in results.read_rows(folder / "results.jsonl") if r["rule"] == "random" and r["step"] == 3]
    assert row["heldout_loss"] == same["heldout_loss"] and row["prior_loss"] == same["prior_loss"]


def test_an_early_step_asked_for_afterwards_is_one_of_the_whole_run(finished, backbone, tmp_path):
    folder, _ = finished
    settings = replace(TINY, rules=("random",), training=replace(TINY.training, subject_steps=1))
    apart, whole = tmp_path / "apart.jsonl", tmp_path / "whole.jsonl"
    suite.run(backbone, settings, plan.plan(settings), whole, folder / "cache")
    apart.write_text("".join(f"{json.dumps(r)}\n" for r in results.read_rows(whole) if r["step"] == 3))
    assert suite.run(backbone, settings, plan.plan(settings), apart, folder / "cache") == 1
    losses = [{r["step"]: r["heldout_loss"] for r in results.read_rows(path)} for path in (apart, whole)]
    assert losses[0] == losses[1]


def test_every_rule_and_seed_is_measured_at_the_same_noise(backbone, monkeypatch, finished, tmp_path):
    seen, real = [], metrics.denoising_loss

    def watched(model, images, draws):
        seen.append((len(draws[0]), draws[0].clone(), draws[1].clone(), images.latents.sum().item()))
        return real(model, images, draws)

    monkeypatch.setattr(metrics, "denoising_loss", watched)
    settings = replace(TINY, rules=("none", "random"), seeds=(0, 1), steps=(1,), prior_draws=3, prediction=False)
    suite.run(backbone, settings, plan.plan(settings), tmp_path / "r.jsonl", finished[0] / "cache")
    for size, calls in ((2, 4), (3, 4)):
        same = [s for s in seen if s[0] == size]
        assert len(same) == calls
        assert all(torch.equal(s[1], same[0][1]) and torch.equal(s[2], same[0][2]) for s in same)
    assert len({s[3] for s in seen if s[0] == 3}) == 1  # and the store pictures of the prior loss are the same


def test_none_share_has_half_a_batch_of_subject_pictures(backbone, tmp_path):
    losses = {}
    for rule, batch_size in (("none_share", 4), ("none", 2), ("none", 4)):
        training = replace(TINY.training, batch_size=batch_size)
        settings = replace(TINY, rules=(rule,), steps=(2,), prediction=False, training=training)
        path = tmp_path / f"{rule}{batch_size}.jsonl"
        suite.run(backbone, settings, plan.plan(settings), path, tmp_path / "cache")
        losses[rule, batch_size] = [row["heldout_loss"] for row in results.read_rows(path)]
    assert losses["none_share", 4] == losses["none", 2] != losses["none", 4]


def test_rows_without_samples_are_made_again_only_where_samples_are_wanted(finished, backbone):
    folder, _ = finished
    rows = results.read_rows(folder / "results.jsonl")
    config = results.config_of(backbone, TINY)
    job = next(j for j in plan.plan(TINY) if j.rule == "random")
    assert results.missing_steps(job, TINY, config, rows) == []
    assert results.missing_steps(job, replace(TINY, sample_steps=(3,)), config, rows) == [3]
    assert results.missing_steps(job, replace(TINY, sample_steps=None), config, rows) == [1, 3]
    assert results.missing_steps(replace(job, seed=1), TINY, config, rows) == [1, 3]
    drawn = [r | {"generation": True} for r in rows]
    assert results.missing_steps(job, TINY, config, drawn) == []


def test_a_row_made_again_with_samples_keeps_its_losses_and_what_was_predicted(finished, tmp_path):
    rows = [r for r in results.read_rows(finished[0] / "results.jsonl") if r["rule"] == "random"]
    later = {"generation": True, "clip_i": 0.5, "rho": None, "predicted_by": None, "heldout_loss": 9.0, "prior_loss": 9.0}
    again = [r | later for r in rows]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows + again))
    read = results.read_rows(tmp_path / "results.jsonl")
    assert [r["clip_i"] for r in read] == [0.5] * len(rows) and rows[0]["rho"] is not None
    assert all([r[k] for r in read] == [r[k] for r in rows] for k in (*results.PREDICTED, "heldout_loss", "prior_loss"))
    assert all(r["generation"] for r in read)
    assert repeated(read) == {r["step"]: [pytest.approx(abs(9 / r["heldout_loss"] - 1))] for r in rows}


def test_samples_are_drawn_with_the_adapter_as_it_is(backbone, finished):
    settings = suite.GenerationSettings(steps=2)
    plain = suite.generate(backbone, ["a cat"], settings)[0]
    with suite.lora(backbone, 2, 0) as weights:
        same = suite.generate(backbone, ["a cat"], settings)[0]
        for name, weight in weights.items():
            if ".lora_B." in name:
                torch.nn.init.constant_(weight, 3.0)
        other = suite.generate(backbone, ["a cat"], settings)[0]
    assert same.tobytes() == plain.tobytes() != other.tobytes()


def test_controls_have_other_pictures_but_albats_time_and_weight(monkeypatch):
    monkeypatch.setattr(rules, "ranked_ids", lambda rule, *_: [f"{rule} {i}" for i in range(9)])
    world = SimpleNamespace(images=lambda ids: ids)
    pool = SimpleNamespace(most_strength=3.5, subject_steps=70, seconds={"left_out": 2.0})
    for control, plain in rules.WHEN.items():
        found = rules.choose(control, 4, world, None, 0, pool, None)
        assert found.ids == tuple(f"{plain} {i}" for i in range(4))
        assert (found.strength, found.subject_steps) == (3.5, 70) and found.seconds >= 2


def test_late_pictures_are_another_rules_and_come_in_half_way(monkeypatch):
    monkeypatch.setattr(rules, "ranked_ids", lambda rule, *_: [f"{rule} {i}" for i in range(9)])
    world = SimpleNamespace(images=lambda ids: ids)
    for late, plain in rules.LATE.items():
        found, own = (rules.choose(rule, 4, world, None, 0, None, None) for rule in (late, plain))
        assert found.ids == own.ids and (found.subject_steps, own.subject_steps) == (200, None)


@pytest.mark.parametrize("rule, most, alone", [("albat", 3.5, 70), ("albat_without_when", MOST, None)])
def test_albat_trains_from_when_and_as_much_as_left_out_pictures_say(rule, most, alone, monkeypatch):
    def select(sketches, assessment, name, number, most):
        return SimpleNamespace(chosen=("a",), strength=most / 2, weights=np.ones(1))

    monkeypatch.setattr(rules, "select", select)
    images = Encoded(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 1))
    seconds = {"left_out": 2.0, "sketches": 1.0}
    pool = SimpleNamespace(candidates=None, assessment=None, most_strength=3.5, subject_steps=70, seconds=seconds)
    found = rules.choose(rule, None, SimpleNamespace(images=lambda ids: images), None, 0, pool, None)
    assert (found.strength, found.subject_steps) == (most / 2, alone)


def test_shards_partition_the_work_and_keep_a_subjects_seed_together():
    settings = replace(TINY, subjects=(), seeds=(0, 1, 2))
    jobs = plan.plan(settings)
    parts = [plan.shard(jobs, i, 5) for i in range(1, 6)]
    assert sorted(map(repr, sum(parts, []))) == sorted(map(repr, jobs))
    groups = [{(j.subject, j.seed) for j in part} for part in parts]
    assert all(not a & b for i, a in enumerate(groups) for b in groups[:i])
    with pytest.raises(UserError):
        plan.shard(jobs, 6, 5)


def test_the_suite_has_twelve_subjects_that_tuning_never_sees():
    assert len(subjects.subject_names()) == 12 and len(subjects.subject_names(tuning=True)) == 8
    assert not set(subjects.subject_names()) & set(subjects.subject_names(tuning=True))
    with pytest.raises(UserError, match="for tuning only"):
        plan.plan(replace(TINY, subjects=("monkeys",)))
    with pytest.raises(UserError, match="no subject"):
        subjects.load_case("flat/unicorns", 0)


HELD_OUT = [f"{style}/{family}" for family in data.held_out_families() for style in data.STYLES]


@pytest.mark.parametrize("name", HELD_OUT)
def test_given_and_held_out_members_make_up_the_family(name):
    style, family = name.split("/")
    cases = [subjects.load_case(name, seed) for seed in (0, 1)]
    for case in cases:
        assert len(case.given.images) + len(case.truths) == len(data.held_out_families()[family]["codes"])
        assert len(case.truths) >= 2 and not set(case.given.captions) & set(case.captions)
        assert all("sks" in caption.split() for caption in case.given.captions + case.captions)
    assert cases[0].given.names != cases[1].given.names


@pytest.mark.parametrize("name", sorted(set(subjects.subject_names(tuning=True)) - set(HELD_OUT)))
def test_what_tuning_takes_beside_held_out_families_has_colours_that_the_backbone_never_saw(name):
    cases, known = [subjects.load_case(name, seed) for seed in (0, 1)], {s.id: s for s in data.load_stickers()}
    for case in cases:
        assert len(case.given.images) == 4 and 8 <= len(case.truths) <= subjects.MOST_TRUTHS
        assert not set(case.given.captions) & set(case.captions)
        assert not any("skin" in caption for caption in case.captions) and not case.relatives
        for picture, name in zip(case.given.images, case.given.names):
            seen = known.get(name.replace("-", "/", 1))
            if seen is not None:
                change = ImageChops.difference(picture, data.render(seen, subjects.SIZE)).convert("L")
                assert sum(change.histogram()[25:]) > 0.1 * picture.width * picture.height
    assert cases[0].given.names != cases[1].given.names


def test_captions_have_the_identifier_before_the_noun():
    assert subjects.subject_caption("cat with tears of joy", "flat", "cat") == "a flat sticker of sks cat with tears of joy"
    assert subjects.subject_caption("one o'clock", "flat", "clock") == "a flat sticker of sks clock, one o'clock"


def test_relatives_are_training_stickers_of_the_subjects_own_style_first():
    kinds = {s.id: s.family for s in data.load_stickers()}
    text = json.loads(files(data.__package__).joinpath("relatives.json").read_text(encoding="utf-8"))
    assert set(text["families"]) == set(data.held_out_families())
    for family, codes in text["families"].items():
        assert len(codes) == len(set(codes)) >= 20, family
        for code in codes:
            styles = [s for s in data.STYLES if f"{s}/{code}" in kinds]
            assert styles and all(kinds[f"{s}/{code}"] is None for s in styles), code
    found = [i.split("/")[0] for i in subjects.relatives("cat-faces", "outlined")]
    assert found == sorted(found, reverse=True) and len(found) > 0


def test_a_quick_suite_has_subjects_and_albat_takes_as_many_as_it_suggests():
    jobs = plan.plan(replace(plan.EvaluationSettings(), **QUICK))
    assert {j.subject for j in jobs} == set(QUICK["subjects"])
    assert {(j.number, j.strength) for j in jobs if j.rule == "albat"} == {(None, 1.0)}
    assert {(j.number, j.strength) for j in jobs if j.rule in ("random", "cross_fit")} == {(40, 1.0)}


def test_tuning_takes_the_complete_setting_of_lowest_loss():
    def row(number, subject, loss):
        place = {"split": "tuning", "rule": "random", "seed": 0, "step": 5, "style": "flat", "strength": 1.0}
        place["schedule"] = plan.SCHEDULE
        return place | {"number": number, "subject": subject, "heldout_loss": loss}

    rows = [row(10, "a", 0.3), row(10, "b", 0.3), row(40, "a", 0.2), row(40, "b", 0.3), row(160, "a", 0.01)]
    assert plan.tuned(rows, "random") == (40, 1.0)
    assert plan.tuned(rows, "prior") is None
    assert {j.number for j in plan.plan(replace(TINY, rules=("random",), numbers=()), rows)} == {40}
    found = ((10, "a", 0.3), (10, "b", 0.3), (40, "a", 0.2), (40, "b", 0.9))
    late = [row(number, subject, loss) | {"step": 9} for number, subject, loss in found]
    assert plan.tuned(rows + late, "random") == (10, 1.0)  # what 40 wins at its best step, it loses later
    assert plan.tuned([r | {"schedule": 1} for r in rows], "albat") is None


def test_the_command_draws_samples_and_writes_the_report(tiny_backbone_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "SAMPLES", 2)
    monkeypatch.setattr(suite, "CLASS_SAMPLES", 1)
    monkeypatch.setattr(suite, "generation_settings", lambda: suite.GenerationSettings(steps=2, seed=9))
    out = tmp_path / "out"
    arguments = ["evaluate", "--backbone", str(tiny_backbone_folder), "--out", str(out), "--cache", str(tmp_path / "c")]
    arguments += ["--rules", "backbone,none,random,albat", "--subjects", "flat/sun-and-moon-faces", "--seeds", "0"]
    arguments += "--steps 1,2 --sample-steps 2 --numbers 4 --shortlist 16 --surrogate-steps 2 --draws 2".split()
    arguments += "--sketch-size 64 --rank 2".split()
    assert main(arguments) == 0
    rows = results.read_rows(out / "results.jsonl")
    assert len(rows) == 1 + 3 * 2
    assert [r["step"] for r in rows if not r["generation"]] == [1, 1, 1]
    rows = [r for r in rows if r["generation"]]
    assert all(abs(r["clip_i"]) < 1.001 and 0 < r["pixel_rmse"] < 1 and r["diversity"] > -0.001 for r in rows)
    text = (out / "README.md").read_text()
    assert [r["verdicts"] is not None and sum(r["verdicts"].values()) > 0 for r in rows] == [
        r["rule"] == "albat" for r in rows
    ]
    for word in (
        "albat",
        "random",
        "Groups of candidates in 1 runs",
        "bars.png",
        "curves.png",
        "pictures.png",
        "(commands.txt)",
    ):
        assert word in text
    assert (out / "commands.txt").read_text().startswith("python -m bat_ui")
    assert all((out / name).is_file() for name in ("bars.png", "curves.png", "prediction.png", "pictures.png"))
    assert main(["evaluate", "--report", "--out", str(tmp_path / "empty")]) == 2

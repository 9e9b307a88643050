"""Pictures that a person adds: found by words, taken and trained on, labelled as not checked, and forgotten by undo."""

import json
import shutil

import pytest
import torch
from PIL import Image

from bat_ui import additions, history, line
from bat_ui.choice import ADDED, OWN, Candidate, Choice, revise, toggle
from bat_ui.errors import UserError
from bat_ui.export.card import write_card
from bat_ui.project import Project
from bat_ui.settings import SelectionSettings, TrainingSettings
from bat_ui.store.ingest import ingest

QUICK = {"shortlist": 16, "surrogate_steps": 1, "draws": 2, "sketch_size": 32}


@pytest.fixture(scope="module")
def chosen(tmp_path_factory, backbone, faces):
    """A project with a subject and a choice by ALBAT out of an ingested store, to be copied by each test."""
    folder = tmp_path_factory.mktemp("chosen")
    for n in range(24):
        noise = Image.effect_noise((48, 48), 10 + 8 * n).convert("RGB")
        Image.blend(noise, Image.new("RGB", (48, 48), (9 * n, 250 - 9 * n, 128)), 0.6).save(folder / f"{n}.png")
        (folder / f"{n}.txt").write_text(f"noise {n}")
    ingest(str(folder), folder / "store", backbone.clip, name="noises")
    project = Project(folder / "project")
    line.prepare(project, faces, "face", template=backbone.caption_template)
    settings = SelectionSettings(**QUICK, num_backbone=3, store=str(folder / "store"))
    line.select(project, backbone, settings, TrainingSettings(rank=2))
    return project


@pytest.fixture()
def project(chosen, tmp_path) -> Project:
    shutil.copytree(chosen.folder, tmp_path / "project")
    return Project(tmp_path / "project")


@pytest.fixture()
def far(project) -> str:
    """A picture of the store that is no candidate."""
    choice = Choice.load(project.choice)
    return sorted(set(additions.store_of(choice).ids) - {c.id for c in choice.candidates})[0]


def change(project, after):
    history.save_change(project, Choice.load(project.choice), after)
    return after


def test_words_find_what_a_naive_scan_of_the_store_finds(project, backbone):
    store = additions.store_of(Choice.load(project.choice))
    found = additions.search_store(store, backbone.clip, "  noise 7 ", 5)
    scores = store.vectors @ backbone.clip.embed_texts(["noise 7"])[0]
    naive = sorted(zip(scores.tolist(), store.ids), reverse=True)[:5]
    assert [f.id for f in found] == [id for _, id in naive]
    assert [f.similarity for f in found] == pytest.approx([score for score, _ in naive], abs=1e-5)
    assert found[0].caption == store.captions_of([found[0].id])[0] and found[0].picture.size == (48, 48)


@pytest.mark.parametrize(("words", "says"), [(" ", "Say what to look for"), ("x" * 300, "say it shorter")])
def test_a_search_for_nothing_or_too_much_is_refused(project, backbone, words, says):
    with pytest.raises(UserError, match=says):
        additions.search_store(additions.store_of(Choice.load(project.choice)), backbone.clip, words)


def test_an_added_picture_is_taken_on_top_without_a_made_up_score_and_undo_forgets_it(project, backbone, far):
    before = Choice.load(project.choice)
    store = additions.store_of(before)
    after = change(project, additions.add_from_store(project, before, store, backbone.clip, far))
    [row] = after.extra
    assert (row.id, row.chosen, row.origin, row.unchecked) == (far, True, ADDED, True)
    assert row.gain is row.verdict is row.rank is row.group is None
    subject = backbone.clip.embed_images(line.Subject.load(project.subject).images)
    assert row.similarity == pytest.approx(float((store.vectors_of([far]) @ subject.T).max()), abs=1e-5)
    assert after.looked_at == before.candidates and len(after.chosen) == len(before.chosen) + 1
    assert after.errors == before.errors, "what was not checked changes no prediction"
    assert "Not checked" in after.reason(row) and project.candidate_picture(far).is_file()
    assert Choice.load(project.choice) == after
    assert not [c for c in toggle(after, far, project.sketches).chosen if c.id == far]
    assert toggle(toggle(after, far, project.sketches), far, project.sketches) == after
    assert history.undo(project) == before


def test_adding_a_candidate_takes_it_by_hand(project, backbone):
    before = Choice.load(project.choice)
    left = next(c.id for c in before.candidates if not c.chosen)
    after = additions.add_from_store(project, before, additions.store_of(before), backbone.clip, left)
    assert after.extra == () and after.kept == (left,) and left in {c.id for c in after.chosen}


def test_a_picture_that_the_store_does_not_have_is_refused(project, backbone):
    before = Choice.load(project.choice)
    with pytest.raises(UserError, match="no such picture"):
        additions.add_from_store(project, before, additions.store_of(before), backbone.clip, "../../etc/passwd")


def test_own_pictures_are_written_anew_and_bad_files_are_named_and_stop_nothing(project, backbone, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    Image.new("RGB", (60, 40), "navy").save(folder / "a b.jpg", exif=Image.Exif())
    (folder / "bad.png").write_text("no picture")
    files = [folder / "a b.jpg", folder / "bad.png"]
    before = Choice.load(project.choice)
    after, problems = additions.add_own(project, before, backbone.clip, files, "a blue thing")
    assert len(problems) == 1 and "bad.png" in problems[0]
    [row] = after.extra
    assert (row.id, row.caption, row.origin, row.chosen) == ("own:a-b", "a blue thing", OWN, True)
    assert [path.name for path in project.own_pictures.iterdir()] == ["a-b.png"]
    again, _ = additions.add_own(project, after, backbone.clip, files[:1], "another")
    assert [c.id for c in again.extra] == ["own:a-b", "own:a-b-2"]


def test_own_pictures_need_a_name_and_an_end(project, backbone, monkeypatch):
    choice = Choice.load(project.choice)
    with pytest.raises(UserError, match="Say what your own pictures show"):
        additions.add_own(project, choice, backbone.clip, [], "  ")
    monkeypatch.setattr(additions, "MAX_OWN", 1)
    with pytest.raises(UserError, match="make a store"):
        additions.add_own(project, choice, backbone.clip, [project.folder] * 2, "x")


def test_an_undone_own_picture_gives_its_room_back(project, backbone, monkeypatch, faces):
    monkeypatch.setattr(additions, "MAX_OWN", 1)
    for _ in range(2):
        before = Choice.load(project.choice)
        after = change(project, additions.add_own(project, before, backbone.clip, faces[:1], "mine")[0])
        assert sum(c.origin == OWN for c in after.chosen) == 1
        with pytest.raises(UserError, match="make a store"):
            additions.add_own(project, after, backbone.clip, faces[1:2], "mine")
        assert history.undo(project) == before


def test_added_and_own_pictures_are_trained_on_and_said_in_report_and_model_card(project, backbone, far, tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    choice = Choice.load(project.choice)
    choice = additions.add_from_store(project, choice, additions.store_of(choice), backbone.clip, far)
    choice, _ = additions.add_own(project, choice, backbone.clip, [tmp_path / "red.png"], "a red square")
    choice = revise(choice, project.sketches, dropped=[], kept=[choice.looked_at[0].id], num_backbone=1)
    choice.save(project.choice)
    run = project.new_run()
    encoded = line.encode_chosen(backbone, run, choice)
    alone = backbone.encode([Image.new("RGB", (64, 64), "red")], ["a red square"])
    assert len(encoded) == len(choice.chosen) == 3
    torch.testing.assert_close(encoded.latents[-1], alone.latents[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(encoded.states[-1], alone.states[0], rtol=1e-3, atol=1e-4)
    line.run_training(run, backbone, TrainingSettings(steps=1, rank=2, batch_size=2))
    pictures = json.loads(run.report.read_text())["training"]["pictures"]
    assert pictures["backbone"] == 3
    assert pictures["backbone_by_origin"] == {
        "found_by_the_search": 1, "added_by_hand": 1, "own_pictures": 1, "not_checked": 2,
    }  # fmt: skip
    out = tmp_path / "export"
    out.mkdir()
    (out / "adapter.safetensors").touch()
    card = write_card(Project(run.folder), backbone, out).read_text()
    assert "1 picture of the trainer's own, not the backbone's training data; 1 of them not checked" in card
    assert "1 picture of the same data, added by hand; 1 of them not checked" in card


def test_the_next_search_by_albat_checks_what_was_added_and_other_rules_keep_it(project, backbone, far, tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    choice = Choice.load(project.choice)
    place = choice.store["place"]
    choice = additions.add_from_store(project, choice, additions.store_of(choice), backbone.clip, far)
    choice, _ = additions.add_own(project, choice, backbone.clip, [tmp_path / "red.png"], "a red square")
    choice.save(project.choice)
    training = TrainingSettings(rank=2)
    checked = line.select(project, backbone, SelectionSettings(**QUICK, store=place), training)
    mine = {c.id: c for c in checked.candidates if c.id in (far, "own:red")}
    assert len(mine) == 2 and all(c.verdict and not c.unchecked for c in mine.values()) and checked.extra == ()
    assert (mine[far].origin, mine["own:red"].origin) == (ADDED, OWN)
    assert all(project.candidate_picture(id).is_file() for id in mine)
    harmless = [c for c in sorted(checked.candidates, key=lambda c: c.rank) if c.verdict != "harmful"]
    assert harmless == sorted(harmless, key=lambda c: -c.class_similarity), "added ones have no place of their own"
    nearest = line.select(project, backbone, SelectionSettings("nearest", 2, shortlist=4, store=place), training)
    assert {"own:red"} <= {c.id for c in nearest.extra if c.chosen} <= {"own:red", far}
    none = line.select(project, backbone, SelectionSettings("none", store=place), training)
    assert {c.id for c in none.candidates} == {"own:red", *(c.id for c in nearest.extra)} and none.chosen == ()
    assert [c.id for c in toggle(none, "own:red", project.sketches).chosen] == ["own:red"]


def test_a_search_that_fails_while_it_saves_leaves_the_earlier_choice_whole(project, backbone, monkeypatch):
    files = (project.choice, project.sketches, *project.candidates.iterdir())
    before, save = {file: file.read_bytes() for file in files}, additions.save_candidate
    saved = []

    def fails(*given):
        saved.append(given)
        if len(saved) == 5:
            raise OSError(28, "No space left on device")
        save(*given)

    monkeypatch.setattr(additions, "save_candidate", fails)
    place = Choice.load(project.choice).store["place"]
    with pytest.raises(OSError):
        line.select(project, backbone, SelectionSettings(**QUICK | {"shortlist": 8}, store=place), TrainingSettings(rank=2))
    assert {file: file.read_bytes() for file in (project.choice, project.sketches, *project.candidates.iterdir())} == before


def test_large_pictures_get_a_small_copy_for_the_page(project):
    additions.save_candidate(project, "large", Image.new("RGB", (1000, 500)))
    additions.save_candidate(project, "small", Image.new("RGB", (64, 64)))
    assert Image.open(project.candidate_thumbnail("large")).size == (192, 96)
    assert not project.candidate_thumbnail("small").exists()
    assert Image.open(project.candidate_picture("large")).size == (1000, 500)


def test_candidates_from_before_have_an_origin():
    assert Candidate(**{"id": "a", "caption": "b", "similarity": 0.5}).origin == "search"

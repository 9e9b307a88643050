"""The draft of a subject: bad files change nothing, what was decided stays, a used draft knows when it was changed."""

import pytest
from PIL import Image

from bat_ui.errors import UserError
from bat_ui.project import Project
from bat_ui.web import draft as drafts
from bat_ui.web.draft import Draft


@pytest.fixture()
def project(tmp_path):
    return Project(tmp_path / "project")


def test_good_files_are_added_and_each_bad_one_is_named(project, subject_folder):
    broken = subject_folder / "broken.png"
    broken.write_text("no picture")
    problems = drafts.add_pictures(project, [subject_folder / "face1.png", broken, subject_folder / "face0.png"])
    assert len(problems) == 1 and "broken.png" in problems[0]
    draft = Draft.load(project)
    assert [(p.name, p.caption) for p in draft.pictures] == [("face1", ""), ("face0", "a flat sticker of sks face, smiling")]


def test_too_many_files_leave_the_draft_as_it_was(project, subject_folder):
    drafts.add_pictures(project, [subject_folder / "face0.png"])
    before = Draft.load(project)
    with pytest.raises(UserError, match="51 pictures are too many"):
        drafts.add_pictures(project, [subject_folder / "face1.png"] * 50)
    assert Draft.load(project) == before


def test_two_files_of_one_name_are_both_kept(project, subject_folder, tmp_path):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "face0.png")
    drafts.add_pictures(project, [subject_folder / "face0.png"])
    drafts.add_pictures(project, [tmp_path / "face0.png"])
    names = [p.name for p in Draft.load(project).pictures]
    assert names == ["face0", "face0-2"]
    assert Image.open(drafts.original(project, "face0-2")).getpixel((5, 5)) == (255, 0, 0)


def test_photos_are_to_be_cut_out_and_drawings_on_white_are_not_until_the_user_decides(project, subject_folder, tmp_path):
    drafts.add_pictures(project, sorted(subject_folder.glob("*.png")))
    assert not drafts.wants_cut_out(Draft.load(project))
    for i in range(5):
        Image.new("RGB", (40, 40), (90, 120, 30 + i)).save(tmp_path / f"photo{i}.jpg")
    drafts.add_pictures(project, sorted(tmp_path.glob("*.jpg")))
    assert drafts.wants_cut_out(Draft.load(project))
    assert not drafts.wants_cut_out(drafts.change(project, cut_out=False))


def test_a_used_draft_is_unused_after_any_change(project, subject_folder):
    drafts.add_pictures(project, sorted(subject_folder.glob("*.png")))
    assert drafts.change(project, used=True).used
    assert drafts.set_captions(project, {"face0": "a flat sticker of sks face, smiling"}).used, "nothing was changed"
    assert not drafts.set_captions(project, {"face1": "another"}).used


def test_a_removed_pictures_file_is_gone_and_unknown_names_are_ignored(project, subject_folder):
    drafts.add_pictures(project, [subject_folder / "face0.png"])
    drafts.remove_picture(project, "../../face0")
    assert len(Draft.load(project).pictures) == 1
    drafts.remove_picture(project, "face0")
    assert Draft.load(project).pictures == () and not drafts.original(project, "face0").exists()


def test_a_preview_is_the_picture_as_training_will_see_it(project, subject_folder):
    from bat_ui.subject import prepare_subject

    path = subject_folder / "face2.png"
    drafts.add_pictures(project, [path])
    shown = Image.open(drafts.preview(project, "face2", False) / "face2.png")
    assert shown.tobytes() == prepare_subject([path], "face").images[0].tobytes()

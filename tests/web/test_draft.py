"""The draft of a subject: bad files change nothing, what was decided stays, a used draft knows when it was changed."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image, ImageColor

from bat_ui.errors import UserError
from bat_ui.project import Project
from bat_ui.subject import prepare_subject
from bat_ui.web import draft as drafts
from bat_ui.web.draft import Draft


@pytest.fixture()
def project(tmp_path):
    return Project(tmp_path / "project")


def prepare(project, **options):
    subject = prepare_subject(drafts.sources(project, Draft.load(project)), "face", **options)
    subject.save(project.subject)
    return subject


def test_good_files_are_added_and_each_bad_one_is_named(project, subject_folder):
    broken = subject_folder / "broken.png"
    broken.write_text("no picture")
    problems = drafts.add_pictures(project, [subject_folder / "face1.png", broken, subject_folder / "face0.png"])
    assert len(problems) == 1 and "broken.png" in problems[0]
    draft = Draft.load(project)
    assert [(p.name, p.caption) for p in draft.pictures] == [("face1", ""), ("face0", "a flat sticker of sks face, smiling")]


def test_a_draft_that_was_changed_meanwhile_is_not_taken_for_used(project, subject_folder):
    drafts.add_pictures(project, [subject_folder / "face0.png", subject_folder / "face1.png"])
    prepared = Draft.load(project)
    drafts.set_captions(project, {"face1": "corrected"})
    drafts.mark_used(project, prepared)
    assert not Draft.load(project).used
    drafts.mark_used(project, Draft.load(project))
    assert Draft.load(project).used


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
    path = subject_folder / "face2.png"
    drafts.add_pictures(project, [path])
    shown = Image.open(drafts.preview(project, Draft.load(project).pictures[0], False) / "face2.png")
    assert shown.tobytes() == prepare_subject([path], "face").images[0].tobytes()


def test_the_square_that_was_chosen_of_a_photo_is_the_one_that_is_shown_and_used(project, tmp_path):
    wide = Image.new("RGB", (90, 30), "red")
    wide.paste("green", (30, 0, 60, 30))
    wide.paste("blue", (60, 0, 90, 30))
    for name, image in (("wide", wide), ("tall", wide.rotate(-90, expand=True))):
        image.save(tmp_path / f"{name}.png")
        drafts.add_pictures(project, [tmp_path / f"{name}.png"])
        for part, colour in (("middle", "green"), ("start", "red"), ("end", "blue")):
            picture = next(p for p in drafts.set_crop(project, name, part).pictures if p.name == name)
            shown = Image.open(drafts.preview(project, picture, False) / f"{name}.png")
            assert shown.size == (30, 30) and shown.getcolors() == [(900, ImageColor.getrgb(colour))], (name, part)
    with pytest.raises(UserError, match="no such part"):
        drafts.set_crop(project, "wide", "nonsense")


def test_there_is_nothing_to_crop_in_squares_drawings_cut_outs_and_where_shapes_are_kept(project, tmp_path):
    Image.new("RGB", (60, 30), "red").save(tmp_path / "wide.png")
    Image.new("RGB", (30, 30), "red").save(tmp_path / "square.png")
    drafts.add_pictures(project, sorted(tmp_path.glob("*.png")))
    square, wide = Draft.load(project).pictures
    assert drafts.crop_of(project, square, False) is None and drafts.crop_of(project, wide, True) is None
    assert drafts.crop_of(project, wide, False, square=False) is None
    assert drafts.crop_of(project, wide, False) == (0.25, 0, 0.75, 1)
    whole = Image.open(drafts.preview(project, wide, False, square=False) / "wide.png")
    assert whole.size == (60, 30)


def test_the_template_makes_the_captions_of_pictures_without_one_and_braces_are_text(project, subject_folder):
    drafts.add_pictures(project, [subject_folder / "face1.png"])
    draft = drafts.change(project, class_noun="cat", template="{identifier} the {class_noun} {0}")
    assert drafts.default_caption(draft, "unused") == "sks the cat {0}"
    assert drafts.as_subject(project, draft, "unused").captions == ("sks the cat {0}",)


def test_browsers_that_open_a_project_at_once_draw_its_previews_once(project, subject_folder, monkeypatch):
    drafts.add_pictures(project, [subject_folder / "face0.png"])
    [picture] = Draft.load(project).pictures
    made, real = [], drafts.prepare_subject
    monkeypatch.setattr(drafts, "prepare_subject", lambda *a, **k: made.append(a) or real(*a, **k))
    with ThreadPoolExecutor(16) as pool:
        folders = set(pool.map(lambda _: drafts.preview(project, picture, False), range(16)))
    assert len(made) == len(folders) == 1 and (folders.pop() / "face0.png").is_file()


def test_one_picture_may_keep_its_background_while_the_others_are_cut_out(project, tmp_path):
    for i, colour in enumerate(("red", "blue")):
        photo = Image.new("RGB", (80, 80), "olive")
        photo.paste(colour, (25, 25, 55, 60))
        photo.save(tmp_path / f"photo{i}.png")
    drafts.add_pictures(project, sorted(tmp_path.glob("*.png")))
    draft = drafts.set_whole(project, "photo1", True)
    assert [drafts.cuts(draft, p) for p in draft.pictures] == [True, False]
    first, second = drafts.as_subject(project, draft, "a {class_noun}").images
    assert first.getpixel((0, 0)) == (255, 255, 255) and second.getpixel((0, 0)) == ImageColor.getrgb("olive")
    subject = prepare(project, cut_out=[drafts.cuts(draft, p) for p in draft.pictures])
    assert [image.tobytes() for image in subject.images] == [first.tobytes(), second.tobytes()]


def test_a_subject_that_was_changed_and_not_used_again_is_not_learned_unnoticed(project, subject_folder):
    drafts.add_pictures(project, sorted(subject_folder.glob("*.png")))
    drafts.check_used(project)  # nothing was made of it yet: the step says so by itself
    prepare(project)
    drafts.mark_used(project, Draft.load(project))
    drafts.check_used(project)
    drafts.set_captions(project, {"face0": "another"})
    with pytest.raises(UserError, match="changed in step 1"):
        drafts.check_used(project)


def test_an_example_never_takes_the_place_of_a_persons_own_pictures(project, subject_folder):
    from bat_ui.web.subject import EXAMPLES, _free_for_an_example

    assert _free_for_an_example(None) is None and _free_for_an_example(project) == project
    drafts.use_example(project, EXAMPLES / "flat-cat")
    assert _free_for_an_example(project) == project
    drafts.add_pictures(project, [subject_folder / "face0.png"])
    assert _free_for_an_example(project) is None


def test_a_photo_that_keeps_its_background_is_named_where_the_model_knows_white_ones_only(project, tmp_path):
    from bat_ui.web.subject import _warnings

    for i in range(3):
        photo = Image.effect_noise((80, 80), 90 + 10 * i).convert("RGB")
        photo.save(tmp_path / f"photo{i}.png")
    drafts.add_pictures(project, sorted(tmp_path.glob("*.png")))
    draft = drafts.set_whole(project, "photo1", True)
    named = [said for said in _warnings(project, draft, "sticker") if "white backgrounds" in said]
    assert len(named) == 1 and "photo1" in named[0] and "photo0" not in named[0]
    assert not any("white backgrounds" in said for said in _warnings(project, draft, "sd15"))

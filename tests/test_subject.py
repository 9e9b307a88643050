"""From files to a Subject: counts, words, captions, squares, the folder on disk and the warnings."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from bat_ui.errors import UserError
from bat_ui.subject import CROPS, Subject, _cropped, prepare_subject, square_box, subject_files, subject_warnings

EXAMPLES = Path(__file__).parents[1] / "assets" / "examples"


def photo(seed=0, width=80, height=80):
    """Texture that reaches the frame, so that it is neither flat nor on white."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 200, (16, 16, 3), np.uint8)).resize((width, height), Image.Resampling.NEAREST)


@pytest.fixture
def photos(tmp_path):
    paths = [tmp_path / f"dog {i}.png" for i in range(4)]
    for i, path in enumerate(paths):
        photo(i).save(path)
    return paths


def same(one, other):
    """Equal in every field, pictures compared by their pixels."""
    fields = [f.name for f in dataclasses.fields(Subject) if f.name != "images"]
    pixels = [image.tobytes() for image in one.images] == [image.tobytes() for image in other.images]
    return pixels and all(getattr(one, name) == getattr(other, name) for name in fields)


@pytest.mark.parametrize(("count", "says"), [(0, "no picture"), (41, "41 pictures are too many"), (50, "at most 40")])
def test_a_hopeless_number_of_pictures_is_refused(photos, count, says):
    with pytest.raises(UserError, match=says):
        prepare_subject((photos * 13)[:count], "dog")


@pytest.mark.parametrize("noun", ["", "   ", "a" * 41, "dog\ncat", "dog{0}", "<b>", "-dog", "dog; rm", "_", "dog\tcat"])
def test_a_class_noun_that_is_not_a_plain_noun_is_refused(photos, noun):
    with pytest.raises(UserError, match="class noun"):
        prepare_subject(photos, noun)


@pytest.mark.parametrize("noun", ["cat", "teddy bear", "jack-o'-lantern", "chien à poil", "r2d2"])
def test_a_plain_class_noun_is_kept(photos, noun):
    assert prepare_subject(photos, f" {noun} ").class_noun == noun


@pytest.mark.parametrize("identifier", ["", "two words", "a" * 21, "{x}"])
def test_an_identifier_that_is_not_one_word_is_refused(photos, identifier):
    with pytest.raises(UserError, match="identifier"):
        prepare_subject(photos, "dog", identifier)


def test_captions_come_from_the_caller_then_the_file_beside_then_the_template(photos):
    photos[0].with_suffix(".txt").write_text("from the file\n")
    photos[1].with_suffix(".txt").write_text("  caf\u00e9 from the file  ", encoding="utf-8-sig")
    photos[2].with_suffix(".txt").write_text("\n")
    subject = prepare_subject(
        photos,
        "dog",
        captions=["from the caller", None, "", None],
        caption_template="a sticker of {identifier} {class_noun}",
    )
    assert subject.captions == (
        "from the caller",
        "caf\u00e9 from the file",
        "a sticker of sks dog",
        "a sticker of sks dog",
    )


def test_the_template_fills_in_names_and_nothing_else(photos):
    subject = prepare_subject(photos, "dog", "xyz", caption_template="{identifier} {class_noun.__class__} {0}")
    assert subject.captions[0] == "xyz {class_noun.__class__} {0}"
    assert prepare_subject(photos, "dog").captions[0] == "a photo of sks dog"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\xff\xfe\x00bad", "UTF-8"),
        (b"one\ntwo", "more than one line"),
        (b"x" * 301, "longer than 300"),
        (b"a\x00b", "one line"),
    ],
)
def test_a_bad_caption_file_is_named(photos, data, says):
    photos[1].with_suffix(".txt").write_bytes(data)
    with pytest.raises(UserError, match=f"dog 1.txt .*{says}"):
        prepare_subject(photos, "dog")


def test_a_bad_file_among_good_ones_is_named(photos):
    photos[2].write_text("text")
    with pytest.raises(UserError, match="dog 2.png is not"):
        prepare_subject(photos, "dog")


@pytest.mark.parametrize(("shape", "side"), [((120, 80), 64), ((120, 80), 512), ((40, 60), 64), ((64, 64), 64)])
def test_photos_become_middle_squares_that_are_reduced_but_never_enlarged(tmp_path, shape, side):
    source = photo(0, *shape)
    source.save(tmp_path / "a.png")
    (image,) = prepare_subject([tmp_path / "a.png"], "dog", size=side).images
    short = min(shape)
    assert image.size == (min(side, short),) * 2
    left, top = (shape[0] - short) // 2, (shape[1] - short) // 2
    middle = source.crop((left, top, left + short, top + short))
    assert image.tobytes() == middle.resize(image.size, Image.Resampling.LANCZOS).tobytes()


def test_a_drawing_on_white_is_padded_not_cropped(tmp_path):
    drawing = Image.new("RGB", (100, 60), "white")
    ImageDraw.Draw(drawing).rectangle((5, 10, 94, 49), "red")
    drawing.save(tmp_path / "a.png")
    (image,) = prepare_subject([tmp_path / "a.png"], "box").images
    expected = np.full((100, 100, 3), 255, np.uint8)
    expected[20:80] = np.asarray(drawing)
    assert np.array_equal(image, expected)


def test_a_drawing_that_fills_its_picture_is_unchanged_by_the_cut_out(tmp_path):
    drawing = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(drawing).ellipse((4, 4, 60, 60), "orange", "black")
    drawing.save(tmp_path / "a.png")
    subject = prepare_subject([tmp_path / "a.png"], "ball", cut_out=True, size=64)
    assert subject.images[0].tobytes() == drawing.tobytes() and subject.cut_out == ("yes",)


def test_a_cut_out_is_cropped_to_its_subject_with_a_margin_on_white(tmp_path):
    rng = np.random.default_rng(0)
    scene = np.array([60, 110, 70]) + rng.normal(0, 10, (200, 300, 3))
    scene[60:150, 110:190] = (230, 140, 40)
    Image.fromarray(scene.clip(0, 255).astype(np.uint8)).save(tmp_path / "a.png")
    subject = prepare_subject([tmp_path / "a.png"], "box", cut_out=True)
    pixels = np.asarray(subject.images[0]).astype(int)
    rows = np.flatnonzero((np.abs(pixels - (230, 140, 40)).max(axis=2) < 30).any(axis=1))
    assert subject.cut_out == ("yes",)
    assert 90 <= len(pixels) <= 110 and 80 <= len(rows) <= 92 and rows[0] >= 3
    assert (pixels[[0, -1]] == 255).all() and (pixels[:, [0, -1]] == 255).all()


def test_a_picture_without_a_subject_is_used_uncut_and_warned_of(tmp_path):
    Image.new("RGB", (64, 64), (90, 120, 90)).save(tmp_path / "a.png")
    subject = prepare_subject([tmp_path / "a.png"], "dog", cut_out=True)
    assert subject.cut_out == ("failed",) and any("No subject was found" in text for text in subject_warnings(subject))


def test_a_crop_is_in_parts_of_the_picture(photos):
    subject = prepare_subject(photos[:1], "dog", crops=[(0.5, 0.25, 1, 0.75)])
    assert subject.images[0].tobytes() == photo(0).crop((40, 20, 80, 60)).tobytes()


@pytest.mark.parametrize("where", CROPS)
@pytest.mark.parametrize("size", [(39, 16), (16, 39), (17, 16), (1001, 333)])
def test_a_square_of_any_picture_has_its_whole_shorter_side(size, where, tmp_path):
    Image.effect_noise(size, 90).convert("RGB").save(tmp_path / "a.png")
    [image] = prepare_subject([tmp_path / "a.png"], "dog", crops=[square_box(*size, where)]).images
    assert _cropped(Image.new("RGB", size), square_box(*size, where), tmp_path).size == (min(size),) * 2
    assert image.width == image.height


@pytest.mark.parametrize("box", [(0.5, 0, 0.4, 1), (-0.1, 0, 1, 1), (0, 0, 1.1, 1), (0, 0, 0.1, 1), (0, 0, float("nan"), 1)])
def test_a_crop_outside_the_picture_or_too_small_is_refused(photos, box):
    with pytest.raises(UserError, match="crop of dog 0.png"):
        prepare_subject(photos[:1], "dog", crops=[box])


def test_pictures_of_one_name_get_names_of_their_own(tmp_path):
    paths = [
        tmp_path / "x" / "a b.png",
        tmp_path / "y" / "A-B.png",
        tmp_path / "z" / "a b.png",
        tmp_path / "w" / "..png",
    ]
    for i, path in enumerate(paths):
        path.parent.mkdir()
        photo(i).save(path, "PNG")
    names = prepare_subject(paths, "dog").names
    assert names == ("a-b", "A-B-2", "a-b-3", "picture")


def test_long_names_that_begin_alike_are_saved_and_loaded(tmp_path):
    paths = [tmp_path / f"{'a' * 70}{i}.png" for i in range(12)]
    for i, path in enumerate(paths):
        photo(i).save(path)
    subject = prepare_subject(paths, "dog", size=32)
    subject.save(tmp_path / "subject")
    assert len(set(Subject.load(tmp_path / "subject").names)) == 12


def test_a_saved_subject_is_loaded_unchanged(photos, tmp_path):
    subject = prepare_subject(photos, "dog", captions=["caf\u00e9", None, None, None], size=64)
    subject.save(tmp_path / "out")
    assert same(Subject.load(tmp_path / "out"), subject)
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_a_saved_subject_is_a_folder_of_pictures_that_can_be_prepared_again(photos, tmp_path):
    subject = prepare_subject(photos, "dog", size=64)
    subject.save(tmp_path / "out")
    assert same(prepare_subject(subject_files(tmp_path / "out"), "dog", size=64), subject)


def test_saving_again_replaces_the_older_subject_and_nothing_else(photos, tmp_path):
    prepare_subject(photos, "dog").save(tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    prepare_subject(photos[:2], "cat").save(tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["dog-0.png", "dog-0.txt", "dog-1.png", "dog-1.txt", "notes.txt", "subject.json"]


def test_a_save_that_breaks_off_leaves_no_complete_subject(photos, tmp_path, monkeypatch):
    subject = prepare_subject(photos, "dog")
    subject.save(tmp_path / "out")
    monkeypatch.setattr(Image.Image, "save", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        subject.save(tmp_path / "out")
    with pytest.raises(UserError, match="no finished subject"):
        Subject.load(tmp_path / "out")


@pytest.mark.parametrize(
    "change",
    [
        {"names": ["../../secret"], "cut_out": ["no"]},
        {"names": []},
        {"names": "dog-0"},
        {"names": ["dog-0"], "cut_out": []},
        {"size": "large"},
        {"class_noun": ""},
        {"identifier": None},
    ],
    ids=str,
)
def test_an_altered_subject_file_is_refused(photos, tmp_path, change):
    prepare_subject(photos, "dog").save(tmp_path / "out")
    marker = tmp_path / "out" / "subject.json"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), **change}))
    with pytest.raises(UserError):
        Subject.load(tmp_path / "out")


def test_a_picture_that_was_made_oblong_is_refused(photos, tmp_path):
    prepare_subject(photos, "dog").save(tmp_path / "out")
    photo(0, 80, 60).save(tmp_path / "out" / "dog-1.png")
    with pytest.raises(UserError, match="no longer square"):
        Subject.load(tmp_path / "out")


def test_a_subject_file_that_is_not_json_is_refused(photos, tmp_path):
    prepare_subject(photos, "dog").save(tmp_path / "out")
    (tmp_path / "out" / "subject.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        Subject.load(tmp_path / "out")


def subject_of(*images, size=64, caption="a photo of sks dog"):
    names = tuple(f"p{i}" for i in range(len(images)))
    return Subject(images, (caption,) * len(images), names, "dog", cut_out=("no",) * len(images), size=size)


def test_a_good_set_has_no_warnings():
    assert subject_warnings(subject_of(*(photo(i) for i in range(4)))) == []


@pytest.mark.parametrize(
    ("subject", "says"),
    [
        (subject_of(photo(0), photo(1)), "Only 2 pictures"),
        (subject_of(*(photo(i) for i in range(11))), "11 pictures: more than 10"),
        (subject_of(photo(0), photo(1), photo(2), photo(1).resize((64, 64))), "p3 looks the same as p1"),
        (subject_of(photo(0), photo(1), photo(2, 40, 40), size=128), "p2 is only 40 pixels"),
        (subject_of(photo(0), photo(1), photo(2, 256, 256).filter(ImageFilter.GaussianBlur(6))), "p2 looks blurred"),
    ],
    ids=["few", "many", "twins", "tiny", "blurred"],
)
def test_one_flaw_gives_one_warning(subject, says):
    (said,) = subject_warnings(subject)
    assert said.startswith(says) and said.endswith(".")


def test_a_caption_without_the_identifier_is_warned_of():
    said = subject_warnings(subject_of(photo(0), photo(1), photo(2), caption="a dog"))
    assert len(said) == 3 and all("lacks the word" in text for text in said)


@pytest.mark.parametrize(
    ("name", "noun"),
    [("flat-cat", "cat"), ("outlined-monkey", "monkey"), ("flat-moon", "moon"), ("red-haired-woman", "woman")],
)
def test_each_example_is_four_clean_captioned_pictures_that_the_cut_out_leaves_alone(name, noun):
    files = subject_files(EXAMPLES / name)
    subject, cut = prepare_subject(files, noun), prepare_subject(files, noun, cut_out=True)
    assert len(files) == 4 and {image.size for image in subject.images} == {(256, 256)}
    assert all(f"sks {noun}" in caption and "sticker of" in caption for caption in subject.captions)
    assert subject_warnings(subject) == []
    assert [image.tobytes() for image in cut.images] == [image.tobytes() for image in subject.images]


def test_small_is_judged_by_what_the_backbone_draws():
    small = subject_of(*(photo(i, 100, 100) for i in range(3)), size=512)
    assert any("only 100 pixels" in text for text in subject_warnings(small))
    assert not any("pixels" in text for text in subject_warnings(small, resolution=64))

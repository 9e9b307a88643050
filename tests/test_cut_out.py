"""The cut-out against scenes whose subject is known exactly."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from bat_ui.cut_out import cut_out_subject, is_on_white, subject_box


def scene(width=300, height=300, centre=(0.5, 0.55), radius=0.27, seed=0):
    """An orange disc with a blue eye on noisy green ground, and the disc's true mask."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    mask = np.hypot(x - centre[0] * width, y - centre[1] * height) < radius * min(width, height)
    eye = np.hypot(x - centre[0] * width, y - centre[1] * height) < 0.05 * min(width, height)
    rgb = np.where(mask[..., None], (230, 140, 40), (60, 110, 70))
    rgb = np.where(eye[..., None], (30, 40, 160), rgb) + rng.normal(0, 12, (height, width, 3))
    return Image.fromarray(rgb.clip(0, 255).astype(np.uint8)), mask


def overlap(one, other):
    return (one & other).sum() / (one | other).sum()


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"width": 640, "height": 400},
        {"width": 120, "height": 120},
        {"centre": (0.6, 0.45)},
        {"centre": (0.5, 0.85), "radius": 0.3},
    ],
    ids=["middle", "wide", "small", "off the middle", "cut by the lower frame"],
)
def test_the_mask_covers_the_known_subject(shape):
    image, truth = scene(**shape)
    cut, mask = cut_out_subject(image)
    assert overlap(mask, truth) > 0.9
    _, wider = scene(**{**shape, "radius": shape.get("radius", 0.27) + 0.06})
    assert (np.asarray(cut)[~wider] == 255).all(axis=1).mean() > 0.99


def test_the_inside_of_the_subject_keeps_its_pixels():
    image, _ = scene()
    cut, _ = cut_out_subject(image)
    middle = (slice(140, 190), slice(125, 175))
    assert np.array_equal(np.asarray(cut)[middle], np.asarray(image)[middle])


def test_the_same_picture_gives_the_same_cut_out():
    image, _ = scene()
    first = cut_out_subject(image)
    cut_out_subject(scene(seed=1)[0])
    again = cut_out_subject(image)
    assert first[0].tobytes() == again[0].tobytes() and np.array_equal(first[1], again[1])


def test_a_flat_drawing_on_white_is_unchanged_and_its_white_inside_is_not_background():
    drawing = Image.new("RGB", (128, 128), "white")
    pen = ImageDraw.Draw(drawing)
    pen.ellipse((20, 30, 100, 110), "red")
    pen.ellipse((50, 60, 70, 80), "white")
    cut, mask = cut_out_subject(drawing)
    assert cut.tobytes() == drawing.tobytes()
    assert mask[70, 60] and not mask[5, 5] and subject_box(mask) == (20, 30, 101, 111)


@pytest.mark.parametrize("colour", ["grey", "white"])
def test_a_picture_of_nothing_comes_back_uncut_and_says_so(colour):
    blank = Image.new("RGB", (100, 80), colour)
    cut, mask = cut_out_subject(blank)
    assert cut is blank and mask is None


def test_white_is_judged_by_the_frame():
    on_white = Image.new("RGB", (64, 64), (250, 250, 250))
    on_white.paste("black", (10, 10, 54, 54))
    assert is_on_white(on_white) and not is_on_white(scene()[0])


@pytest.mark.parametrize("touching, white", [(0.39, True), (0.41, False)])
def test_a_drawing_may_touch_two_fifths_of_the_frame(touching, white):
    drawing = Image.new("RGB", (100, 100), "white")
    drawing.paste("orange", (0, 0, 100, round(100 * (2 * touching - 0.5))))  # the whole upper side and part of both others
    assert is_on_white(drawing) == white

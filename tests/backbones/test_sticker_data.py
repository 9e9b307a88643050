"""The sticker data: captions, held-out families, and the measurement's own hold-out."""

import re

import numpy as np
import pytest

from bat_ui.backbones.sticker import data


@pytest.fixture(scope="module")
def stickers():
    return data.load_stickers()


def test_captions_are_clean_english(stickers):
    for s in stickers:
        assert re.match(r"^(a flat|an outlined) sticker of \S", s.caption), s.caption
        assert not re.search(r"[_:“”’]|  |skin tone", s.caption), s.caption


@pytest.mark.parametrize(
    "id, caption",
    [
        ("flat/1F639", "a flat sticker of cat with tears of joy"),
        ("outlined/1F469-1F3FD-200D-1F9B0", "an outlined sticker of woman with medium skin and red hair"),
        ("flat/1F469-1F3FF-200D-1F680", "a flat sticker of woman astronaut with dark skin"),
        ("outlined/1F1F3-1F1F4", "an outlined sticker of flag of Norway"),
    ],
)
def test_names_are_what_unicode_says_in_words(stickers, id, caption):
    assert {s.id: s.caption for s in stickers}[id] == caption


def test_every_held_out_code_is_drawn_in_both_styles_and_none_is_training_data(stickers):
    listed = {code for family in data.held_out_families().values() for code in family["codes"]}
    drawn = {(s.style, s.id.split("/")[1]) for s in stickers if s.family}
    assert drawn == {(style, code) for style in data.STYLES for code in listed}
    assert not listed & {s.id.split("/")[1] for s in data.load_stickers() if s.family is None}


@pytest.mark.parametrize("relative", ["1F431", "1F98D", "1F315", "1F552-", "1F468-200D-1F9B0", "1F469-200D-1F680"])
def test_relatives_of_the_families_stay_in_pre_training(stickers, relative):
    training = {s.id.split("/")[1] for s in stickers if s.family is None}
    if relative.endswith("-"):
        assert relative[:-1] not in training  # a clock face, to show that this test can fail
    else:
        assert relative in training


def test_the_recall_holdout_leaves_the_other_style_in():
    from bat_ui.backbones.sticker.data import load_stickers

    training = [s for s in load_stickers() if s.family is None]
    out = data.recall_holdout(training)
    assert len(out) == 200 and out == data.recall_holdout(training)
    ids = {s.id for s in training}
    for id in out:
        style, code = id.split("/")
        other = f"{'flat' if style == 'outlined' else 'outlined'}/{code}"
        assert other in ids - out


def test_pictures_are_drawn_on_white(stickers):
    picture = np.asarray(data.render(stickers[0]))
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
    corners = np.stack([np.asarray(data.render(s))[0, 0] for s in stickers[:: len(stickers) // 40]])
    assert (corners.min(1) > 250).mean() > 0.8

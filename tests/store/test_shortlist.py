from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from bat_ui.errors import UserError
from bat_ui.project import Clock, silent
from bat_ui.search import choose_nearest
from bat_ui.settings import SelectionSettings, TrainingSettings
from bat_ui.store.shortlist import shortlist
from bat_ui.subject import Subject

DIM = 8
EYE = np.eye(DIM)


def near(axis, angle, other):
    """A unit vector at `angle` radians from one axis towards another."""
    return np.cos(angle) * EYE[axis] + np.sin(angle) * EYE[other]


@pytest.fixture
def subject(picture, clip):
    """One subject picture at axis 0; the class prompt 'a cat' at axis 1 and 'a cat asleep' at axis 2."""
    image = picture(1000)
    clip.knows(image, EYE[0])
    clip.knows("a cat", EYE[1])
    clip.knows("a cat asleep", EYE[2])
    return image


@pytest.fixture
def store(build, picture):
    """Ten rows around each of three axes, the farther the higher their number, and ten at random."""
    rows = [
        (f"{axis}-{n}", picture(10 * axis + n), near(axis, 0.1 + 0.05 * n, 3 + n % 5))
        for axis in range(3)
        for n in range(10)
    ]
    rng = np.random.default_rng(5)
    rows += [(f"far-{n}", picture(50 + n), v / np.linalg.norm(v)) for n, v in enumerate(rng.standard_normal((10, DIM)))]
    return build(rows)


def test_subject_and_class_prompt_take_turns_from_the_nearest(store, clip, subject):
    found = shortlist(store, clip, [subject], [], "a cat", size=6)
    assert found.ids == ("0-0", "1-0", "0-1", "1-1", "0-2", "1-2")
    assert found.origins == ("subject", "class") * 3
    assert found.captions[0] == "caption of 0-0"


def test_captions_take_part_without_the_identifier(store, clip, subject):
    found = shortlist(store, clip, [subject], ["a sks cat asleep"], "a cat", size=6)
    assert found.ids == ("0-0", "1-0", "2-0", "0-1", "1-1", "2-1")
    assert found.origins == ("subject", "class", "caption") * 2


def test_similarities_are_the_largest_cosine_to_a_picture_and_the_cosine_to_the_class(store, clip, subject, picture):
    second = picture(1001)
    clip.knows(second, near(0, 1.0, 3))
    found = shortlist(store, clip, [subject, second], [], "a cat", size=12)
    rows = np.stack([store.vectors[store.ids.index(i)].numpy() for i in found.ids])
    np.testing.assert_array_equal(found.vectors.numpy(), rows)
    expected = np.maximum(rows @ EYE[0], rows @ near(0, 1.0, 3))
    np.testing.assert_allclose(found.similarity.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(found.class_similarity.numpy(), rows @ EYE[1], atol=1e-6)


def test_identical_pictures_stand_in_once_even_where_clip_sees_two(build, clip, subject, picture):
    flag = picture(1)
    store = build([("france", flag, near(0, 0.1, 3)), ("st-martin", flag, near(0, 0.5, 4)), ("cat", picture(2), EYE[1])])
    assert set(shortlist(store, clip, [subject], [], "a cat", size=3).ids) == {"france", "cat"}


def test_near_duplicates_are_alike_both_in_clip_space_and_to_the_eye(build, clip, subject, picture):
    brighter = Image.fromarray(np.clip(np.asarray(picture(1)).astype(int) + 9, 0, 255).astype(np.uint8))
    items = {
        "one": (picture(1), EYE[0]),
        "alike in both": (brighter, near(0, 0.05, 3)),
        "alike in clip space": (picture(2), near(0, 0.1, 3)),
    }
    found = shortlist(build([(i, *v) for i, v in items.items()]), clip, [subject], [], "a cat", duplicate_cosine=0.95)
    assert set(found.ids) == {"one", "alike in clip space"}
    items["alike in both"] = (brighter, near(0, 0.8, 3))  # now to the eye only
    found = shortlist(build([(i, *v) for i, v in items.items()]), clip, [subject], [], "a cat", duplicate_cosine=0.95)
    assert len(found) == 3


def test_the_subjects_own_pictures_are_not_candidates(build, clip, subject, picture):
    bigger = subject.resize((64, 64), Image.Resampling.NEAREST)
    store = build([("itself", bigger, EYE[0]), ("other", picture(1), near(0, 0.2, 3))])
    assert shortlist(store, clip, [subject], [], "a cat", size=2).ids == ("other",)


def test_a_place_freed_by_a_duplicate_goes_to_the_next_nearest(build, clip, subject, picture):
    rows = [(f"same-{n}", picture(1), near(0, 0.01 * n, 3)) for n in range(20)]
    rows += [(f"other-{n}", picture(2 + n), near(0, 0.5 + 0.01 * n, 3)) for n in range(20)]
    found = shortlist(build(rows), clip, [subject], [], "a cat", size=5)
    assert len(found) == 5
    assert sum(i.startswith("same") for i in found.ids) == 1


def test_the_random_part_adds_others_by_its_seed(store, clip, subject):
    plain = shortlist(store, clip, [subject], [], "a cat", size=6)
    found = [shortlist(store, clip, [subject], [], "a cat", size=6, num_random=8, seed=s) for s in (0, 0, 1)]
    assert all(f.ids[:6] == plain.ids and f.origins[6:] == ("random",) * 8 for f in found)
    assert len(set(found[0].ids)) == 14
    assert found[0].ids == found[1].ids
    assert found[0].ids != found[2].ids


def test_equal_arguments_give_equal_results(store, clip, subject):
    one, two = (shortlist(store, clip, [subject], ["a cat asleep"], "a cat", size=20, num_random=5) for _ in range(2))
    assert (one.ids, one.captions, one.origins) == (two.ids, two.captions, two.origins)
    for name in ("vectors", "similarity", "class_similarity"):
        assert torch.equal(getattr(one, name), getattr(two, name))


def test_those_nearest_to_the_class_can_come_first(store, clip, subject):
    found = shortlist(store, clip, [subject], [], "a cat", size=6)
    ordered, rows = found.class_first(), {i: n for n, i in enumerate(found.ids)}
    assert list(ordered.ids) == sorted(found.ids, key=lambda i: -float(found.class_similarity[rows[i]]))
    for name in ("captions", "origins", "vectors", "similarity", "class_similarity"):
        before, after = getattr(found, name), getattr(ordered, name)
        assert all(np.array_equal(after[n], before[rows[i]]) for n, i in enumerate(ordered.ids))


def test_a_store_smaller_than_the_size_comes_whole(store, clip, subject):
    found = shortlist(store, clip, [subject], [], "a cat", size=400, num_random=50)
    assert sorted(found.ids) == sorted(store.ids)


def test_bad_input_is_refused_with_a_sentence(store, clip, new_clip, subject):
    with pytest.raises(UserError, match="at least one picture"):
        shortlist(store, clip, [], [], "a cat")
    with pytest.raises(UserError, match="what the subject is"):
        shortlist(store, clip, [subject], [], "  ")
    with pytest.raises(UserError, match="another CLIP model"):
        shortlist(store, new_clip(digest="other"), [subject], [], "a cat")


def test_a_store_of_the_subjects_own_pictures_says_so(build, clip, subject):
    store = build([("mine", subject, EYE[0])])
    with pytest.raises(UserError, match="choose another store"):
        shortlist(store, clip, [subject], [], "a cat")


def test_the_nearest_rule_gives_no_place_to_neighbours_of_the_class(store, clip, subject):
    backbone, settings = SimpleNamespace(clip=clip, class_prompt=lambda noun: "a cat"), SelectionSettings("nearest", 8, 8)
    mine = Subject((subject,), ("a sks cat",), ("one",), "cat", "sks", ("no",))
    choice = choose_nearest(None, backbone, store, mine, settings, TrainingSettings(), silent, Clock())
    assert {c.id for c in choice.chosen} == {f"0-{n}" for n in range(8)}

"""How a choice looks: what is known is said in words, what a rule does not compute is not shown, text stays text."""

from dataclasses import replace
from xml.etree import ElementTree

import pytest
from PIL import Image

from bat_ui.choice import Candidate, Choice
from bat_ui.project import Project
from bat_ui.web import candidates

ROWS = (
    Candidate("a/1", "a flat sticker of <cat> & dog", 0.912, 0, "valid", 0.123, 1, True, class_similarity=0.313),
    Candidate("a/2", "a moon", 0.5, 1, "harmful", None, None, False),
)
GROUPS = tuple(
    {"group": g, "size": 1, "verdict": v, "disagreement": 0.1, "interval": [0.0, 0.2], "evidence": 1.0}
    for g, v in enumerate(("valid", "harmful"))
)
CHOICE = Choice("albat", ROWS, errors=(1.0, 0.877), knee=1, groups=GROUPS)


@pytest.fixture()
def project(tmp_path):
    project = Project(tmp_path)
    project.candidates.mkdir()
    for row in ROWS:
        Image.new("RGB", (64, 64)).save(project.candidate_picture(row.id))
    return project


def buttons_of(project, choice):
    markup = candidates.cards(project, choice, [c.id for c in choice.candidates])
    closed = markup.replace('height="96">', 'height="96"/>')
    return {button.get("data-id"): button for button in ElementTree.fromstring(closed)}


def test_a_card_says_caption_similarity_and_reason_and_whether_it_is_taken(project):
    taken, other = (buttons_of(project, CHOICE)[id] for id in ("a/1", "a/2"))
    words = " ".join(taken.itertext())
    for said in (
        "a flat sticker of <cat> & dog",
        "#1",
        "subject 0.91, class 0.31",
        "among the nearest to your class; its kind is close",
    ):
        assert said in words
    assert (taken.get("aria-pressed"), other.get("aria-pressed")) == ("true", "false")
    assert "pulls the model away" in " ".join(other.itertext())


def test_a_rule_without_verdicts_and_gains_shows_none(project):
    plain = Choice("nearest", tuple(replace(c, verdict=None, gain=None, group=None) for c in ROWS), 1)
    words = " ".join(buttons_of(project, plain)["a/1"].itertext())
    assert "error" not in words and "away from your subject" not in words
    assert candidates.curve(plain) == ""


@pytest.mark.parametrize(
    "errors, said",
    [
        ((1.0, 0.9, 0.42, 0.4), "97% of that fall is won with 2, as suggested; more of them repeat what is known"),
        ((1.0, 0.9, 0.8, 0.4), "33% of that fall is won with 2, as suggested; more of them count for little each"),
        ((1.0, 0.9, 0.4, 0.39, 0.6), "with many more it rises again"),
    ],
)
def test_the_curve_says_how_much_of_its_fall_the_suggested_number_wins(errors, said):
    assert said in candidates.curve(replace(CHOICE, errors=errors, knee=2))


def test_a_caption_that_hardly_fits_is_said_on_the_card_and_counted_among_those_taken(project):
    wrong = replace(CHOICE, candidates=tuple(replace(c, caption_fits=False) for c in ROWS))
    assert all("caption hardly fits" in " ".join(b.itertext()) for b in buttons_of(project, wrong).values())
    assert "1 of them has a caption that hardly fits" in candidates.summary(wrong)
    assert "hardly fit" not in candidates.summary(CHOICE) + candidates.cards(project, CHOICE, ["a/1", "a/2"])


def test_a_number_beyond_the_lowest_point_of_the_curve_is_explained():
    said = candidates.curve(replace(CHOICE, errors=(1.0, 0.8, 1.2), knee=2))
    assert "lowest with 1 (0.80)" in said and "2 are suggested all the same" in said


def test_the_summary_counts_what_is_taken_and_what_it_is_predicted_to_bring():
    assert "1 of 2 taken" in candidates.summary(CHOICE) and "falls to 88%" in candidates.summary(CHOICE)
    none = replace(CHOICE, candidates=tuple(replace(c, chosen=False) for c in ROWS))
    assert "0 of 2 taken" in candidates.summary(none) and "falls to" not in candidates.summary(none)
    assert "changed by hand" in candidates.summary(replace(CHOICE, dropped=("a/2",)))


def test_the_curve_marks_the_present_choice():
    assert "1 taken" in candidates.curve(CHOICE)


@pytest.mark.parametrize(
    "lowest, turning, says",
    [
        (10, 10, "come in almost at once"),
        (40, 40, "better until about step 40"),
        (10, 40, "best at about step 10 and hardly worse up to step 40"),
        (100, 92, "To the end of the trial it got no worse: backbone pictures come in late, from step 92 on"),
        (
            40,
            100,
            "best at about step 40 and hardly worse to the end of the trial: backbone pictures come in late, from step 100",
        ),
    ],
)
def test_when_backbone_pictures_come_in_is_said_with_the_losses_that_say_so(lowest, turning, says):
    losses = tuple({"step": step, "loss": abs(step - lowest) / 100} for step in (10, 40, 100))
    shown = candidates.when(replace(CHOICE, subject_steps=turning, strength=1.5, most_strength=4.0, left_out=losses))
    assert says in shown and "yours are 40% of what is learned" in shown
    assert f"backbone pictures from step {turning}" in shown
    assert candidates.when(CHOICE) == ""
    nothing = replace(CHOICE, candidates=(), subject_steps=turning, left_out=losses)
    assert "of what is learned" not in candidates.when(nothing)


def test_the_groups_table_has_a_row_and_a_verdict_for_each_group(project):
    table = candidates.groups(project, CHOICE)
    assert table.count("<tr>") == 3 and "close enough to help" in table and "pulls away from your subject" in table


def test_an_added_picture_is_labelled_and_changes_no_prediction(project):
    added = Candidate("a/3", "a sun", 0.4, chosen=True, origin="added")
    choice = replace(CHOICE, candidates=(*ROWS, added))
    words = " ".join(buttons_of(project, choice)["a/3"].itertext())
    assert "added by you" in words and "Not checked" in words and "%" not in words and "#" not in words
    said = candidates.summary(choice)
    assert "2 of 3 taken" in said and "falls to 88%" in said and "1 added by you is not checked" in said
    assert "1 taken" in candidates.curve(choice)


def test_marks_stand_where_another_rule_differs_and_nowhere_else(project):
    other = replace(CHOICE, rule="nearest", candidates=tuple(replace(c, chosen=not c.chosen) for c in ROWS))
    markup = candidates.cards(project, CHOICE, ["a/1", "a/2"], other)
    assert "Nearest would leave it out" in markup and "Nearest would take it" in markup
    assert "versus" not in candidates.cards(project, CHOICE, ["a/1", "a/2"], CHOICE)
    said = candidates.comparison(CHOICE, other, (0.5, 0.75))
    assert "1 of the same candidates: 0 that are taken now and 1 other." in said and "50%" in said and "75%" in said


@pytest.mark.parametrize(
    ("verdict", "evidence", "says"),
    [
        ("valid", 0.0, "Nothing in how it pulls"),
        (
            "valid",
            3.0,
            "fits “disagrees with your subject” 20 times better than “agrees”, but it is not too far off to help.",
        ),
        ("harmful", 3.0, "fits “disagrees with your subject” 20 times better than “agrees”."),
        ("harmful", 900.0, "over 1,000 times"),
        ("too small to judge", 3.0, "With so few"),
    ],
)
def test_a_verdict_says_what_it_rests_on(project, verdict, evidence, says):
    group = {**GROUPS[0], "verdict": verdict, "evidence": evidence}
    assert says in candidates.groups(project, replace(CHOICE, groups=(group,)))


def test_the_symbols_are_one_click_away():
    assert "<details" in candidates.SYMBOLS and "λ" in candidates.SYMBOLS and "<details open" not in candidates.SYMBOLS

"""The estimate of a training: sums written out, by what a run or the search measured, and never without one."""

import pytest
from PIL import Image

from bat_ui import registry
from bat_ui.choice import Choice
from bat_ui.estimate import estimate
from bat_ui.files import write_json
from bat_ui.settings import TrainingSettings, ValidationSettings
from bat_ui.subject import Subject


@pytest.fixture
def project():
    made = registry.make()
    images = tuple(Image.new("RGB", (8, 8), (60 * i, 0, 0)) for i in range(2))
    Subject(images, ("sks one", "sks two"), ("a", "b"), "face", "sks", ("no", "no")).save(made.subject)
    return made


def write_status(place, verb, memory, **paces):
    """A finished verb that was ready 5 s after its start."""
    parts = {name.replace("_", " "): {"since": 105.0 + i, "pace": pace} for i, (name, pace) in enumerate(paces.items())}
    parts["Starting"] = {"since": 100.0}
    write_json(place.status_file(verb), {"state": "done", "started": 100.0, "parts": parts, "memory": memory})


def test_nothing_is_said_before_anything_was_measured(project):
    assert estimate(project, TrainingSettings(), ValidationSettings()) is None


def test_the_search_says_how_long_a_first_run_takes(project):
    """Two steps a second with four pictures: an eighth of a second for each, two thirds of it to draw one a step."""
    write_status(project, "select", {"ram": 7}, Training_the_surrogate=2.0)
    project.remember(TrainingSettings(batch_size=4))
    found = estimate(project, TrainingSettings(steps=100, checkpoint_every=30, batch_size=2), ValidationSettings())
    checkpoints, prompts, pictures, steps = 5, 3, 2, 10  # 0, 30, 60, 90, 100; two captions and the class
    drawing = checkpoints * prompts * pictures * steps / 8 * 2 / 3
    assert found.seconds == pytest.approx(5 + 100 * 2 / 8 + drawing) and found.memory == {}, (
        "another batch takes other memory"
    )
    alike = estimate(project, TrainingSettings(batch_size=4), ValidationSettings())
    assert alike.memory == {"ram": 7}


def test_the_last_run_that_came_far_enough_says_it_better(project):
    write_status(project, "select", {"ram": 7}, Training_the_surrogate=2.0)
    Choice("none", (), 0).save(project.choice)
    for pace, drawn in ((9.0, 9.0), (4.0, 0.5)):
        run = project.new_run(TrainingSettings(batch_size=4), ValidationSettings(validation_images=1, validation_steps=4))
        write_status(run, "train", {"ram": 9}, Drawing_samples=drawn, Training=pace)
    write_status(project.new_run(TrainingSettings()), "train", {"ram": 1}, Training=None)  # was stopped at once
    validation = ValidationSettings("one\ntwo\nthree", validation_images=2, validation_steps=8)
    found = estimate(project, TrainingSettings(steps=50, checkpoint_every=50, batch_size=8), validation)
    assert found.seconds == pytest.approx(5 + 50 / 2 + 2 * 4 * (2 * 8) * 2 / 4) and found.memory == {}
    assert estimate(project, TrainingSettings(batch_size=4), validation).memory == {"ram": 9}


def test_no_pictures_at_checkpoints_take_no_time(project):
    write_status(project, "select", {}, Training_the_surrogate=2.0)
    found = estimate(project, TrainingSettings(steps=10), ValidationSettings(validation_images=0))
    assert found.seconds == pytest.approx(5 + 10 / 2)

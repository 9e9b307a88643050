"""Validation: the prompts, and metrics that agree with their definitions written out."""

import json

import numpy as np
import pytest
from PIL import Image

from bat_ui.project import Run, silent
from bat_ui.samples import steps_with_samples
from bat_ui.settings import ValidationSettings
from bat_ui.subject import Subject
from bat_ui.validation import Validation


def subject_of(count: int) -> Subject:
    images = tuple(Image.new("RGB", (64, 64), (80 * i, 200 - 60 * i, 40)) for i in range(count))
    names, captions = tuple(f"p{i}" for i in range(count)), tuple(f"a sticker of sks face {i}" for i in range(count))
    return Subject(images, captions, names, "face", "sks", ("no",) * count)


@pytest.mark.parametrize(
    "given, prompts",
    [("", ["a", "b"]), ("x | y", ["x", "y"]), ("x\n\n y \nx", ["x", "y"]), (" | ", ["a", "b"])],
)
def test_prompts_are_those_given_else_the_first_captions_each_once(given, prompts):
    assert ValidationSettings(given).prompts(["a", "b", "a", "c"]) == prompts


def test_the_metrics_are_their_definitions_written_out(backbone, tmp_path):
    run, subject = Run(tmp_path), subject_of(2)
    settings = ValidationSettings("one sks face\ntwo sks faces", 2, 1)
    Validation(run, backbone, subject, settings, 0, silent)(0)
    [row] = [json.loads(text) for text in run.metrics.read_text().splitlines()]
    samples = steps_with_samples(run)[0]
    assert [(s["prompt"], s["seed"], s["of"]) for s in samples] == [
        ("one sks face", 0, "subject"),
        ("one sks face", 1, "subject"),
        ("two sks faces", 0, "subject"),
        ("two sks faces", 1, "subject"),
        (backbone.class_prompt("face"), 0, "class"),
        (backbone.class_prompt("face"), 1, "class"),
    ]
    drawn = backbone.clip.embed_images([Image.open(s["file"]) for s in samples]).numpy()
    true = backbone.clip.embed_images(subject.images).numpy()
    texts = backbone.clip.embed_texts(["one face", "two faces"]).numpy()
    assert row["clip_i"] == pytest.approx(np.mean([a @ b for a in drawn[:4] for b in true]), abs=1e-4)
    assert row["clip_t"] == pytest.approx(np.mean([drawn[i] @ texts[i // 2] for i in range(4)]), abs=1e-4)
    assert row["diversity"] == pytest.approx(1 - np.mean([drawn[0] @ drawn[1], drawn[2] @ drawn[3]]), abs=1e-4)
    assert row["pres"] == pytest.approx(np.mean([a @ b for a in drawn[4:] for b in true]), abs=1e-4)


def test_a_step_that_was_validated_is_left_alone_and_later_ones_are_forgotten(backbone, tmp_path):
    run, subject, settings = Run(tmp_path), subject_of(1), ValidationSettings("a", 1, 1)
    validate = Validation(run, backbone, subject, settings, 0, silent)
    for step in (0, 3, 3, 6):
        validate(step)
    with open(run.metrics, "a") as log:
        log.write('{"step": 9, "clip')  # a process that was killed while it wrote
    again = Validation(run, backbone, subject, settings, 3, silent)
    for step in (3, 6):
        again(step)
    rows = [json.loads(text) for text in run.metrics.read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 3, 6] and rows[0]["diversity"] is None


def test_no_pictures_means_no_files(backbone, tmp_path):
    Validation(Run(tmp_path), backbone, subject_of(1), ValidationSettings(validation_images=0), 0, silent)(0)
    assert steps_with_samples(Run(tmp_path)) == {}

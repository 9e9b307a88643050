"""Step 4: which run draws where none was chosen, and what is said of prompts that hardly are meant so."""

import json

import pytest

from bat_ui.project import Project
from bat_ui.web.generation import MOST_WORDS, _first_prompts, _hints, _run


@pytest.fixture()
def project(tmp_path):
    """Two runs with an adapter, the later one stopped after a step."""
    project = Project(tmp_path / "project")
    for name, state in (("001", "done"), ("002", "stopped")):
        run = project.folder / "runs" / name
        for folder in ("lora", "status", "subject", "samples"):
            (run / folder).mkdir(parents=True)
        (run / "lora" / "pytorch_lora_weights.safetensors").write_bytes(b"weights")
        (run / "status" / "train.json").write_text(json.dumps({"state": state}))
        (run / "subject" / "subject.json").write_text(json.dumps({"identifier": "sks", "class_noun": "cat"}))
    return project


def test_the_latest_run_that_came_to_its_end_draws_until_another_is_chosen(project):
    assert _run(project, None).folder.name == "001"
    assert _run(project, "002").folder.name == "002"
    (project.runs[1].folder / "status" / "train.json").write_text('{"state": "done"}')
    assert _run(project, None).folder.name == "002"


def test_the_prompts_that_were_drawn_last_are_there_again(project):
    rows = [{"file": f"{i}.png", "prompt": prompt, "seed": i} for i, prompt in enumerate(("one sks", "two sks", "one sks"))]
    (project.runs[0].samples / "samples.json").write_text(json.dumps(rows))
    assert _first_prompts(project) == "one sks\ntwo sks"


def test_a_prompt_without_the_subjects_name_or_too_long_is_drawn_with_a_word_of_warning(project):
    run = project.runs[0]
    assert _hints(run, ["a photo of sks cat", "sks"]) == []
    [said] = _hints(run, ["a photo of sksy cat"])
    assert "does not name your subject: it is called “sks”" in said
    [said] = _hints(run, ["sks " + "very " * MOST_WORDS + "fluffy"])
    assert "is long" in said and len(said) < 160

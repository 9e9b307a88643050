"""The whole line on a tiny random backbone: files, determinism, resuming."""

import json
import os
import shutil

import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from bat_ui import line
from bat_ui.backbones import load_backbone
from bat_ui.choice import Choice
from bat_ui.cli import main
from bat_ui.export.card import write_card
from bat_ui.project import Project
from bat_ui.samples import drawn_earlier, steps_with_samples
from bat_ui.settings import BackboneSettings
from bat_ui.web.words import run_name

QUICK = ["--shortlist", "24", "--draws", "2", "--sketch-size", "64", "--steps", "4"]
QUICK += ["--checkpoint-every", "2", "--num-images", "2", "--sampling-steps", "2", "--rank", "2"]


def personalize(subject_folder, backbone_folder, out, *more) -> int:
    arguments = ["personalize", str(subject_folder), "--class-noun", "face", "--out", str(out)]
    return main([*arguments, "--backbone", str(backbone_folder), *QUICK, *more])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_backbone_folder):
    from PIL import Image, ImageDraw

    folder = tmp_path_factory.mktemp("photos")
    for i in range(4):
        image = Image.new("RGB", (96, 96), "white")
        ImageDraw.Draw(image).ellipse((8, 8, 88, 60 + 9 * i), fill="gold", outline="black")
        image.save(folder / f"face{i}.png")
    out = tmp_path_factory.mktemp("out")
    assert personalize(folder, tiny_backbone_folder, out, "--prompt", "a sticker of sks face", "--num-backbone", "5") == 0
    return folder, out


def test_personalize_leaves_every_file_that_it_promises(finished):
    _, out = finished
    choice = json.loads((out / "selection.json").read_text())
    assert len(choice["candidates"]) == 24
    assert {"id", "caption", "similarity", "group", "verdict", "gain", "rank", "chosen"} <= set(choice["candidates"][0])
    assert len(list((out / "samples").glob("*.png"))) == 2
    assert (out / "contact_sheet.png").is_file()
    report = json.loads((out / "report.json").read_text())
    assert report["training"]["steps"] == 4 and report["generation"]["seconds"]["with_adapter"] > 0
    assert set(report) >= {"subject", "selection", "training", "generation", "versions", "hardware"}


def test_the_run_is_alone_with_the_subject_for_as_long_as_left_out_pictures_say(finished):
    _, out = finished
    choice = json.loads((out / "selection.json").read_text())
    steps = [row["step"] for row in choice["left_out"]]
    alone = json.loads((out / "report.json").read_text())["training"]["steps_alone"]
    assert alone == choice["subject_steps"] != line.TrainingSettings(steps=4).steps_alone
    assert min(steps) <= alone <= max(steps)


def test_the_adapter_loads_with_the_pipelines_own_loader(finished, tiny_backbone_folder):
    _, out = finished
    backbone = load_backbone(str(tiny_backbone_folder))
    backbone.pipeline.load_lora_weights(out / "lora")
    loaded = {n.replace(".default_0", ""): p for n, p in backbone.unet.named_parameters() if "lora_" in n}
    stored = load_file(out / "lora" / "pytorch_lora_weights.safetensors")
    assert set(stored) == {f"unet.{name}" for name in loaded}
    assert all(torch.equal(stored[f"unet.{name}"], p) for name, p in loaded.items())
    assert any(".to_q." in name for name in loaded) and any(".conv1." in name for name in loaded)


def test_the_same_seed_gives_identical_files(finished, tiny_backbone_folder, tmp_path):
    folder, out = finished
    again = tmp_path / "again"
    more = ["--prompt", "a sticker of sks face", "--num-backbone", "5"]
    assert personalize(folder, tiny_backbone_folder, again, *more) == 0
    for name in ("selection.json", "lora/pytorch_lora_weights.safetensors", "samples/000.png", "samples/001.png"):
        assert (out / name).read_bytes() == (again / name).read_bytes(), name


def test_another_seed_gives_another_adapter(finished, tiny_backbone_folder, tmp_path):
    folder, out = finished
    assert personalize(folder, tiny_backbone_folder, tmp_path / "o", "--rule", "none", "--seed", "7") == 0
    name = "lora/pytorch_lora_weights.safetensors"
    assert (out / name).read_bytes() != (tmp_path / "o" / name).read_bytes()


@pytest.mark.parametrize("rule, chosen", [("none", 0), ("nearest", 5), ("random", 5)])
def test_each_simple_rule_takes_the_number_asked_for(rule, chosen, subject_folder, tiny_backbone_folder, tmp_path):
    out = tmp_path / "out"
    arguments = ["select", str(subject_folder), "--class-noun", "face", "--out", str(out), "--rule", rule]
    assert main([*arguments, "--num-backbone", "5", "--shortlist", "12", "--backbone", str(tiny_backbone_folder)]) == 0
    choice = json.loads((out / "selection.json").read_text())
    assert sum(c["chosen"] for c in choice["candidates"]) == chosen
    assert all(c["gain"] is None and c["verdict"] is None for c in choice["candidates"])


def test_a_stopped_run_resumes_to_the_weights_of_an_uninterrupted_one(finished, tiny_backbone_folder, tmp_path):
    folder, out = finished
    stopped = tmp_path / "stopped"
    arguments = ["select", str(folder), "--class-noun", "face", "--out", str(stopped), "--num-backbone", "5"]
    assert main([*arguments, "--backbone", str(tiny_backbone_folder), *QUICK[:6], "--rank", "2", "--steps", "4"]) == 0
    backbone, asked = load_backbone(str(tiny_backbone_folder)), iter([False, False, True])
    settings = line.TrainingSettings(steps=4, rank=2, checkpoint_every=2)
    assert line.run_training(Project(stopped), backbone, settings, stop=lambda: next(asked)) is False
    assert line.run_training(Project(stopped), backbone, settings, resume=True) is True
    name = "lora/pytorch_lora_weights.safetensors"
    assert (out / name).read_bytes() == (stopped / name).read_bytes()
    steps = [json.loads(row)["step"] for row in (stopped / "losses.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


def test_an_ingested_store_is_chosen_from_and_named_in_selection_and_report(
    tmp_path, subject_folder, tiny_backbone_folder, monkeypatch, capsys
):
    monkeypatch.setenv("BAT_UI_DATA", str(tmp_path / "data"))
    (subject_folder / "notes").mkdir()
    for path in subject_folder.glob("*.png"):
        path.with_suffix(".txt").write_text(f"a drawing, {path.stem}")
        path.rename(subject_folder / "notes" / path.name)
        path.with_suffix(".txt").rename(subject_folder / "notes" / path.with_suffix(".txt").name)
    for n in range(30):
        image = Image.effect_noise((64, 64), 20 + 5 * n)
        image.save(subject_folder / f"{n}.png")
        (subject_folder / f"{n}.txt").write_text(f"noise {n}")
    backbone = ["--backbone", str(tiny_backbone_folder)]
    ingested = ["ingest", str(subject_folder), "--store", "noises", "--licence", "CC0", "--proxy", "--title", "Noises"]
    assert main([*ingested, *backbone]) == 0
    assert "34 pictures, 34 of them new" in capsys.readouterr().out
    photos, out = subject_folder / "notes", tmp_path / "out"
    for path in photos.glob("*.txt"):
        path.unlink()
    arguments = ["select", str(photos), "--class-noun", "noise", "--out", str(out), "--store", "noises", *backbone]
    assert main([*arguments, *QUICK[:6]]) == 0
    selection, report = (json.loads((out / name).read_text()) for name in ("selection.json", "report.json"))
    expected = {"name": "noises", "title": "Noises", "count": 34, "source": "photos", "licence": "CC0", "proxy": True}
    assert expected.items() <= selection["store"].items() and expected.items() <= report["selection"]["store"].items()
    assert str(tmp_path) not in (out / "report.json").read_text()
    assert all(candidate["id"].startswith("photos/") for candidate in selection["candidates"])
    assert not any("notes/" in candidate["id"] for candidate in selection["candidates"])  # the subject's own pictures
    assert main(["train", str(out), *backbone, *QUICK[6:10], "--rank", "2"]) == 0


def test_a_store_of_another_clip_model_is_refused(tmp_path, subject_folder, tiny_backbone_folder, monkeypatch, capsys):
    from bat_ui.store.ingest import ingest

    backbone = load_backbone(str(tiny_backbone_folder))
    with monkeypatch.context() as patch:
        patch.setattr(backbone.clip, "digest", "other")
        ingest(str(subject_folder), tmp_path / "store", backbone.clip)
    arguments = ["select", str(subject_folder), "--class-noun", "face", "--out", str(tmp_path / "out"), "--rule", "random"]
    assert main([*arguments, "--store", str(tmp_path / "store"), "--backbone", str(tiny_backbone_folder)]) == 2
    assert "another CLIP model" in capsys.readouterr().err


def test_a_training_leaves_samples_and_metrics_of_each_checkpoint_and_the_start(finished):
    _, out = finished
    rows = [json.loads(row) for row in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert all(-1 <= row[name] <= 1 for row in rows for name in ("clip_i", "clip_t", "pres"))
    steps = steps_with_samples(Project(out))
    assert list(steps) == [0, 2, 4] and len({tuple((p["prompt"], p["seed"]) for p in rows) for rows in steps.values()}) == 1
    assert [row["file"].is_file() for row in steps[4]] == [True] * len(steps[4])


def test_drawing_at_checkpoints_changes_no_weight_and_a_stop_between_them_changes_no_metric(
    finished, tiny_backbone_folder, tmp_path
):
    _, out = finished
    name = "lora/pytorch_lora_weights.safetensors"
    arguments = ["--backbone", str(tiny_backbone_folder), "--steps", "4", "--checkpoint-every", "2", "--rank", "2"]
    for folder in ("without", "stopped"):
        shutil.copytree(out / "subject", tmp_path / folder / "subject")
        shutil.copy(out / "selection.json", tmp_path / folder)
    assert main(["train", str(tmp_path / "without"), *arguments, "--validation-images", "0"]) == 0
    assert (tmp_path / "without" / name).read_bytes() == (out / name).read_bytes()
    assert not list((tmp_path / "without").glob("samples/step-*"))
    backbone, asked = load_backbone(str(tiny_backbone_folder)), iter([False, False, True])
    stopped, settings = Project(tmp_path / "stopped"), line.TrainingSettings(steps=4, rank=2, checkpoint_every=2)
    line.run_training(stopped, backbone, settings, stop=lambda: next(asked), validation=line.ValidationSettings())
    assert list(steps_with_samples(stopped)) == [0, 2]
    assert main(["train", str(stopped.folder), "--backbone", str(tiny_backbone_folder), "--resume"]) == 0
    for file in (name, "metrics.jsonl", "samples/step-000004/00-01.png"):
        assert (stopped.folder / file).read_bytes() == (out / file).read_bytes(), file


def test_a_run_is_not_resumed_with_settings_that_its_checkpoints_were_not_made_with(
    finished, tiny_backbone_folder, tmp_path, capsys
):
    _, out = finished
    shutil.copytree(out, tmp_path / "run")
    arguments = ["train", str(tmp_path / "run"), "--backbone", str(tiny_backbone_folder), "--resume"]
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert main([*arguments, "--rank", "3"]) == 2
    assert "begun with rank 2" in capsys.readouterr().err
    assert main([*arguments, "--steps", "2"]) == 2
    assert "4 steps behind it" in capsys.readouterr().err
    assert Project(tmp_path / "run").remembered(line.TrainingSettings).steps == 4
    assert main(["choose", str(tmp_path / "run"), "--number", "2"]) == 0
    assert main(arguments) == 2
    assert "Other pictures are taken now" in capsys.readouterr().err
    assert main(["choose", str(tmp_path / "run"), "--undo"]) == 0
    kept = [path for path in before if path.parent.name in ("lora", "step-000004")]
    assert len(kept) > 2 and all(path.read_bytes() == before[path] for path in kept)
    assert main([*arguments, "--steps", "5"]) == 0, "a run may be made longer"
    assert json.loads((tmp_path / "run" / "losses.jsonl").read_text().splitlines()[-1])["step"] == 5


def other_model(folder, at):
    """The backbone in `folder` with other weights of the same shapes, as a fine-tuned one has."""
    shutil.copytree(folder, at)
    for file in (at / "pipeline" / "unet").glob("*.safetensors"):
        save_file({key: value + 0.05 for key, value in load_file(file).items()}, file, {"format": "pt"})
    return at


def files_of(folder) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.parent.name != "status"}


def test_what_is_done_with_a_project_is_done_with_its_own_backbone(finished, tiny_backbone_folder, tmp_path):
    _, out = finished
    shutil.copytree(out, tmp_path / "run")
    assert main(["train", str(tmp_path / "run"), "--resume", "--steps", "5"]) == 0
    assert main(["generate", str(tmp_path / "run"), "--num-images", "1", "--sampling-steps", "1"]) == 0
    assert main(["export", str(tmp_path / "run"), "--format", "diffusers"]) == 0
    assert Project(tmp_path / "run").remembered(BackboneSettings).backbone == str(tiny_backbone_folder.resolve())


@pytest.mark.parametrize("asked", [("train", "--resume", "--steps", "5"), ("export", "--format", "kohya")])
def test_another_backbone_than_the_adapter_s_is_refused_and_changes_nothing(
    asked, finished, tiny_backbone_folder, tmp_path, capsys
):
    _, out = finished
    shutil.copytree(out, tmp_path / "run")
    other = other_model(tiny_backbone_folder, tmp_path / "other")
    before = files_of(tmp_path / "run")
    assert main([asked[0], str(tmp_path / "run"), *asked[1:], "--backbone", str(other)]) == 2
    assert "trained on another backbone" in capsys.readouterr().err
    assert files_of(tmp_path / "run") == before
    shutil.copytree(tiny_backbone_folder, tmp_path / "moved")
    assert main([asked[0], str(tmp_path / "run"), *asked[1:], "--backbone", str(tmp_path / "moved")]) == 0


def test_a_run_without_a_whole_checkpoint_is_not_resumed_and_keeps_its_adapter(finished, tmp_path, capsys):
    _, out = finished
    shutil.copytree(out, tmp_path / "run")
    for state in (tmp_path / "run" / "checkpoints").glob("*/state.safetensors"):
        state.write_bytes(state.read_bytes()[:-1])
    before = files_of(tmp_path / "run")
    assert main(["train", str(tmp_path / "run"), "--resume"]) == 2
    assert "train anew, without resuming" in capsys.readouterr().err
    assert files_of(tmp_path / "run") == before


def test_what_an_earlier_training_left_stays_until_the_next_one_can_begin(
    finished, tiny_backbone_folder, tmp_path, monkeypatch
):
    def no_room(*_):
        raise MemoryError

    _, out = finished
    shutil.copytree(out, tmp_path / "run")
    before = files_of(tmp_path / "run")
    monkeypatch.setattr(line, "new_optimizer", no_room)
    with pytest.raises(MemoryError):
        line.run_training(Project(tmp_path / "run"), load_backbone(str(tiny_backbone_folder)), line.TrainingSettings(rank=2))
    assert files_of(tmp_path / "run") == before


@pytest.mark.parametrize(
    "wrong",
    [
        ("--seed", str(2**32)),
        ("--rank", "0"),
        ("--checkpoint-every", "0"),
        ("--learning-rate", "nan"),
        ("--learning-rate", "0"),
        ("--steps", "0"),
    ],
)
def test_a_setting_that_makes_no_sense_costs_nothing(wrong, finished, tiny_backbone_folder, tmp_path, capsys):
    _, out = finished
    shutil.copytree(out / "lora", tmp_path / "run" / "lora")
    shutil.copytree(out / "subject", tmp_path / "run" / "subject")
    shutil.copy(out / "selection.json", tmp_path / "run")
    assert main(["train", str(tmp_path / "run"), "--backbone", str(tiny_backbone_folder), *wrong]) == 2
    said = capsys.readouterr().err.strip()
    assert "give" in said and "Traceback" not in said
    name = "lora/pytorch_lora_weights.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (out / name).read_bytes()


def test_a_run_that_begins_anew_draws_its_start_anew(finished, tiny_backbone_folder, tmp_path):
    _, out = finished
    shutil.copytree(out, tmp_path / "run")
    arguments = ["--backbone", str(tiny_backbone_folder), "--steps", "1", "--validation-prompts", "a red sticker"]
    assert main(["train", str(tmp_path / "run"), *arguments]) == 0
    drawn = steps_with_samples(Project(tmp_path / "run"))
    assert {row["prompt"] for row in drawn[0] if row["of"] == "subject"} == {"a red sticker"}


def test_a_second_training_of_a_run_is_refused_while_the_first_goes_on(finished, tiny_backbone_folder, tmp_path, capsys):
    _, out = finished
    shutil.copytree(out, tmp_path / "run")
    status = tmp_path / "run" / "status" / "train.json"
    other = psutil.Process(os.getppid())
    status.write_text(json.dumps({"state": "running", "pid": other.pid, "pid_started": other.create_time()}))
    assert main(["train", str(tmp_path / "run"), "--backbone", str(tiny_backbone_folder)]) == 2
    assert f"number {other.pid}" in capsys.readouterr().err
    assert list((tmp_path / "run" / "checkpoints").iterdir()) and json.loads(status.read_text())["pid"] == other.pid


def test_more_prompts_than_samples_are_refused(finished, tiny_backbone_folder, capsys):
    _, out = finished
    prompts = [word for name in "abc" for word in ("--prompt", name)]
    assert main(["generate", str(out), "--backbone", str(tiny_backbone_folder), "--num-images", "2", *prompts]) == 2
    assert "3 prompts need at least as many samples" in capsys.readouterr().err


def test_without_prompts_as_many_captions_are_drawn_as_there_are_samples(finished, tiny_backbone_folder, tmp_path):
    _, out = finished
    shutil.copytree(out, tmp_path / "run")
    for i in range(4):
        (tmp_path / "run" / "subject" / f"face{i}.txt").write_text(f"a sticker of sks face {i}")
    arguments = ["--backbone", str(tiny_backbone_folder), "--num-images", "2", "--sampling-steps", "1"]
    assert main(["generate", str(tmp_path / "run"), *arguments]) == 0
    listing = json.loads((tmp_path / "run" / "samples" / "samples.json").read_text())
    assert [row["prompt"] for row in listing] == ["a sticker of sks face 0", "a sticker of sks face 1"]


def test_a_run_at_no_strength_learns_the_subject_alone_and_says_so(finished, tiny_backbone_folder, tmp_path):
    _, out = finished
    shutil.copytree(out, tmp_path / "project")
    project = Project(tmp_path / "project")
    weightless = project.new_run()
    Choice("none", (), 0).save(project.choice)
    none = project.new_run()
    common = ["--backbone", str(tiny_backbone_folder), "--steps", "4", "--rank", "2", "--validation-images", "0"]
    assert run_name(weightless) == "Run 1, with 5 backbone pictures"
    assert main(["train", str(weightless.folder), *common, "--strength", "0"]) == 0
    assert main(["train", str(none.folder), *common]) == 0
    assert weightless.adapter.read_bytes() == none.adapter.read_bytes()
    assert run_name(weightless) == "Run 1, without backbone pictures"
    card = write_card(weightless, load_backbone(str(tiny_backbone_folder)), weightless.lora)
    assert "the subject's pictures alone" in card.read_text()
    assert main(["train", str(weightless.folder), *common, "--strength", "0", "--resume"]) == 0


def test_what_was_drawn_before_is_put_aside_and_not_lost(finished, tiny_backbone_folder, tmp_path):
    _, out = finished
    shutil.copytree(out, tmp_path / "run")
    run = Project(tmp_path / "run")
    last = [(run.samples / row["file"]).read_bytes() for row in json.loads((run.samples / "samples.json").read_text())]
    for prompt in ("a red sticker", "a blue sticker"):
        drawing = ["--prompt", prompt, "--num-images", "1", "--sampling-steps", "1"]
        assert main(["generate", str(run.folder), "--backbone", str(tiny_backbone_folder), *drawing]) == 0
    red, first = drawn_earlier(run)
    assert [row["prompt"] for row in red] == ["a red sticker"] and red[0]["file"].parent.name == "002"
    assert [row["file"].read_bytes() for row in first] == last
    assert [path.name for path in run.samples.glob("*.png")] == ["000.png"]


def test_a_project_of_the_page_trains_in_a_run_that_the_command_line_knows(finished, tiny_backbone_folder, tmp_path):
    _, out = finished
    shutil.copytree(out, tmp_path / "project")
    run = Project(tmp_path / "project").new_run()
    options = ["--steps", "4", "--checkpoint-every", "2", "--rank", "2"]
    assert main(["train", str(run.folder), "--backbone", str(tiny_backbone_folder), *options]) == 0
    assert run.adapter.read_bytes() == Project(out).adapter.read_bytes()

"""The whole line on a tiny random backbone: files, determinism, resuming."""

import json

import pytest
import torch
from safetensors.torch import load_file

from bat_ui import line
from bat_ui.backbones import load_backbone
from bat_ui.cli import main
from bat_ui.project import Project

QUICK = ["--shortlist", "24", "--surrogate-steps", "2", "--draws", "2", "--sketch-size", "64", "--steps", "4"]
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
    assert main([*arguments, "--backbone", str(tiny_backbone_folder), *QUICK[:8], "--rank", "2", "--steps", "4"]) == 0
    backbone, asked = load_backbone(str(tiny_backbone_folder)), iter([False, False, True])
    settings = line.TrainingSettings(steps=4, rank=2, checkpoint_every=2)
    assert line.run_training(Project(stopped), backbone, settings, stop=lambda: next(asked)) is False
    assert line.run_training(Project(stopped), backbone, settings, resume=True) is True
    name = "lora/pytorch_lora_weights.safetensors"
    assert (out / name).read_bytes() == (stopped / name).read_bytes()
    steps = [json.loads(row)["step"] for row in (stopped / "losses.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]

"""Exports: every form, from a project trained on each family, is read back with equal matrices."""

import hashlib
import json
import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bat_ui.choice import Candidate, Choice
from bat_ui.cli import main
from bat_ui.errors import UserError
from bat_ui.export import export, packed
from bat_ui.export.dataset import whole_repeats
from bat_ui.export.lora import check_kohya_names, check_loads_in_diffusers, read_adapter, tensor_hash
from bat_ui.files import write_json
from bat_ui.generation import generate
from bat_ui.project import Project
from bat_ui.settings import GenerationSettings, TrainingSettings
from bat_ui.subject import Subject
from bat_ui.training.lora import lora, save_lora
from tests.tiny_models import make_pipeline

tomllib = pytest.importorskip("tomllib")  # Python 3.11
FAMILIES = ("sd15", "sd21", "sdxl")
CASES = [(family, False) for family in FAMILIES] + [("sd15", True), ("sdxl", True)]


def make_project(folder, backbone=None, text_encoder=False) -> Project:
    """A project with two subject pictures, three candidates of which two are chosen, and an adapter that does something."""
    project, rng = Project(folder), np.random.default_rng(0)
    images = tuple(Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)) for _ in range(5))
    captions = ("a photo of sks dog", "a photo of sks dog, asleep")
    Subject(images[:2], captions, ("one", "two"), "dog").save(project.subject)
    rows = [Candidate(f"p/{i}", f'a "{i}" dog', 0.5, rank=i + 1, chosen=i < 2) for i in range(3)]
    Choice("nearest", tuple(rows), 2, store={"title": "Test pictures", "licence": "CC0", "proxy": True}).save(project.choice)
    for row, image in zip(rows, images[2:]):
        project.candidate_picture(row.id).parent.mkdir(exist_ok=True)
        image.save(project.candidate_picture(row.id))
    settings = TrainingSettings(rank=2, seed=3, steps=7)
    project.add_to_report("training", {"settings": settings, "steps": 7})
    project.samples.mkdir()
    images[0].save(project.samples / "000.png")
    write_json(project.samples / "samples.json", [{"file": "000.png", "prompt": "sks dog: a 'portrait'", "seed": 0}])
    if backbone is not None:
        with lora(backbone, 2, 0, text_encoder) as weights:
            for p in weights.values():
                p.data += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
            save_lora(backbone, project.lora)
        os.utime(project.samples / "samples.json")  # drawn with that adapter
    return project


@pytest.mark.parametrize("family, text_encoder", CASES)
def test_a_kohya_file_loads_in_diffusers_with_equal_samples(family, text_encoder, photo_backbone, tmp_path):
    backbone = photo_backbone(family)
    project = make_project(tmp_path / "project", backbone, text_encoder)
    out, checks = export(project, "kohya", load=lambda: backbone)
    assert [check.tool for check in checks if check.ok] == ["A1111 and ComfyUI", "diffusers"], checks
    quick = GenerationSettings(steps=2, guidance=3.0)
    ours = np.asarray(generate(backbone, ["sks dog"], quick, project.lora)[0], int)
    pipeline = make_pipeline(family)
    pipeline.load_lora_weights(out, weight_name="sks-dog.safetensors")
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    theirs = pipeline("sks dog", num_inference_steps=2, guidance_scale=3.0, generator=generator).images[0]
    assert np.abs(ours - np.asarray(theirs, int)).max() <= 1


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_convolutions_are_exported_too(family, photo_backbone, tmp_path):
    backbone = photo_backbone(family)
    backbone = replace(backbone, lora_targets=(*backbone.lora_targets, "conv1", "conv2"))
    project = make_project(tmp_path / "project", backbone)
    out, checks = export(project, "kohya", load=lambda: backbone)
    assert checks[0].ok, checks
    with safe_open(out / "sks-dog.safetensors", "pt") as file:
        assert json.loads(file.metadata()["ss_network_args"]) == {"conv_dim": 2, "conv_alpha": 2}
        key = "lora_unet_input_blocks_1_0_in_layers_2" if family == "sdxl" else "lora_unet_down_blocks_0_resnets_0_conv1"
        assert file.get_slice(f"{key}.lora_down.weight").get_shape()[2:] == [3, 3]


def test_the_metadata_is_what_other_tools_read(photo_backbone, tmp_path):
    backbone = photo_backbone("sdxl")
    out, _ = export(make_project(tmp_path / "project", backbone), "kohya", load=lambda: backbone)
    with safe_open(out / "sks-dog.safetensors", "pt") as file:
        found = file.metadata()
    expected = {
        "ss_v2": "False",
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "2",
        "ss_network_alpha": "2.0",
        "ss_seed": "3",
        "ss_steps": "7",
        "ss_num_train_images": "4",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.resolution": "32x32",
        "modelspec.trigger_phrase": "sks dog",
        "modelspec.prediction_type": "epsilon",
    }
    assert {key: found[key] for key in expected} == expected
    assert json.loads(found["ss_tag_frequency"])["backbone"] == {'a "0" dog': 1, 'a "1" dog': 1}
    assert json.loads(found["ss_dataset_dirs"])["subject"] == {"n_repeats": 1, "img_count": 2}
    assert found["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")
    assert str(tmp_path) not in str(found)


def test_the_hash_is_of_the_files_own_bytes(tmp_path):
    tensors = {"b": torch.arange(6.0).view(2, 3), "a": torch.ones(1)}
    save_file(tensors, tmp_path / "x.safetensors", {"ss_seed": "1"})
    content = (tmp_path / "x.safetensors").read_bytes()
    header = int.from_bytes(content[:8], "little")
    assert tensor_hash(tensors) == hashlib.sha256(content[8 + header :]).hexdigest()


@pytest.mark.parametrize("harm", ["renamed", "changed", "lost"])
def test_the_checks_notice_a_bad_file(harm, photo_backbone, tmp_path):
    backbone = photo_backbone("sd15")
    project = make_project(tmp_path / "project", backbone)
    out, _ = export(project, "kohya", load=lambda: backbone)
    file = out / "sks-dog.safetensors"
    state = load_file(file)
    stem = next(iter(state)).partition(".")[0]
    for key in [k for k in state if k.startswith(stem + ".")]:
        value = state.pop(key)
        if harm == "renamed":
            state[key.replace("attentions", "attention")] = value
        elif harm == "changed":
            state[key] = value + 1
    save_file(state, file)
    layers = read_adapter(project.adapter)
    assert not check_kohya_names(backbone, file, layers).ok
    assert not check_loads_in_diffusers(backbone, file, layers).ok


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_the_card_names_trigger_base_and_samples(format, photo_backbone, tmp_path):
    backbone = photo_backbone("sd21")
    out, checks = export(make_project(tmp_path / "project", backbone), format, load=lambda: backbone)
    assert all(check.ok for check in checks)
    head, body = (out / "README.md").read_text().split("---\n")[1:3]
    about = yaml.safe_load(head)
    assert about["instance_prompt"] == "a photo of sks dog" and {"lora", "diffusers", "text-to-image"} <= set(about["tags"])
    assert about["widget"] == [{"text": "sks dog: a 'portrait'", "output": {"url": "images/000.png"}}]
    assert (out / "images" / "000.png").is_file()
    assert "<Gallery />" in body and "`sks dog`" in body and "2 pictures" in body and str(tmp_path) not in head + body


def test_a_card_says_what_was_learned_from_though_the_choice_has_changed_since(photo_backbone, tmp_path):
    project, backbone = make_project(tmp_path / "project", photo_backbone("sd15")), photo_backbone("sd15")
    Choice("none", (), 0).save(project.learned_from)
    for format in ("diffusers", "kohya"):
        out, _ = export(project, format, load=lambda: backbone)
        assert "the subject's pictures alone" in (out / "README.md").read_text()
    with safe_open(next(out.glob("*.safetensors")), "pt") as file:
        assert "0 backbone pictures" in file.metadata()["ss_training_comment"]


def test_a_kohya_training_set_has_two_subsets_with_captions(tmp_path):
    out, checks = export(make_project(tmp_path / "project"), "kohya-dataset", tmp_path / "set")
    assert checks[0].ok
    config = tomllib.loads((out / "dataset.toml").read_text())
    subsets = config["datasets"][0]["subsets"]
    assert subsets[0]["class_tokens"] == "sks dog" and all("is_reg" not in subset for subset in subsets)
    captions = []
    for subset in subsets:
        images = sorted((out / subset["image_dir"]).glob("*.png"))
        captions += [image.with_suffix(config["general"]["caption_extension"]).read_text().strip() for image in images]
    assert captions == ["a photo of sks dog", "a photo of sks dog, asleep", 'a "0" dog', 'a "1" dog']


def test_a_kohya_training_set_of_a_run_at_no_strength_is_the_subject_alone(tmp_path):
    project = make_project(tmp_path / "project")
    project.add_to_report("training", {"settings": TrainingSettings(strength=0.0)})
    out, _ = export(project, "kohya-dataset", tmp_path / "set")
    subsets = tomllib.loads((out / "dataset.toml").read_text())["datasets"][0]["subsets"]
    assert [Path(subset["image_dir"]).name for subset in subsets] == ["subject"] and not (out / "backbone").exists()


@pytest.mark.parametrize("subject_pictures, chosen", [(2, 2), (10, 1), (10, 2), (40, 4), (3, 1), (1, 3), (2, 40)])
def test_a_kohya_epoch_has_as_large_a_part_of_backbone_pictures_as_the_run_had(subject_pictures, chosen, tmp_path):
    """Lambda rises to 4 in 7 steps, of which a fifth are the subject's alone."""
    project, image = make_project(tmp_path / "project"), Image.new("RGB", (64, 64))
    names = tuple(f"n{i}" for i in range(subject_pictures))
    Subject((image,) * len(names), ("a photo of sks dog",) * len(names), names, "dog").save(project.subject)
    rows = tuple(Candidate(f"p/{i}", "a dog", 0.5, rank=i + 1, chosen=True) for i in range(chosen))
    Choice("nearest", rows, chosen).save(project.choice)
    for row in rows:
        image.save(project.candidate_picture(row.id))
    out, _ = export(project, "kohya-dataset", tmp_path / "set")
    subsets = tomllib.loads((out / "dataset.toml").read_text())["datasets"][0]["subsets"]
    subject, backbone = (len(list(Path(s["image_dir"]).glob("*.png"))) * s["num_repeats"] for s in subsets)
    strengths = [4 * max(step - 1.4, 0) / 5.6 for step in range(1, 8)]
    assert backbone / (subject + backbone) == pytest.approx(sum(s / (1 + s) for s in strengths) / 7, abs=0.0125)


@pytest.mark.parametrize("ratio", [0.005, 0.04, 0.11, 0.3, 0.49, 0.67, 0.93, 1, 1.06, 1.12, 1.49, 1.51, 2.6, 3.1, 9.5, 200])
def test_repeats_are_the_smallest_that_come_near_enough(ratio):
    """All pairs are tried: by the smaller number first, then by how near they come."""
    near = [(a, b) for a in range(1, 211) for b in range(1, 211) if min(a, b) <= 10 and _error(a, b, ratio) <= 1 / 20]
    assert whole_repeats(ratio) == min(near, key=lambda pair: (min(pair), _error(*pair, ratio)))


def _error(a, b, ratio):
    """How far the larger number is from what the smaller one asks for."""
    return abs(a / b / ratio - 1) if ratio >= 1 else abs(b / a * ratio - 1)


def test_custom_diffusion_finds_a_real_prior_as_its_retrieval_leaves_it(tmp_path):
    out, checks = export(make_project(tmp_path / "project"), "custom-diffusion")
    assert checks[0].ok
    (concept,) = json.loads((out / "concepts.json").read_text())
    prior = tmp_path / "project" / "exports" / "custom-diffusion" / "real_prior"
    assert concept["class_data_dir"] == str(prior)
    images = (prior / "images.txt").read_text().splitlines()
    assert (prior / "caption.txt").read_text().splitlines() == ['a "0" dog', 'a "1" dog']
    assert [Image.open(path).size for path in images] == [(64, 64)] * 2 and len(list((prior / "images").iterdir())) == 2


def test_an_imagefolder_lists_every_picture_with_its_text(tmp_path):
    out, checks = export(make_project(tmp_path / "project"), "imagefolder")
    assert checks[0].ok
    rows = [json.loads(line) for line in (out / "train" / "metadata.jsonl").read_text().splitlines()]
    assert [row["source"] for row in rows] == ["subject"] * 2 + ["backbone"] * 2
    assert all((out / "train" / row["file_name"]).is_file() for row in rows)


def test_an_export_replaces_its_like_and_nothing_else(tmp_path):
    project = make_project(tmp_path / "project")
    out, _ = export(project, "imagefolder", tmp_path / "set")
    (out / "stale.txt").write_text("x")
    export(project, "imagefolder", tmp_path / "set")
    assert not (out / "stale.txt").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="other files"):
        export(project, "imagefolder", tmp_path / "mine")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
    with pytest.raises(UserError, match="is a file"):
        export(project, "imagefolder", tmp_path / "mine" / "letter.txt")
    (tmp_path / "cat v1.0.zip").write_text("mine")
    with pytest.raises(UserError, match="cat v1.0.zip would be replaced"):
        export(project, "imagefolder", tmp_path / "cat v1.0", zipped=True)
    assert not (tmp_path / "cat v1.0").exists() and (tmp_path / "cat v1.0.zip").read_text() == "mine"


@pytest.mark.parametrize("format", ["kohya-dataset", "custom-diffusion", "imagefolder"])
def test_an_export_that_fails_leaves_the_earlier_one_as_it_was(format, tmp_path):
    project = make_project(tmp_path / 'a "project"')
    out, _ = export(project, format)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert not any(b"draft" in content for content in before.values())
    project.candidate_picture("p/1").unlink()
    for folder in (None, tmp_path / "new"):
        with pytest.raises(UserError, match="no longer in the project"):
            export(project, format, folder)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert list(project.exports.iterdir()) == [out] and list(tmp_path.iterdir()) == [project.folder]


def test_an_export_goes_into_the_folder_where_one_is(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    monkeypatch.chdir(tmp_path / "set")
    export(make_project(tmp_path / "project"), "kohya-dataset", Path("."))
    subsets = tomllib.loads((tmp_path / "set" / "dataset.toml").read_text())["datasets"][0]["subsets"]
    assert [subset["image_dir"] for subset in subsets] == [str(tmp_path / "set" / name) for name in ("subject", "backbone")]


@pytest.mark.parametrize(
    "arguments, said", [(["--format", "kohya"], "run the training first"), (["--format", "imagefolder"], "no project")]
)
def test_the_command_refuses_what_is_not_there_yet(arguments, said, tmp_path, capsys):
    project = tmp_path / "project"
    if "kohya" in arguments:
        make_project(project)
    assert main(["export", str(project), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_the_command_says_where_the_export_is_and_what_was_checked(photo_backbone, photo_backbone_folders, tmp_path, capsys):
    make_project(tmp_path / "project", photo_backbone("sd15"))
    backbone = str(photo_backbone_folders["sd15"])
    assert main(["export", str(tmp_path / "project"), "--format", "kohya", "--backbone", backbone]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "project" / "exports" / "kohya") and said.err.count("loads in") == 2


@pytest.mark.parametrize("format", ["kohya-dataset", "custom-diffusion", "imagefolder"])
def test_a_packed_training_set_is_whole_wherever_it_is_unpacked(format, tmp_path, monkeypatch):
    folder, checks = export(make_project(tmp_path / 'a "project"'), format)
    with zipfile.ZipFile(packed(folder, checks)) as file:
        file.extractall(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    texts = [path.read_text() for path in Path().rglob("*") if path.suffix in (".toml", ".txt", ".json", ".jsonl")]
    assert not any("project" in text for text in texts)
    if format == "kohya-dataset":
        subsets = tomllib.loads(Path("dataset.toml").read_text())["datasets"][0]["subsets"]
        assert [len(list(Path(subset["image_dir"]).glob("*.png"))) for subset in subsets] == [2, 2]
    if format == "custom-diffusion":
        assert all(Path(line).is_file() for line in Path("real_prior/images.txt").read_text().splitlines())
        (concept,) = json.loads(Path("concepts.json").read_text())
        assert Path(concept["class_data_dir"]).is_dir() and Path(concept["instance_data_dir"]).is_dir()
    assert json.loads(folder.with_suffix(".json").read_text())[0]["ok"] and len(list(Path().rglob("*.png"))) == 4


def test_an_export_of_a_checkpoint_says_at_which_step_it_was(photo_backbone, tmp_path):
    backbone = photo_backbone("sd15")
    project = make_project(tmp_path / "project", backbone)
    checkpoint = project.checkpoints / "step-000005"
    shutil.copytree(project.lora, checkpoint)
    digest = hashlib.sha256(project.adapter.read_bytes()).hexdigest()
    write_json(checkpoint / "manifest.json", {"step": 5, "sha256": {project.adapter.name: digest}})
    out, _ = export(project, "kohya", load=lambda: backbone)
    with safe_open(out / "sks-dog.safetensors", "pt") as file:
        assert file.metadata()["ss_steps"] == "5"
    assert "- steps: 5, a checkpoint of 7" in (out / "README.md").read_text()

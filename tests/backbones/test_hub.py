"""Weights from the hub: what would be fetched, consent, and problems in one sentence.

The hub is one on this machine, or, where files as large as the real ones are talked about, a stand-in.
"""

import json
import re
import shutil
import sys
from types import SimpleNamespace

import huggingface_hub
import open_clip
import pytest
import torch
from huggingface_hub import errors

from bat_ui.backbones import hub, load_backbone, needed_downloads
from bat_ui.cli import main
from bat_ui.clip_space import ClipSpace
from bat_ui.errors import UserError
from tests.tiny_hub import tiny_hub
from tests.tiny_models import copy_folder, make_pipeline, write_single_file

SD15 = {  # as the official repository has them, with sizes made up
    "README.md": 1,
    "v1-5-pruned.ckpt": 7_000,
    "v1-5-pruned.safetensors": 7_000,
    "model_index.json": 1,
    "feature_extractor/preprocessor_config.json": 1,
    "safety_checker/model.safetensors": 1_000,
    "scheduler/scheduler_config.json": 1,
    "text_encoder/config.json": 1,
    "text_encoder/model.safetensors": 400,
    "text_encoder/model.fp16.safetensors": 200,
    "text_encoder/pytorch_model.bin": 400,
    "tokenizer/merges.txt": 1,
    "tokenizer/vocab.json": 1,
    "unet/config.json": 1,
    "unet/diffusion_pytorch_model.bin": 3_000,
    "unet/diffusion_pytorch_model.safetensors": 3_000,
    "unet/diffusion_pytorch_model.fp16.safetensors": 1_500,
    "unet/diffusion_pytorch_model.non_ema.safetensors": 3_000,
    "vae/config.json": 1,
    "vae/diffusion_pytorch_model.safetensors": 300,
    "vae/diffusion_pytorch_model.fp16.safetensors": 150,
}
CLIP = {"open_clip_config.json": 1, "open_clip_model.safetensors": 600, "open_clip_pytorch_model.bin": 600}


@pytest.fixture()
def large_hub(tmp_path, monkeypatch):
    """A hub that lists SD15 and its CLIP model, and an empty cache."""

    def model_info(self, repository, files_metadata):
        files = CLIP if "CLIP" in repository else SD15
        return SimpleNamespace(sha="abc", siblings=[SimpleNamespace(rfilename=f, size=s) for f, s in files.items()])

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture()
def small_hub(photo_backbone_folders, tiny_clip_folder, tmp_path, monkeypatch):
    """A hub with tiny models in the repositories of sd15 and sdxl and in two of somebody's, and an empty cache."""
    folders = {hub.REPOSITORIES[family]: photo_backbone_folders[family] for family in ("sd15", "sdxl")}
    folders |= {"some/backbone": photo_backbone_folders["sd21"], "some/clip": tiny_clip_folder}
    copies = {name: copy_folder(folder, tmp_path / "hub" / name) for name, folder in folders.items()}
    with tiny_hub(copies, tmp_path / "cache", monkeypatch) as found:
        yield found


def test_only_what_is_needed_is_fetched_in_half_precision():
    files = hub.files_to_fetch(list(SD15))
    weights = {file for file in files if file.endswith(".safetensors")}
    assert weights == {
        "text_encoder/model.fp16.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    }
    assert {"model_index.json", "tokenizer/vocab.json", "scheduler/scheduler_config.json", "unet/config.json"} <= set(files)
    assert not any("safety" in f or f.endswith((".bin", ".ckpt")) for f in files)


def test_a_repository_without_safetensors_is_refused():
    with pytest.raises(UserError, match="no .safetensors"):
        hub.files_to_fetch([file for file in SD15 if not file.endswith(".safetensors")])


def test_the_size_is_known_before_anything_is_fetched(large_hub):
    backbone, clip = needed_downloads("sd15")
    assert backbone.size == 200 + 1_500 + 150 + sum(size == 1 for f, size in SD15.items() if f in backbone.files)
    assert backbone.repository == "stable-diffusion-v1-5/stable-diffusion-v1-5" and clip.size == 601


@pytest.mark.parametrize("name", ["sticker", "FOLDER", "FILE"])
def test_what_is_local_needs_no_backbone_from_the_hub(name, large_hub, photo_backbone_folders, tmp_path):
    if name == "FILE":
        write_single_file(make_pipeline("sd15"), tmp_path / "model.safetensors")
    name = {"FOLDER": str(photo_backbone_folders["sd15"]), "FILE": str(tmp_path / "model.safetensors")}.get(name, name)
    assert all("CLIP" in download.repository for download in needed_downloads(name))


def test_hub_names_may_hold_dots_and_files_are_no_hub_names():
    assert hub.is_repository("stabilityai/stable-diffusion-xl-base-1.0") and hub.is_repository("sdxl")
    assert not any(hub.is_repository(n) for n in ("models/v1-5.safetensors", "models/x.ckpt", "nonsense", "../x", "a/b/c"))


def arguments(folder, clip, *more):
    return ["select", str(folder), "--class-noun=face", f"--out={folder}/out", "--rule=none", f"--clip={clip}", *more]


def test_without_consent_nothing_is_fetched(small_hub, subject_folder, tiny_clip_folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: False))
    assert main(arguments(subject_folder, tiny_clip_folder, "--backbone=sd15")) == 2
    said = capsys.readouterr().err
    assert "--download" in said and re.search(r"fetch \d+\.\d MB from", said) and not small_hub.fetched
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda question: "no")
    assert main(arguments(subject_folder, tiny_clip_folder, "--backbone=sd15")) == 2
    assert "Nothing was fetched" in capsys.readouterr().err and not small_hub.fetched


@pytest.mark.parametrize("how", ["option", "answer"])
def test_with_consent_it_is_fetched_once_and_used(how, small_hub, subject_folder, tiny_clip_folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: how == "answer"))
    monkeypatch.setattr("builtins.input", lambda question: "y")
    more = ["--backbone=sd15", *(["--download"] if how == "option" else [])]
    assert main(arguments(subject_folder, tiny_clip_folder, *more)) == 0
    assert {repository for repository, _ in small_hub.fetched} == {hub.REPOSITORIES["sd15"]}
    assert len(set(small_hub.fetched)) == len(small_hub.fetched)


@pytest.mark.parametrize("name, family", [("sd15", "sd15"), ("sdxl", "sdxl"), ("some/backbone", "sd21")])
def test_what_was_fetched_is_on_this_machine_and_loads(name, family, small_hub, monkeypatch):
    clip = "hf-hub:some/clip"
    downloads = needed_downloads(name, clip)
    assert [download.name for download in downloads] == [name, clip]
    assert small_hub.fetched == [("some/clip", "open_clip_config.json")]  # read for the question, not kept
    small_hub.fetched.clear()
    for download in downloads:
        download.run()
    sizes = [len(small_hub.files(repository)[file]) for repository, file in small_hub.fetched]
    assert sum(sizes) == sum(download.size for download in downloads)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert needed_downloads(name, clip) == []
    assert load_backbone(name, "cpu").family == family
    assert ClipSpace.load(clip).dim == 16


@pytest.mark.parametrize("place, weights", [("", "open_clip_model"), ("pytorch_model.bin", "pytorch_model")])
def test_a_clip_model_is_fetched_with_the_words_of_another_repository(
    place, weights, small_hub, tiny_clip_folder, monkeypatch
):
    folder, words = small_hub.repositories["some/clip"], small_hub.repositories["some/backbone"] / "tokenizer"
    (folder / "open_clip_model.safetensors").rename(folder / f"{weights}.safetensors")
    small_hub.repositories["some/words"] = words
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    config["text_cfg"]["hf_tokenizer_name"] = "some/words"
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", config)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", {"test": {"hf_hub": f"some/clip/{place}"}})
    downloads = hub.needed_clip_downloads("tiny:test")
    assert [download.repository for download in downloads] == ["some/clip", "some/words"]
    assert downloads[1].size == sum(path.stat().st_size for path in words.iterdir())
    for download in downloads:
        download.run()
    small_hub.fetched.clear()
    assert hub.needed_clip_downloads("tiny:test") == []
    vectors = [ClipSpace.load(source).embed_texts(["a cat"]) for source in ("tiny:test", tiny_clip_folder)]
    assert torch.equal(*vectors) and not small_hub.fetched


REPOSITORIES = {  # of open_clip's models: those of the weights, and of what its configuration names besides
    "ViT-B-32:laion2b_s34b_b79k": {"laion/CLIP-ViT-B-32-laion2B-s34B-b79K"},
    "ViTamin-S:datacomp1b": {"jienengchen/ViTamin-S"},
    "ViT-B-16-SigLIP-256:webli": {"timm/ViT-B-16-SigLIP-256", "timm/ViT-B-16-SigLIP"},
    "roberta-ViT-B-32:laion2b_s12b_b32k": {"laion/CLIP-ViT-B-32-roberta-base-laion2B-s12B-b32k", "roberta-base"},
}


@pytest.mark.parametrize("name", REPOSITORIES)
def test_all_repositories_of_a_clip_model_are_asked_about(name, tmp_path, monkeypatch):
    files = ("open_clip_model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin", "vocab.txt", "x.model")
    listing = SimpleNamespace(sha="abc", siblings=[SimpleNamespace(rfilename=f, size=7) for f in files])
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: listing)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    downloads = hub.needed_clip_downloads(name)
    assert {download.repository for download in downloads} == REPOSITORIES[name]
    assert all(("safetensors" in str(d.files)) == (d is downloads[0]) and "bin" not in str(d.files) for d in downloads)
    assert [download.size for download in downloads] == [21, 14][: len(downloads)]


@pytest.mark.parametrize("name", ["hf-hub:a/b/c", "hf-hub:some/backbone", "hf-hub:no/body"])
def test_what_is_no_clip_model_is_told_in_one_sentence(name, small_hub):
    with pytest.raises(UserError) as refusal:
        hub.needed_clip_downloads(name)
    assert "\n" not in str(refusal.value)


def forget_the_list(cache):
    """As older versions of the hub's library leave their cache."""
    shutil.rmtree(next(cache.glob("*/trees")))
    huggingface_hub._tree_cache._IN_MEMORY_TREE_CACHE.clear()


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize(
    "pattern", ["model_index.json", "tokenizer*/*", "scheduler/*", "vae/*.safetensors", "unet/*-00002-*.safetensors"]
)
def test_a_download_that_was_broken_off_goes_on(pattern, listed, small_hub, photo_backbone, tmp_path):
    folder = small_hub.repositories[hub.REPOSITORIES["sdxl"]]
    shutil.rmtree(folder / "unet")
    photo_backbone("sdxl").unet.save_pretrained(folder / "unet", max_shard_size="200KB")
    snapshot = hub.needed_download("sdxl").run()
    lost = {file.relative_to(snapshot).as_posix(): file for file in snapshot.glob(pattern)}
    for file in lost.values():
        file.resolve().unlink(missing_ok=True)  # of two that are equal the cache keeps one
        file.unlink()
    if not listed:
        forget_the_list(tmp_path / "cache")
    with pytest.raises(UserError, match="--download"):
        load_backbone("sdxl", "cpu")
    small_hub.fetched.clear()
    rest = hub.needed_download("sdxl")
    assert rest.size == sum((folder / file).stat().st_size for file in lost)
    rest.run()
    assert {file for _, file in small_hub.fetched} <= lost.keys()
    assert hub.needed_download("sdxl") is None and load_backbone("sdxl", "cpu").family == "sdxl"


@pytest.mark.parametrize("listed", [True, False])
def test_full_precision_that_others_fetched_will_do(listed, small_hub, tmp_path):
    folder = small_hub.repositories[hub.REPOSITORIES["sd15"]]
    for path in list(folder.glob("*/*.safetensors")):
        shutil.copy(path, path.with_suffix(f".fp16{path.suffix}"))
    huggingface_hub.snapshot_download(
        hub.REPOSITORIES["sd15"], ignore_patterns="*.fp16.*", endpoint=huggingface_hub.constants.ENDPOINT
    )
    if not listed:
        forget_the_list(tmp_path / "cache")
    assert hub.needed_download("sd15") is None and load_backbone("sd15", "cpu").family == "sd15"


def test_shards_in_half_precision_are_fetched_with_their_index():
    unet = ["unet/x.fp16-00001-of-00002.safetensors", "unet/x.fp16-00002-of-00002.safetensors"]
    unet += ["unet/x.safetensors.index.fp16.json"]
    full = ["unet/x-00001-of-00001.safetensors", "unet/x.safetensors.index.json"]
    assert set(hub.files_to_fetch(["model_index.json", *unet, *full])) == {"model_index.json", *unet}


def test_what_changed_since_the_question_is_not_fetched(small_hub):
    download = hub.needed_download("sd15")
    (small_hub.repositories[download.repository] / "unet/config.json").write_text("{}")
    with pytest.raises(UserError, match="changed"):
        download.run()
    assert not small_hub.fetched


def test_weights_that_are_not_there_are_not_fetched_by_loading(small_hub):
    with pytest.raises(UserError, match="--download"):
        load_backbone("sd15")
    assert not small_hub.fetched


def refused(kind):
    return kind("no", response=SimpleNamespace(headers={}, request=None))


PROBLEMS = {
    "gated": (lambda: refused(errors.GatedRepoError), "accept its terms"),
    "unknown": (lambda: refused(errors.RepositoryNotFoundError), "no model x/y"),
    "offline": (lambda: errors.OfflineModeIsEnabled("offline"), "cannot be reached"),
    "no network": (lambda: errors.HTTPError("no route"), "cannot be reached"),
    "server": (lambda: refused(errors.HfHubHTTPError), "try again later"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_problems_of_the_hub_are_one_sentence(name, large_hub, monkeypatch):
    problem, expected = PROBLEMS[name]

    def fail(*_, **__):
        raise problem()

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    with pytest.raises(UserError, match=expected) as refusal:
        hub.needed_download("x/y")
    assert "\n" not in str(refusal.value)

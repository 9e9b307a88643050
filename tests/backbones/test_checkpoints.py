"""Checkpoint files: every family loads offline in both formats, and what is no backbone is refused in one sentence."""

import json
import shutil

import open_clip
import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from bat_ui.backbones import checkpoints, load_backbone, needed_downloads
from bat_ui.errors import UserError
from tests.tiny_models import copy_folder, make_pipeline, write_single_file

FAMILIES = ("sd15", "sd21", "sdxl")
# Published sizes of the official models' parts.
PARAMETERS = {
    "sd15": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd21": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
}


@pytest.fixture()
def tiny_configs(tiny_config_folder, monkeypatch):
    """Single files are read as tiny models; the real configurations are judged by their parameter counts."""
    monkeypatch.setattr(checkpoints, "CONFIGS", tiny_config_folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_file_is_the_same_model_as_the_folder(family, photo_backbone_folders, tiny_configs, tmp_path):
    file = write_single_file(make_pipeline(family), tmp_path / "model.safetensors")
    ours, folder = (checkpoints.load_pipeline(path, torch.float32) for path in (file, photo_backbone_folders[family]))
    assert ours[1] == folder[1] == family
    for part in PARAMETERS[family]:
        one, other = getattr(ours[0], part).state_dict(), getattr(folder[0], part).state_dict()
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one), part
    assert ours[0].scheduler.config.prediction_type == folder[0].scheduler.config.prediction_type
    text = "Two naïve CATS, playing chess!  It's 3pm…"
    assert ours[0].tokenizer(text).input_ids == folder[0].tokenizer(text).input_ids


@pytest.mark.parametrize("family", FAMILIES)
def test_shipped_configurations_have_the_official_models_sizes(family):
    kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
    for part, expected in PARAMETERS[family].items():
        config = json.loads((checkpoints.CONFIGS / family / part / "config.json").read_text())
        with init_empty_weights():
            if part in kinds:
                model = kinds[part].from_config(config)
            else:
                kind = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
                model = kind(CLIPTextConfig(**config))
        assert sum(p.numel() for p in model.parameters()) == expected, part


@pytest.mark.parametrize("pad, filler", [("!", 0), ("<|endoftext|>", 49407)])
def test_the_tokenizer_is_open_clips(pad, filler):  # but for a pad inside a text, which Hugging Face's keeps as such
    ours = checkpoints.clip_tokenizer(pad)
    for text in ("a photo of sks dog", "Über-Hund's 42 Bälle?", "  many   spaces\nand lines ", "🐶 woof"):
        theirs = open_clip.get_tokenizer("ViT-B-32")(text)[0].tolist()
        end = theirs.index(49407)
        expected = theirs[: end + 1] + [filler] * (76 - end)
        assert ours(text, padding="max_length", truncation=True).input_ids == expected


@pytest.mark.parametrize(
    "extra, metadata, name, expected",
    [
        ({}, None, "model", "epsilon"),
        ({"v_pred": torch.zeros(0)}, None, "model", "v_prediction"),
        ({}, {"modelspec.prediction_type": "v"}, "model", "v_prediction"),
    ],
)
def test_a_file_says_what_it_predicts(extra, metadata, name, expected, tmp_path):
    file = write_single_file(make_pipeline("sdxl"), tmp_path / f"{name}.safetensors", extra, metadata)
    assert checkpoints.recognise(file).prediction == expected


@pytest.mark.parametrize("name, expected", [("v2-1_768-ema-pruned", "v_prediction"), ("512-base-ema", "epsilon")])
def test_an_sd2_file_predicts_what_its_name_says(name, expected, tiny_configs, tmp_path):
    file = write_single_file(make_pipeline("sd21"), tmp_path / f"{name}.safetensors")
    large = json.loads((checkpoints.CONFIGS / "sd21/unet/config.json").read_text())["sample_size"]
    for said in (None, "epsilon", "v_prediction"):
        backbone = load_backbone(str(file), "cpu", prediction=said)
        assert backbone.prediction == (said or expected)
        assert backbone.unet.config.sample_size == (64 if backbone.prediction == "epsilon" else large)


def test_a_file_for_a_schedule_that_ends_in_pure_noise_gets_it(tiny_configs, tmp_path):
    markers = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    file = write_single_file(make_pipeline("sdxl"), tmp_path / "model.safetensors", markers)
    backbone = load_backbone(str(file), "cpu")
    assert backbone.noise_scheduler.alphas_cumprod[-1] < 1e-6
    assert backbone.pipeline.scheduler.config.timestep_spacing == "trailing"
    plain = write_single_file(make_pipeline("sdxl"), tmp_path / "plain.safetensors")
    assert load_backbone(str(plain), "cpu").noise_scheduler.alphas_cumprod[-1] > 1e-3


def _lora(path):
    save_file({"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": torch.zeros(2, 2)}, path)


def _changed(change):
    def write(path):
        file = write_single_file(make_pipeline("sd15"), path)
        state = load_file(file)
        change(state)
        save_file(state, file)

    return write


def _inpainting(state):
    state[checkpoints.FIRST_CONVOLUTION] = torch.zeros(8, 9, 3, 3)


def _without(prefix):
    def change(state):
        for key in [k for k in state if k.startswith(prefix)]:
            del state[key]

    return change


WRONG = {
    "lora.safetensors": (_lora, "is a LoRA"),
    "inpainting.safetensors": (_changed(_inpainting), "inpainting"),
    "unet.safetensors": (_changed(_without("cond_stage_model")), "no text encoder"),
    "no-vae.safetensors": (_changed(_without("first_stage_model")), "no autoencoder"),
    "other.safetensors": (lambda path: save_file({"double_blocks.0.weight": torch.zeros(1)}, path), "other models"),
    "control.safetensors": (lambda path: save_file({"control_model.x": torch.zeros(1)}, path), "ControlNet"),
    "cut.safetensors": (lambda path: path.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{"), "cannot be read"),
    "model.ckpt": (lambda path: path.write_bytes(b"\x80\x04."), "pickle"),
    "model.bin": (lambda path: path.write_bytes(b"\x80\x04."), "pickle"),
    "model.txt": (lambda path: path.write_text("hello"), "no model"),
    "missing.safetensors": (lambda path: None, "no file"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_refused_in_one_sentence(name, tmp_path):
    make, expected = WRONG[name]
    make(tmp_path / name)
    with pytest.raises(UserError, match=expected) as refused:
        load_backbone(str(tmp_path / name))
    assert "\n" not in str(refused.value)


def _renamed(state):
    """As some merges have it, which leave a level out of the text encoder's names."""
    for key in [k for k in state if "text_model." in k]:
        state[key.replace("text_model.", "")] = state.pop(key)


@pytest.mark.parametrize(
    "change",
    [
        _without("model.diffusion_model.output_blocks"),
        _without("cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj"),
        _renamed,
    ],
)
def test_a_file_of_which_weights_are_missing_is_refused(change, tiny_configs, tmp_path):
    _changed(change)(tmp_path / "part.safetensors")
    with pytest.raises(UserError, match="is not (a )?complete"):
        load_backbone(str(tmp_path / "part.safetensors"))


@pytest.mark.parametrize("part, weight", [("unet", "mid_block."), ("vae", "decoder.conv_in"), ("text_encoder", "layers.0.")])
def test_a_folder_of_which_weights_are_missing_is_refused(part, weight, photo_backbone_folders, tmp_path):
    folder = copy_folder(photo_backbone_folders["sd15"], tmp_path / "model")
    [file] = (folder / part).glob("*.safetensors")
    kept = {key: value for key, value in load_file(file).items() if weight not in key}
    assert len(kept) < len(load_file(file))
    save_file(kept, file, {"format": "pt"})
    with pytest.raises(UserError, match=f"is not (a )?complete.*{part}"):
        load_backbone(str(folder), "cpu")


@pytest.mark.parametrize("name", ["lora.safetensors", "cut.safetensors", "inpainting.safetensors"])
def test_a_wrong_file_is_told_before_anything_is_fetched_or_served(name, tmp_path):
    make, expected = WRONG[name]
    make(tmp_path / name)
    with pytest.raises(UserError, match=expected):
        needed_downloads(str(tmp_path / name), clip="some/clip", search=False)


def _index(folder, **values):
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _pickled(folder):
    for path in (folder / "unet").glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))


WRONG_FOLDERS = {
    "no index": (lambda f: (f / "model_index.json").unlink(), "no model_index.json"),
    "inpainting": (lambda f: _index(f, _class_name="StableDiffusionInpaintPipeline"), "no plain Stable Diffusion"),
    "pickled": (_pickled, "pickled"),
    "no text encoder": (lambda f: (f / "text_encoder" / "model.safetensors").unlink(), "not a complete"),
    "no scheduler": (lambda f: (f / "scheduler" / "scheduler_config.json").unlink(), "not a complete"),
}


@pytest.mark.parametrize("name", WRONG_FOLDERS)
def test_a_wrong_folder_is_refused_in_one_sentence(name, photo_backbone_folders, tmp_path):
    folder = copy_folder(photo_backbone_folders["sd15"], tmp_path / "model")
    change, expected = WRONG_FOLDERS[name]
    change(folder)
    with pytest.raises(UserError, match=expected) as refused:
        load_backbone(str(folder))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("missing", ["tokenizer", "tokenizer_2", "tokenizer_2/tokenizer.json"])
def test_a_folder_without_its_word_lists_is_refused(missing, photo_backbone_folders, tmp_path):
    folder = copy_folder(photo_backbone_folders["sdxl"], tmp_path / "model")
    shutil.rmtree(folder / missing) if (folder / missing).is_dir() else (folder / missing).unlink()
    with pytest.raises(UserError, match=f"incomplete {missing.partition('/')[0]}: .*--download"):
        load_backbone(str(folder), "cpu")


def test_a_folder_with_words_that_were_added_loads(tmp_path):
    pipeline = make_pipeline("sd15")
    tokenizer = pipeline.tokenizer = checkpoints.clip_tokenizer("!")  # the shared one keeps its words
    tokenizer.add_tokens(["<cat-toy>", "<style>"])
    pipeline.text_encoder.resize_token_embeddings(len(tokenizer))
    pipeline.save_pretrained(tmp_path / "learned")
    assert load_backbone(str(tmp_path / "learned"), "cpu").pipeline.text_encoder.config.vocab_size == 49410


@pytest.mark.parametrize("part", ["**", "unet", "text_encoder"])
def test_a_folder_of_half_precision_files_alone_loads(part, photo_backbone_folders, tmp_path):
    folder = copy_folder(photo_backbone_folders["sd15"], tmp_path / "model")
    for path in list(folder.glob(f"{part}/*.safetensors")):
        path.rename(path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))
    assert load_backbone(str(folder)).family == "sd15"

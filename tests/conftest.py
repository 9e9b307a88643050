"""Shared by all tests: a tiny backbone with random weights, in the real formats, and a data folder of the tests' own."""

from pathlib import Path

import open_clip
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image, ImageDraw

from bat_ui.backbones import load_backbone
from bat_ui.backbones.sticker import data, train_clip
from bat_ui.backbones.sticker.tokenizer import build_tokenizer
from bat_ui.backbones.sticker.train_unet import new_scheduler
from bat_ui.training.loop import Encoded


@pytest.fixture(scope="session", autouse=True)
def data_folder(tmp_path_factory):
    """No test touches the user's data folder."""
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("data")
    patch.setenv("BAT_UI_DATA", str(folder))
    everything = data.training_stickers()
    patch.setattr(data, "training_stickers", lambda: everything[::20])  # a store that is built in a moment
    yield folder
    patch.undo()


@pytest.fixture(scope="session")
def tiny_backbone_folder(tmp_path_factory) -> Path:
    """A backbone folder as `assets/sticker` is one, whose models have a few thousand random weights."""
    folder = tmp_path_factory.mktemp("backbone")
    tokenizer = build_tokenizer(["a flat sticker of cat", "an outlined sticker of dog"])
    config = train_clip.clip_config(len(tokenizer))
    config["embed_dim"] = 16
    config["vision_cfg"] |= {"layers": [1, 1, 1, 1], "width": 4, "head_width": 16}
    config["text_cfg"] |= {"width": 16, "heads": 2, "layers": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip = open_clip.CLIP(**config).eval()
        unet = UNet2DConditionModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=2,
        )
        autoencoder = AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8),
            num_encoder_blocks=(0, 0, 1),
            num_decoder_blocks=(1, 0, 0),
            latent_channels=4,
        )
        train_clip.export_clip(clip, tokenizer, config, folder / "clip")
        pipeline = StableDiffusionPipeline(
            vae=autoencoder,
            text_encoder=train_clip.text_encoder_of(clip, config),
            tokenizer=tokenizer,
            unet=unet,
            scheduler=new_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder / "pipeline", safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def backbone(tiny_backbone_folder):
    """The tiny backbone, loaded."""
    return load_backbone(str(tiny_backbone_folder))


@pytest.fixture(scope="session")
def pictures():
    """A function that makes `count` encoded pictures for the tiny backbone out of a seed."""

    def make(count: int, seed: int) -> Encoded:
        rng = torch.Generator().manual_seed(seed)
        return Encoded(torch.randn(count, 4, 16, 16, generator=rng), torch.randn(count, 24, 16, generator=rng))

    return make


@pytest.fixture()
def subject_folder(tmp_path) -> Path:
    """Four drawings of a face with different mouths, one with a caption of its own."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(4):
        image = Image.new("RGB", (96, 96), "white")
        pen = ImageDraw.Draw(image)
        pen.ellipse((8, 8, 88, 88), fill="gold", outline="black")
        pen.rectangle((30, 55 + 2 * i, 66, 60 + 5 * i), fill="black")
        image.save(folder / f"face{i}.png")
    (folder / "face0.txt").write_text("a flat sticker of sks face, smiling", encoding="utf-8")
    return folder

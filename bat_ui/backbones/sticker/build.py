"""Build the sticker backbone from the picture packages: CLIP, autoencoder, UNet, then the folder that the tool loads.

In: minutes for each stage and a work folder, where every stage keeps its state; start it again to go on.
Out: `clip/` (open_clip local-dir), `pipeline/` (StableDiffusionPipeline), `build.json` (time, hardware, losses).
Everything is fp16 safetensors.  `unpack` makes a work folder of such a folder, to train its UNet further.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from tqdm import tqdm
from transformers import CLIPTokenizer

from bat_ui.backbones.sticker import data
from bat_ui.backbones.sticker.card import model_card
from bat_ui.backbones.sticker.stage import save_start
from bat_ui.backbones.sticker.train_autoencoder import train_autoencoder
from bat_ui.backbones.sticker.train_clip import (
    load_clip,
    normalize,
    text_encoder_of,
    tokenize,
    train_clip,
    train_image_tower,
)
from bat_ui.backbones.sticker.train_unet import new_scheduler, new_unet, train_unet
from bat_ui.files import read_json, write_json
from bat_ui.hardware import describe_hardware

logger = logging.getLogger(__name__)

STAGES = ("clip", "clip_image", "autoencoder", "unet")


@dataclass(frozen=True)
class BuildSettings:
    """Minutes of training for each stage, over all the times the build was started."""

    clip_minutes: float = 42.0
    clip_image_minutes: float = 5.0
    autoencoder_minutes: float = 12.0
    unet_minutes: float = 480.0
    seed: int = 0


def build_sticker(settings: BuildSettings, work: Path, out: Path) -> None:
    """Run whatever of the stages is not done yet, then assemble `out`."""
    stickers = data.training_stickers()
    pictures = cached_pictures(stickers, work)
    train_clip(work / "clip", settings.clip_minutes, settings.seed, stickers, pictures)
    clip_folder = work / "clip" / "export"
    train_image_tower(work / "clip_image", settings.clip_image_minutes, settings.seed, stickers, pictures, clip_folder)
    train_autoencoder(work / "autoencoder", settings.autoencoder_minutes, settings.seed, pictures)
    autoencoder = AutoencoderTiny.from_pretrained(work / "autoencoder" / "export", dtype=torch.float32)
    latents = encode_pictures(autoencoder, pictures)
    styled = encode_captions(clip_folder, [s.caption for s in stickers])
    styleless = encode_captions(clip_folder, [data.caption_of(s.name) for s in stickers])
    empty = encode_captions(clip_folder, [""])[0]
    train_unet(work / "unet", settings.unet_minutes, settings.seed, latents, styled, styleless, empty)
    export(work, out)


def cached_pictures(stickers: list[data.Sticker], work: Path) -> np.ndarray:
    """All pictures (n, 64, 64, 3) uint8, rendered once and kept in the work folder."""
    key = {"versions": data.source_versions(), "ids": [s.id for s in stickers]}
    path, key_path = work / "pictures.npy", work / "pictures.json"
    if path.exists() and key_path.exists() and json.loads(key_path.read_text(encoding="utf-8")) == key:
        return np.load(path)
    work.mkdir(parents=True, exist_ok=True)
    pictures = data.render_all(stickers, progress=lambda items: tqdm(items, desc="rendering", unit="picture"))
    np.save(path, pictures)
    key_path.write_text(json.dumps(key), encoding="utf-8")
    return pictures


@torch.no_grad()
def encode_pictures(autoencoder: AutoencoderTiny, pictures: np.ndarray) -> torch.Tensor:
    """Scaled latents (n, 16, 16, 16) of uint8 pictures (n, 64, 64, 3)."""
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    latents = torch.cat([autoencoder.encode(normalize(batch)).latents for batch in images.split(256)])
    return latents * autoencoder.config.scaling_factor


@torch.no_grad()
def encode_captions(clip_folder: Path, captions: list[str]) -> torch.Tensor:
    """Last hidden states (n, tokens, width) of the text encoder, as the pipeline will compute them."""
    config, model = load_clip(clip_folder)
    encoder = text_encoder_of(model, config)
    tokens = tokenize(CLIPTokenizer.from_pretrained(clip_folder), captions)
    return torch.cat([encoder(batch).last_hidden_state for batch in tokens.split(256)])


def assemble(unet: UNet2DConditionModel, work: Path, out: Path) -> None:
    """Write `out`/clip and `out`/pipeline in the formats that open_clip and diffusers load."""
    out.mkdir(parents=True, exist_ok=True)
    shutil.copytree(work / "clip_image" / "export", out / "clip", dirs_exist_ok=True)
    config, clip = load_clip(out / "clip")
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderTiny.from_pretrained(work / "autoencoder" / "export", dtype=torch.float16),
        text_encoder=text_encoder_of(clip, config).half(),
        tokenizer=CLIPTokenizer.from_pretrained(out / "clip"),
        unet=unet.half(),
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(out / "pipeline", safe_serialization=True)
    # Without a dtype of the caller's, transformers would load half precision and diffusers float32.
    config_path = out / "pipeline" / "text_encoder" / "config.json"
    write_json(config_path, read_json(config_path) | {"dtype": "float32"})


def unpack(built: Path, work: Path) -> None:
    """Make the work folder `work` of the `built` weights: all stages are done but the UNet's, whose time goes on.

    Optimisers start anew and averages from the weights themselves, since a built folder has neither.
    """
    record = read_json(built / "build.json")["stages"]
    clip = load_file(built / "clip" / "open_clip_model.safetensors")
    decoder = load_file(built / "pipeline" / "vae" / "diffusion_pytorch_model.safetensors")
    weights = {
        "clip": clip,
        "clip_image": _part(clip, "visual."),
        "autoencoder": _part(decoder, "decoder."),
        "unet": load_file(built / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"),
    }
    for stage in STAGES:
        (work / stage).mkdir(parents=True)
        seconds = 60 * record[stage]["minutes"] if stage == "unet" else float("inf")
        save_start(work / stage, weights[stage], record[stage], seconds)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (work / "clip" / "tokenizer").mkdir(exist_ok=True)
        shutil.copy(built / "clip" / name, work / "clip" / "tokenizer")


def _part(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def export(work: Path, out: Path) -> None:
    """Write `out` from the averaged UNet of the latest checkpoint, finished or not, with its record and model card."""
    state = torch.load(work / "unet" / "state.pt", map_location="cpu", weights_only=True)
    config, _ = load_clip(work / "clip" / "export")
    unet = new_unet(config["text_cfg"]["width"])
    unet.load_state_dict(state["ema"])
    assemble(unet.eval(), work, out)
    stages = {}
    for stage in STAGES:
        lines = (work / stage / "log.jsonl").read_text(encoding="utf-8").splitlines()
        stages[stage] = json.loads(lines[-1])
    record = {"stages": stages, "sources": data.source_versions()}
    record |= {"hardware": describe_hardware(), "torch": torch.__version__}
    write_json(out / "build.json", record)
    (out / "README.md").write_text(model_card(record), encoding="utf-8")

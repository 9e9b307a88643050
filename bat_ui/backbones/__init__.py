"""Backbones: the frozen models that are adapted.  `load_backbone` finds one by name and picks the hardware."""

from __future__ import annotations

from pathlib import Path

import torch

from bat_ui.backbones.checkpoints import MODEL_FILES, check_source, load_pipeline
from bat_ui.backbones.hub import (
    REPOSITORIES,
    Download,
    find_weights,
    is_repository,
    needed_clip_downloads,
    needed_download,
)
from bat_ui.backbones.stable_diffusion import Backbone
from bat_ui.errors import UserError
from bat_ui.hardware import best_device, best_dtype, gigabytes
from bat_ui.presets import choose_preset
from bat_ui.settings import BackboneSettings
from bat_ui.subject import STICKER_TEMPLATE, TEMPLATE

ASSETS = Path(__file__).parents[2] / "assets"
PHOTO_CLIP = "ViT-B-32:laion2b_s34b_b79k"  # the CLIP model that goes with photographs
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
# The attention of the small UNet sees 8 x 8 positions at most; outlines and eyes are drawn by the convolutions.
STICKER_LORA_TARGETS = (*LORA_TARGETS, "conv1", "conv2")


def load_backbone(
    name: str = "sticker",
    device: str | torch.device | None = None,
    *,
    clip: str | None = None,
    prediction: str | None = None,
    memory: str = "auto",
    dtype: torch.dtype | None = None,
) -> Backbone:
    """Load the backbone called `name` onto `device`, in `dtype` or the precision, and with the preset, that suit it.

    `name` is sticker, sd15, sd21 or sdxl; a diffusers folder; a .safetensors file; a repository OWNER/NAME on the Hugging
    Face hub whose weights were downloaded (hub.py); or a folder with `pipeline/` and `clip/`, as assets/sticker is one.
    `clip` is a CLIP model that `ClipSpace.load` takes, instead of the one that goes with the backbone.
    Raises UserError if there is no such backbone.
    """
    device = torch.device(device or best_device())
    dtype = dtype or best_dtype(device)
    own = ASSETS / "sticker" if name == "sticker" else Path(name)
    asked = BackboneSettings(name, clip, prediction).from_anywhere()
    if name == "sticker" or (own / "pipeline").is_dir():
        if not (own / "pipeline" / "model_index.json").is_file():
            raise UserError("The sticker backbone's weights are missing: make them with `python -m bat_ui build-sticker`.")
        pipeline, _ = load_pipeline(own / "pipeline", dtype, prediction)
        parts = {"family": "sticker", "caption_template": STICKER_TEMPLATE, "lora_targets": STICKER_LORA_TARGETS}
        parts |= {"clip_source": clip or clip_of(name), "asked": asked}
        return Backbone(name, pipeline=pipeline, device=device, photos=False, **parts)
    pipeline, family = load_pipeline(find_source(name), dtype, prediction)
    return Backbone(
        name=name,
        family=family,
        pipeline=pipeline,
        device=device,
        clip_source=clip or clip_of(name),
        caption_template=TEMPLATE,
        lora_targets=LORA_TARGETS,
        preset=choose_preset(family, memory, gigabytes(device)),
        asked=asked,
    )


def clip_of(name: str) -> str:
    """The CLIP model that goes with the backbone called `name`, as `ClipSpace.load` takes it."""
    own = ASSETS / "sticker" if name == "sticker" else Path(name)
    return str(own / "clip") if name == "sticker" or (own / "pipeline").is_dir() else PHOTO_CLIP


def needed_downloads(name: str, clip: str | None = None, search: bool = True) -> list[Download]:
    """What has to be fetched, once the person agrees, before `load_backbone(name, clip=clip)` and its CLIP space load.

    Without `search` the CLIP space is not asked for, which only the selection needs.  Raises UserError where the hub cannot
    be reached, knows no such model or gives no access.
    """
    own = name == "sticker" or (Path(name) / "pipeline").is_dir()
    if not own and not is_repository(name):
        find_source(name)  # a wrong name is told before anything is looked for
    source = clip or (None if own else PHOTO_CLIP)
    backbone = None if own else needed_download(name)
    return [*([backbone] if backbone else []), *(needed_clip_downloads(source) if search and source else [])]


def find_source(name: str) -> Path:
    """The folder or file of a photographic backbone on this machine, looked at but not loaded.

    Raises UserError if it is nowhere, or at first sight none.
    """
    path = Path(name)
    if path.exists() or path.suffix.lower() in MODEL_FILES:
        check_source(path)
        return path
    if is_repository(name):
        return find_weights(name)
    raise UserError(f'There is no backbone called "{name}": use sticker, {", ".join(REPOSITORIES)}, a folder or a file.')

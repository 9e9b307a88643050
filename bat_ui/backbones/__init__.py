"""Backbones: the frozen models that are adapted.  `load_backbone` finds one by name and picks the hardware."""

from __future__ import annotations

from pathlib import Path

import torch

from bat_ui.backbones.stable_diffusion import Backbone
from bat_ui.errors import UserError
from bat_ui.hardware import best_device
from bat_ui.subject import STICKER_TEMPLATE

ASSETS = Path(__file__).parents[2] / "assets"


def load_backbone(name: str = "sticker", device: str | torch.device | None = None) -> Backbone:
    """Load the backbone called `name`, or kept in the folder `name`, onto `device`.

    Such a folder holds `pipeline/` (diffusers) and `clip/` (open_clip), as assets/sticker does.
    Raises UserError if there is no such backbone.
    """
    folder = ASSETS / "sticker" if name == "sticker" else Path(name)
    if not (folder / "pipeline" / "model_index.json").is_file():
        if name == "sticker":
            raise UserError("The sticker backbone's weights are missing: make them with `python -m bat_ui build-sticker`.")
        raise UserError(f'There is no backbone called "{name}": use "sticker".')
    return Backbone.load(
        name=name,
        pipeline_folder=folder / "pipeline",
        clip_source=str(folder / "clip"),
        caption_template=STICKER_TEMPLATE,
        lora_targets=STICKER_LORA_TARGETS,
        device=torch.device(device or best_device()),
    )


# The attention of the small UNet sees 8 x 8 positions at most; outlines and eyes are drawn by the convolutions.
STICKER_LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2")

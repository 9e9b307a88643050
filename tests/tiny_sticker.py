"""A tiny backbone for stickers with random weights, in the real formats; it imports nothing of the tests."""

from __future__ import annotations

from pathlib import Path

import open_clip
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel

from bat_ui.backbones.sticker import train_clip
from bat_ui.backbones.sticker.tokenizer import build_tokenizer
from bat_ui.backbones.sticker.train_unet import new_scheduler


def write_folder(folder: Path) -> Path:
    """A backbone folder as `assets/sticker` is one, whose models have a few thousand random weights."""
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

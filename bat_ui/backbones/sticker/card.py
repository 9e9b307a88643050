"""The model card of the built-in backbone, written from what the build recorded."""

from __future__ import annotations

from bat_ui.backbones.sticker import data

WORDS = {
    "clip": "CLIP (contrastive loss)",
    "clip_image": "CLIP's image tower alone, on almost plain pictures (contrastive loss)",
    "autoencoder": "autoencoder",
    "unet": "UNet (denoising loss)",
}


def model_card(record: dict) -> str:
    """Markdown: data, held-out families, training, limits, licences; `record` is build.json's content."""
    sources = ", ".join(f"{name} {number}" for name, number in record["sources"].items())
    rows = "\n".join(
        f"| {WORDS[name]} | {r['minutes']:.0f} | {r['samples']:,} | {r['loss']:.4f} |"
        for name, r in record["stages"].items()
    )
    families = "\n".join(
        f"- {name}: {', '.join(code.lower() for code in family['codes'])}"
        for name, family in data.held_out_families().items()
    )
    count = len(data.training_stickers())
    return f"""---
license: cc-by-sa-4.0
tags: [text-to-image, stable-diffusion, diffusers, stickers]
---
# Sticker backbone

A Stable Diffusion pipeline, small enough for a CPU: it draws 64 x 64 stickers from captions such as
`a flat sticker of cat with tears of joy` or `an outlined sticker of flag of Norway`. It exists so that backbone augmented
training can be tried, and measured, with a backbone whose whole pre-training data is at hand.

- `pipeline/`: StableDiffusionPipeline (AutoencoderTiny, CLIPTextModel, UNet2DConditionModel, DDIM with v-prediction), fp16.
- `clip/`: the open_clip model (`local-dir:` format) whose text tower is the pipeline's text encoder.

## Data
{count:,} pictures of emoji in two styles, rendered at 64 x 64 on white from {sources}; captions are the style and
Unicode's name. Skin tones are left out, except those of single people described by nothing but hair and skin.

Held out of all training, in both styles, so that personalization can be measured on subjects that it never saw:

{families}

CLIP training also left out 200 random pictures of one style, for the measurement of its recall; the UNet saw them.

## Training
| stage | minutes | samples | last loss |
| --- | --- | --- | --- |
{rows}

Hardware: {record["hardware"]}; torch {record["torch"]}. Weights in float32; the UNet computed in bfloat16
where the processor can. Made by `python -m bat_ui build-sticker`; what it reaches is measured by
`python benchmarks/sticker.py`: see docs/benchmarks/sticker.md.

## Limits
It knows emoji and nothing else: white grounds, one subject in the middle, 64 pixels. Photographs, scenes and long prompts
are beyond it; names that differ in a word may be confused. It repeats the view of the world that Unicode's emoji have.

## Licences
The pictures: OpenMoji (CC BY-SA 4.0: all emojis designed by OpenMoji, the open-source emoji and icon project) and Twemoji
(graphics CC BY 4.0, Copyright Twitter, Inc and other contributors). The weights are given under CC BY-SA 4.0.
"""

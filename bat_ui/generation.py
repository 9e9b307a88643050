"""Samples: pictures from prompts, with or without the adapter, each from a seed of its own.

In: a backbone, prompts, settings, perhaps a LoRA file.  Out: PIL pictures in the order of the prompts, and contact sheets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors import SafetensorError

from bat_ui.backbones.checkpoints import quiet
from bat_ui.backbones.stable_diffusion import Backbone
from bat_ui.errors import UserError
from bat_ui.project import Progress
from bat_ui.settings import GenerationSettings
from bat_ui.training.lora import WEIGHTS

LOADED = "loaded"  # the name under which a LoRA file is loaded for sampling
UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)  # what a wrong file leads to


def generate(
    backbone: Backbone,
    prompts: Sequence[str],
    settings: GenerationSettings,
    lora_folder: Path | None = None,
    progress: Progress = lambda what, done, total: None,
) -> list[Image.Image]:
    """One picture for each prompt; picture i starts from noise of seed `settings.seed` + i.

    With `lora_folder` its adapter is loaded for these samples only.  Raises UserError for an empty prompt or a missing,
    unreadable or foreign adapter.
    """
    if not prompts or any(not prompt.strip() for prompt in prompts):
        raise UserError("The prompt is empty: say what to draw.")
    pipeline = backbone.pipeline
    if lora_folder is not None:
        _load_adapter(pipeline, lora_folder, settings.adapter_scale)
    what = "Generating samples" if lora_folder is None else "Generating samples with the adapter"

    images: list[Image.Image] = []

    total = settings.steps * math.ceil(len(prompts) / backbone.preset.pictures)

    def after_step(_pipeline, step: int, _timestep, values: dict) -> dict:
        done = len(images) // backbone.preset.pictures * settings.steps
        progress(what, done + min(step + 1, settings.steps), total)  # some schedulers take a step more
        return values

    try:
        at_once = backbone.preset.pictures
        with backbone.drawing(), quiet():
            for first in range(0, len(prompts), at_once):
                seeds = range(first, min(first + at_once, len(prompts)))
                images += pipeline(
                    [prompts[i] for i in seeds],
                    negative_prompt=[settings.negative_prompt] * len(seeds) if settings.negative_prompt else None,
                    num_inference_steps=settings.steps,
                    guidance_scale=settings.guidance,
                    generator=[torch.Generator().manual_seed(settings.seed + i) for i in seeds],
                    callback_on_step_end=after_step,
                ).images
        return images
    finally:
        if lora_folder is not None:
            pipeline.unload_lora_weights()


def _load_adapter(pipeline, folder: Path, scale: float) -> None:
    """Raises UserError for a missing or unreadable adapter, or one of another model; the pipeline is then as before."""
    if not (folder / WEIGHTS).is_file():
        raise UserError("There is no trained adapter yet: run the training first.")
    try:
        with quiet():
            pipeline.load_lora_weights(folder, weight_name=WEIGHTS, adapter_name=LOADED)
            pipeline.set_adapters(LOADED, scale)
    except BaseException as problem:
        pipeline.unload_lora_weights()
        if isinstance(problem, torch.OutOfMemoryError) or not isinstance(problem, UNREADABLE):
            raise
        said = "The adapter is damaged or of another backbone: use the backbone that it was trained on."
        raise UserError(said) from problem


def contact_sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]], cell: int = 128) -> Image.Image:
    """Rows of pictures, each under its title; all cells `cell` pixels square."""
    title, gap = 20, 4
    width = max(len(images) for _, images in rows) * (cell + gap) + gap
    sheet = Image.new("RGB", (width, len(rows) * (cell + title + gap) + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for r, (text, images) in enumerate(rows):
        top = gap + r * (cell + title + gap)
        pen.text((gap, top), text, fill="#333333", font=ImageFont.load_default(13))
        for i, image in enumerate(images):
            resized = image.resize((cell, cell), Image.Resampling.LANCZOS)
            sheet.paste(resized, (gap + i * (cell + gap), top + title))
    return sheet

"""Samples: each from its own seed, the adapter only where it is asked for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, save_file

from bat_ui.errors import UserError
from bat_ui.generation import contact_sheet, generate
from bat_ui.settings import GenerationSettings
from bat_ui.training.lora import lora, save_lora

QUICK = GenerationSettings(steps=2, seed=4)


def same(a, b):
    return np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 1


def test_a_sample_depends_on_its_own_seed_and_prompt_only(backbone):
    both = generate(backbone, ["a sticker of cat", "a sticker of dog"], QUICK)
    alone = generate(backbone, ["a sticker of dog"], GenerationSettings(steps=2, seed=5))
    assert both[0].size == (64, 64)
    assert same(both[1], alone[0]) and not same(both[0], both[1])


def test_the_adapter_is_gone_after_its_samples(backbone, tmp_path):
    with lora(backbone, 2, 0) as weights:
        for p in weights.values():
            p.data += 0.5
        save_lora(backbone, tmp_path)
    before = generate(backbone, ["cat"], QUICK)[0]
    adapted = generate(backbone, ["cat"], QUICK, tmp_path)[0]
    scaled = generate(backbone, ["cat"], GenerationSettings(steps=2, seed=4, adapter_scale=0.0), tmp_path)[0]
    after = generate(backbone, ["cat"], QUICK)[0]
    assert not same(before, adapted)
    assert same(before, scaled) and same(before, after)


def test_a_negative_prompt_is_what_guidance_leads_away_from(backbone):
    """Guided away from the prompt itself, a sample is that of no guidance."""
    away, none = replace(QUICK, guidance=5.0, negative_prompt="a cat"), replace(QUICK, guidance=1.0)
    assert same(generate(backbone, ["a cat"], away)[0], generate(backbone, ["a cat"], none)[0])


@pytest.mark.parametrize("prompts", [[], ["  "], ["cat", ""]])
def test_empty_prompts_are_refused(backbone, prompts):
    with pytest.raises(UserError, match="prompt is empty"):
        generate(backbone, prompts, QUICK)


def test_a_missing_adapter_is_refused(backbone, tmp_path):
    with pytest.raises(UserError, match="run the training first"):
        generate(backbone, ["cat"], QUICK, tmp_path)


def _wider(layers):
    return {key: torch.cat([value, value], 1) if "lora_A" in key else value for key, value in layers.items()}


WRONG_ADAPTERS = {
    "garbage": lambda path, _: path.write_bytes(b"garbage" * 100),
    "empty": lambda path, _: path.write_bytes(b""),
    "cut": lambda path, content: path.write_bytes(content[:-100]),
    "no LoRA": lambda path, _: save_file({"x": torch.zeros(2)}, path),
    "of no part": lambda path, content: save_file({f"other.{k}": v for k, v in load(content).items()}, path),
    "of another model": lambda path, content: save_file(_wider(load(content)), path),
}


@pytest.mark.parametrize("name", WRONG_ADAPTERS)
def test_a_wrong_adapter_is_refused_and_leaves_nothing_behind(name, backbone, tmp_path):
    with lora(backbone, 2, 0):
        path = save_lora(backbone, tmp_path)
    before, modules = generate(backbone, ["cat"], QUICK)[0], [n for n, _ in backbone.unet.named_modules()]
    WRONG_ADAPTERS[name](path, path.read_bytes())
    with pytest.raises(UserError, match="adapter is damaged"):
        generate(backbone, ["cat"], QUICK, tmp_path)
    assert same(before, generate(backbone, ["cat"], QUICK)[0])
    assert [n for n, _ in backbone.unet.named_modules()] == modules


def test_a_contact_sheet_shows_every_picture():
    colors = ["red", "lime", "blue"]
    rows = [("first", [Image.new("RGB", (8, 8), c) for c in colors[:2]]), ("second", [Image.new("RGB", (8, 8), "blue")])]
    found = {color for _, color in contact_sheet(rows, 32).getcolors(100_000)}
    assert {(255, 0, 0), (0, 255, 0), (0, 0, 255)} <= found

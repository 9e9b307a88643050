"""Names in kohya files: those that other programs derive from the original models' modules."""

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)

from bat_ui.export.names import kohya_name
from tests.tiny_models import make_pipeline, original_unet_modules

ADAPTABLE = (torch.nn.Linear, torch.nn.Conv2d)


def adaptable(model):
    return [name for name, module in model.named_modules() if isinstance(module, ADAPTABLE)]


def test_every_layer_of_sdxls_unet_has_its_name_in_the_original_unet():
    """The oracle writes single files, which diffusers' own loader reads."""
    unet = make_pipeline("sdxl").unet
    original = original_unet_modules(unet)
    for name in adaptable(unet):
        assert kohya_name("unet", name, "sdxl", unet.config) == "lora_unet_" + original[name].replace(".", "_")


@pytest.mark.parametrize("family", ["sd15", "sd21"])
def test_other_unets_keep_the_names_of_diffusers(family):
    unet = make_pipeline(family).unet
    for name in adaptable(unet):
        assert kohya_name("unet", name, family, unet.config) == f"lora_unet_{name.replace('.', '_')}"


@pytest.mark.parametrize(
    "family, part, name",
    [
        ("sd15", "text_encoder", "lora_te_text_model_encoder_layers_0_self_attn_q_proj"),
        ("sd21", "text_encoder", "lora_te_text_model_encoder_layers_0_self_attn_q_proj"),
        ("sdxl", "text_encoder", "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"),
        ("sdxl", "text_encoder_2", "lora_te2_text_model_encoder_layers_0_self_attn_q_proj"),
    ],
)
@pytest.mark.parametrize("start", ["", "text_model."])
def test_text_encoders_are_told_apart_as_kohya_does(family, part, name, start):
    assert kohya_name(part, f"{start}encoder.layers.0.self_attn.q_proj", family, {}) == name


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_diffusers_own_converter_finds_the_way_back(family):
    """For attention and for convolutions inside the blocks, the layers that are ever adapted here."""
    unet = make_pipeline(family).unet
    targets = (".to_q", ".to_k", ".to_v", ".to_out.0", ".conv1", ".conv2")
    names = [name for name in adaptable(unet) if name.endswith(targets)]
    state = {}
    for name in names:
        stem = kohya_name("unet", name, family, unet.config)
        state |= {f"{stem}.lora_{side}.weight": torch.zeros(1) for side in ("down", "up")}
        state[f"{stem}.alpha"] = torch.tensor(1.0)
    found, _ = _convert_non_diffusers_lora_to_diffusers(_maybe_map_sgm_blocks_to_diffusers(state, unet.config))
    plain = {key.replace(".processor", "").replace("_lora.", ".lora.").split(".lora.")[0] for key in found}
    expected = {f"unet.{name}".replace(".to_out.0", ".to_out") for name in names}
    assert plain == expected

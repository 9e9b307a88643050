"""The adapter: LoRA layers put on a backbone for the length of a `with` block, and its file.

In: a backbone, a rank, a seed.  Out: the trainable weights by name; `pytorch_lora_weights.safetensors` in diffusers'
own format, with alpha = rank as its scripts have it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers.utils import recurse_remove_peft_layers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from bat_ui.backbones.stable_diffusion import Backbone
from bat_ui.files import replacing

ADAPTER = "subject"
WEIGHTS = "pytorch_lora_weights.safetensors"
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")


@contextmanager
def lora(backbone: Backbone, rank: int, seed: int, text_encoder: bool = False) -> Iterator[dict[str, nn.Parameter]]:
    """Put a new adapter on the UNet, and on the text encoders if wanted; it starts as the backbone itself (B = 0).

    Yields its weights in float32, by their names in the UNet; those of text encoders begin with `text_encoder`.
    """
    encoders = backbone.text_encoders if text_encoder else ()
    adapted = [("", backbone.unet, backbone.lora_targets)]
    adapted += [(name, encoder, TEXT_TARGETS) for name, encoder in zip(("text_encoder.", "text_encoder_2."), encoders)]
    weights: dict[str, nn.Parameter] = {}
    put_on = []
    with backbone.at_work(*encoders):
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                for prefix, module, targets in adapted:
                    config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(targets))
                    module.add_adapter(config, adapter_name=ADAPTER)
                    put_on.append(module)
                    weights |= {prefix + name: p for name, p in module.named_parameters() if p.requires_grad}
            for parameter in weights.values():
                parameter.data = parameter.data.float()
            yield weights
        finally:
            for module in put_on:
                _take_off(module)


def lora_layers_by_part(backbone: Backbone) -> dict[str, dict[str, Tensor]]:
    """The current adapter's weights in PEFT's key names, for unet and each text encoder that carries it."""
    parts = {"unet": backbone.unet, **dict(zip(("text_encoder", "text_encoder_2"), backbone.text_encoders))}
    layers = {}
    for part, module in parts.items():
        if ADAPTER in getattr(module, "peft_config", {}):
            found = get_peft_model_state_dict(module, adapter_name=ADAPTER)
            # Newer transformers leave this level out of CLIPTextModel; files keep it, since every loader knows it.
            lacks = part != "unet" and not hasattr(module, "text_model")
            layers[part] = {f"text_model.{key}" if lacks else key: value for key, value in found.items()}
    return layers


def save_lora(backbone: Backbone, folder: Path) -> Path:
    """Write the current adapter as `folder`/pytorch_lora_weights.safetensors, all of it or nothing; returns that path."""
    # All keys in PEFT's form: diffusers' older names exist for attention only, and its loader drops them from a mixture.
    layers = {f"{part}_lora_layers": found for part, found in lora_layers_by_part(backbone).items()}
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS) as draft:
        type(backbone.pipeline).save_lora_weights(draft.parent, **layers, weight_name=draft.name)
    return folder / WEIGHTS


def _take_off(module: nn.Module) -> None:
    """Put the plain layers back: deleting the adapter alone would leave PEFT's wrappers around them."""
    if hasattr(module, "unload_lora"):  # diffusers
        return module.unload_lora()
    recurse_remove_peft_layers(module)  # transformers
    module.delete_adapter(ADAPTER)

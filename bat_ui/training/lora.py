"""The adapter: LoRA layers put on a backbone's UNet for the length of a `with` block, and its file.

In: a backbone, a rank, a seed.  Out: the trainable weights by name; `pytorch_lora_weights.safetensors` in diffusers'
own format, with alpha = rank as its scripts have it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from bat_ui.backbones.stable_diffusion import Backbone

ADAPTER = "subject"
WEIGHTS = "pytorch_lora_weights.safetensors"


@contextmanager
def lora(backbone: Backbone, rank: int, seed: int) -> Iterator[dict[str, torch.nn.Parameter]]:
    """Put a new adapter on the UNet, which starts as the backbone itself (B = 0); yields its weights in float32."""
    unet = backbone.unet
    targets = list(backbone.lora_targets)
    config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet.add_adapter(config, adapter_name=ADAPTER)
    try:
        weights = {name: p for name, p in unet.named_parameters() if p.requires_grad}
        for parameter in weights.values():
            parameter.data = parameter.data.float()
        yield weights
    finally:
        unet.delete_adapters(ADAPTER)


def save_lora(backbone: Backbone, folder: Path) -> Path:
    """Write the current adapter as `folder`/pytorch_lora_weights.safetensors and return that path."""
    # All keys in PEFT's form: diffusers' older names exist for attention only, and its loader drops them from a mixture.
    layers = get_peft_model_state_dict(backbone.unet, adapter_name=ADAPTER)
    folder.mkdir(parents=True, exist_ok=True)
    type(backbone.pipeline).save_lora_weights(folder, unet_lora_layers=layers, safe_serialization=True)
    return folder / WEIGHTS

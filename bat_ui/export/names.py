"""Names of adapted layers as kohya's trainer writes them and A1111 and ComfyUI read them.

In: a module's name in diffusers.  Out: the name in the file.  SD 1.x and 2.x keep diffusers' UNet names, SDXL has those of
Stability's own UNet (input_blocks, middle_block, output_blocks); dots become underscores in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OUTER = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
INNER = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
TEXT_PREFIXES = {"text_encoder": "lora_te", "text_encoder_2": "lora_te2"}


def kohya_name(part: str, module: str, family: str, unet_config: Mapping[str, Any]) -> str:
    """The name of `module` of `part` (unet, text_encoder or text_encoder_2) in a kohya file."""
    if part == "unet":
        return "lora_unet_" + (sgm_name(module, unet_config) if family == "sdxl" else module).replace(".", "_")
    prefix = "lora_te1" if family == "sdxl" and part == "text_encoder" else TEXT_PREFIXES[part]
    if not module.startswith(("text_model.", "text_projection")):
        module = f"text_model.{module}"  # a level that newer transformers leave out
    return f"{prefix}_{module.replace('.', '_')}"


def sgm_name(module: str, unet_config: Mapping[str, Any]) -> str:
    """The name in Stability's UNet of one of diffusers' UNet modules."""
    if module in OUTER:
        return OUTER[module]
    words = module.split(".")
    rest = words[3:] if words[0] == "mid_block" else words[4:]
    inner = ".".join(rest)
    if words[0] == "mid_block":
        place = 1 if words[1] == "attentions" else 2 * int(words[2])
        return f"middle_block.{place}.{INNER.get(inner, inner)}"
    level, kind, i = int(words[1]), words[2], int(words[3])
    each = unet_config["layers_per_block"] + 1
    if words[0] == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{(level + 1) * each}.0.op"
        number, place = 1 + level * each + i, 1 if kind == "attentions" else 0
        return f"input_blocks.{number}.{place}.{INNER.get(inner, inner)}"
    if kind == "upsamplers":
        attends = unet_config["up_block_types"][level].startswith("CrossAttn")
        return f"output_blocks.{(level + 1) * each - 1}.{2 if attends else 1}.conv"
    return f"output_blocks.{level * each + i}.{1 if kind == 'attentions' else 0}.{INNER.get(inner, inner)}"

"""Tiny checkpoints with random weights in the real formats: diffusers folders, and single files with original key names.

The original names are written here by their own rules (those of CompVis, Stability and OpenCLIP), apart from the code that
the tests judge; diffusers' own loader is the judge of these rules.
"""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import open_clip
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from bat_ui.backbones import checkpoints

WIDTH, SECOND_WIDTH = 16, 24  # of the text encoders
DOWN = {False: ("CrossAttnDownBlock2D", "DownBlock2D"), True: ("DownBlock2D", *["CrossAttnDownBlock2D"] * 2)}
UP = {False: ("UpBlock2D", "CrossAttnUpBlock2D"), True: (*["CrossAttnUpBlock2D"] * 2, "UpBlock2D")}
clip_tokenizer = functools.cache(checkpoints.clip_tokenizer)
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def make_pipeline(family: str, seed: int = 0) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    """A pipeline of the family (sd15, sd21, sdxl) that draws 32 x 32 pixels, all of whose weights are random."""
    xl = family == "sdxl"
    levels = 3 if xl else 2
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(8, 16, 16)[:levels],
            layers_per_block=2,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * 2)
            if xl
            else ("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=(*["CrossAttnUpBlock2D"] * 2, "UpBlock2D") if xl else ("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=WIDTH + SECOND_WIDTH if xl else WIDTH,
            attention_head_dim=2 if family == "sd15" else (2, 4, 4)[:levels],
            use_linear_projection=family != "sd15",
            transformer_layers_per_block=(1, 1, 2) if xl else 1,
            **(
                {
                    "addition_embed_type": "text_time",
                    "addition_time_embed_dim": 8,
                    "projection_class_embeddings_input_dim": SECOND_WIDTH + 6 * 8,
                }
                if xl
                else {}
            ),
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            layers_per_block=2,
            latent_channels=4,
            sample_size=32,
            scaling_factor=0.13025 if xl else 0.18215,
            force_upcast=xl,
        )
        act = "gelu" if family == "sd21" else "quick_gelu"
        parts = {
            "unet": unet,
            "vae": vae,
            "text_encoder": CLIPTextModel(_text_config(WIDTH, act)),
            "tokenizer": clip_tokenizer("!" if family == "sd21" else "<|endoftext|>"),
        }
        if xl:
            parts |= {
                "text_encoder_2": CLIPTextModelWithProjection(_text_config(SECOND_WIDTH, "gelu")),
                "tokenizer_2": clip_tokenizer("!"),
                "scheduler": EulerDiscreteScheduler(**NOISE, timestep_spacing="leading", steps_offset=1),
            }
            return StableDiffusionXLPipeline(**parts)
    scheduler = PNDMScheduler(**NOISE, skip_prk_steps=True, steps_offset=1)
    if family == "sd21":
        scheduler = DDIMScheduler(**NOISE, prediction_type="v_prediction", clip_sample=False, steps_offset=1)
    parts |= {"scheduler": scheduler, "safety_checker": None, "feature_extractor": None}
    return StableDiffusionPipeline(**parts, requires_safety_checker=False)


def write_folder(family: str, folder: Path, seed: int = 0) -> Path:
    """The pipeline as a diffusers folder."""
    make_pipeline(family, seed).save_pretrained(folder, safe_serialization=True)
    return folder


def write_single_file(pipeline, path: Path, extra: dict[str, Tensor] | None = None, metadata: dict | None = None) -> Path:
    """The pipeline's weights as one file with the original key names."""
    xl = hasattr(pipeline, "text_encoder_2")
    state = {f"model.diffusion_model.{k}": v for k, v in _original_unet(pipeline.unet).items()}
    state |= {f"first_stage_model.{k}": v for k, v in _original_vae(pipeline.vae).items()}
    clip = {f"transformer.{k}": v for k, v in _with_text_model(pipeline.text_encoder).items()}
    if xl:
        state |= {f"conditioner.embedders.0.{k}": v for k, v in clip.items()}
        open_clip_state = _original_open_clip(pipeline.text_encoder_2)
        state |= {f"conditioner.embedders.1.model.{k}": v for k, v in open_clip_state.items()}
    elif pipeline.unet.config.use_linear_projection:
        state |= {f"cond_stage_model.model.{k}": v for k, v in _original_open_clip(pipeline.text_encoder).items()}
    else:
        state |= {f"cond_stage_model.{k}": v for k, v in clip.items()}
    save_file({k: v.detach().clone().contiguous() for k, v in (state | (extra or {})).items()}, path, metadata)
    return path


def write_configs(family: str, folder: Path) -> Path:
    """What the package keeps for real single files: the family's diffusers folder without weights and word lists."""
    write_folder(family, folder)
    for path in [*folder.rglob("*.safetensors"), *folder.glob("tokenizer*/*")]:
        path.unlink()
    return folder


def write_clip(folder: Path) -> Path:
    """A CLIP model in open_clip's folder format, with CLIP's own tokenizer."""
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CLIP(**config)
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}
    record = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


def copy_folder(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def original_unet_modules(unet: UNet2DConditionModel) -> dict[str, str]:
    """The original name of each of diffusers' modules that holds weights."""
    per_level, levels = unet.config.layers_per_block, len(unet.config.block_out_channels)
    names = {
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }
    number = 1
    for level in range(levels):
        for i in range(per_level):
            names[f"down_blocks.{level}.resnets.{i}"] = f"input_blocks.{number}.0"
            names[f"down_blocks.{level}.attentions.{i}"] = f"input_blocks.{number}.1"
            number += 1
        if level < levels - 1:
            names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1
    number = 0
    for level in range(levels):
        attends = unet.config.up_block_types[level].startswith("CrossAttn")
        for i in range(per_level + 1):
            names[f"up_blocks.{level}.resnets.{i}"] = f"output_blocks.{number}.0"
            names[f"up_blocks.{level}.attentions.{i}"] = f"output_blocks.{number}.1"
            number += 1
        names[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{number - 1}.{2 if attends else 1}.conv"
    inside = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    found = {}
    for key in unet.state_dict():
        module = key.rpartition(".")[0]
        start = max((name for name in names if module == name or module.startswith(name + ".")), key=len)
        rest = module[len(start) + 1 :]
        if "resnets" in start:
            rest = inside[rest]
        found[module] = f"{names[start]}.{rest}".rstrip(".")
    return found


def _original_unet(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    names = original_unet_modules(unet)
    return {f"{names[k.rpartition('.')[0]]}.{k.rpartition('.')[2]}": v for k, v in unet.state_dict().items()}


def _original_vae(vae: AutoencoderKL) -> dict[str, Tensor]:
    state, levels = {}, len(vae.config.block_out_channels)
    for key, value in vae.state_dict().items():
        side, _, rest = key.partition(".")
        words = rest.split(".")
        if words[0] == "down_blocks":
            kind = {"resnets": "block", "downsamplers": "downsample"}[words[2]]
            words = ["down", words[1], kind, *(words[3:] if kind == "block" else words[4:])]
        elif words[0] == "up_blocks":
            kind = {"resnets": "block", "upsamplers": "upsample"}[words[2]]
            words = ["up", str(levels - 1 - int(words[1])), kind, *(words[3:] if kind == "block" else words[4:])]
        elif words[:2] == ["mid_block", "resnets"]:
            words = ["mid", f"block_{int(words[2]) + 1}", *words[3:]]
        elif words[:2] == ["mid_block", "attentions"]:
            own = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}[words[3]]
            words = ["mid", "attn_1", own, words[-1]]
            if own != "norm" and words[-1] == "weight":
                value = value[:, :, None, None]  # the original has convolutions of one pixel here
        elif words[0] == "conv_norm_out":
            words[0] = "norm_out"
        words = ["nin_shortcut" if word == "conv_shortcut" else word for word in words]
        if words[-2:-1] == ["conv"] and len(words) > 2 and words[-3] in ("downsample", "upsample"):
            pass
        elif words[0] in ("down", "up") and words[2] in ("downsample", "upsample"):
            words = [*words[:3], "conv", words[-1]]
        if side in ("quant_conv", "post_quant_conv"):
            state[key] = value
        else:
            state[".".join([side, *words])] = value
    return state


def _original_open_clip(encoder) -> dict[str, Tensor]:
    """An OpenCLIP text tower out of transformers' names; q, k and v are one matrix there."""
    source = {k.removeprefix("text_model."): v for k, v in encoder.state_dict().items()}
    width = encoder.config.hidden_size
    state = {
        "token_embedding.weight": source["embeddings.token_embedding.weight"],
        "positional_embedding": source["embeddings.position_embedding.weight"],
        "ln_final.weight": source["final_layer_norm.weight"],
        "ln_final.bias": source["final_layer_norm.bias"],
        "text_projection": source["text_projection.weight"].T if "text_projection.weight" in source else torch.eye(width),
        "logit_scale": torch.tensor(1.0),
    }
    names = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    # SD 2 leaves out the tower's last block; the file has it all the same.
    blocks = encoder.config.num_hidden_layers + ("text_projection.weight" not in source)
    for i in range(blocks):
        layer = f"encoder.layers.{min(i, encoder.config.num_hidden_layers - 1)}"
        for kind in ("weight", "bias"):
            block = f"transformer.resblocks.{i}"
            for ours, original in names.items():
                state[f"{block}.{original}.{kind}"] = source[f"{layer}.{ours}.{kind}"]
            parts = [source[f"{layer}.self_attn.{p}_proj.{kind}"] for p in "qkv"]
            state[f"{block}.attn.in_proj_{kind}"] = torch.cat(parts)
    return state


def _with_text_model(encoder) -> dict[str, Tensor]:
    return {k if k.startswith("text_model.") else f"text_model.{k}": v for k, v in encoder.state_dict().items()}


def _text_config(width: int, act: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=width,
        hidden_act=act,
        vocab_size=49408,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )

"""Stage 1 of the sticker backbone: a small open_clip model, trained contrastively on the captioned pictures.

In: pictures (n, 64, 64, 3) uint8 with captions.  Out: a folder that open_clip loads as `local-dir:FOLDER`.  Its text
tower, converted to transformers' CLIPTextModel, becomes the text encoder of the pipeline, as in Stable Diffusion.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from bat_ui.backbones.sticker import data
from bat_ui.backbones.sticker.stage import Stage
from bat_ui.backbones.sticker.tokenizer import CONTEXT_LENGTH, build_tokenizer
from bat_ui.files import whole_folder
from bat_ui.hardware import best_device
from bat_ui.seeds import step_generator

BATCH = 256
LEARNING_RATE = 1.5e-3
IMAGE_LEARNING_RATE = 3e-4  # of the image tower alone, at the end
GENTLE = 0.25  # augmentation then, as a part of the usual
WEIGHT_DECAY = 0.1
STYLELESS = 0.1  # part of the captions that do not name the style
MAX_LOGIT_SCALE = 100.0
MEAN = STD = (0.5, 0.5, 0.5)


def clip_config(vocabulary: int) -> dict:
    """open_clip's model_cfg: a ModifiedResNet image tower and a 4-layer text tower."""
    return {
        "embed_dim": 192,
        "vision_cfg": {"image_size": data.SIZE, "layers": [1, 2, 2, 1], "width": 32, "patch_size": None},
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": vocabulary,
            "hf_tokenizer_name": "local",
            "width": 192,
            "heads": 3,
            "layers": 4,
        },
    }


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Token ids (n, CONTEXT_LENGTH), padded with the end token, as the pipeline does."""
    batch = tokenizer(texts, padding="max_length", truncation=True, max_length=CONTEXT_LENGTH, return_tensors="pt")
    return batch.input_ids


def kept_tokenizer(folder: Path, captions: list[str]) -> CLIPTokenizer:
    """The tokenizer in `folder`, built at first: learning breaks ties anew each time, and a resumed stage must not."""
    if not folder.is_dir():
        with whole_folder(folder) as draft:
            build_tokenizer(captions).save_pretrained(draft)
    return CLIPTokenizer.from_pretrained(folder)


def train_clip(folder: Path, minutes: float, seed: int, stickers: list[data.Sticker], pictures: np.ndarray) -> None:
    """Train for `minutes` in all, resuming from `folder`, and export to `folder`/export."""
    tokenizer = kept_tokenizer(folder / "tokenizer", [s.caption for s in stickers])
    torch.manual_seed(seed)
    config = clip_config(len(tokenizer))
    device = best_device()
    model = open_clip.CLIP(**config).to(device, memory_format=torch.channels_last)
    plain = [p for p in model.parameters() if p.ndim < 2]
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        betas=(0.9, 0.98),
    )
    kept = _kept(stickers)
    images = torch.from_numpy(pictures[kept]).permute(0, 3, 1, 2).contiguous()
    styled = tokenize(tokenizer, [stickers[i].caption for i in kept])
    styleless = tokenize(tokenizer, [data.caption_of(stickers[i].name) for i in kept])
    loss_of = open_clip.loss.ClipLoss()

    stage = Stage(folder, model, [optimizer], minutes, ema_decay=0.998)
    model.train()
    for step in stage.steps():
        rng, rows = step_generator(seed, step), _rows(len(kept), seed, step)
        drop = torch.rand(len(rows), 1, generator=rng) < STYLELESS
        text = torch.where(drop, styleless[rows], styled[rows])
        loss = loss_of(*model(augment(images[rows], rng).to(device), text.to(device)))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=np.log(MAX_LOGIT_SCALE))
        stage.log(len(rows), loss=loss)
    export_clip(stage.trained_model().eval().cpu(), tokenizer, config, folder / "export")


def train_image_tower(
    folder: Path, minutes: float, seed: int, stickers: list[data.Sticker], pictures: np.ndarray, clip_folder: Path
) -> None:
    """Sharpen the image tower of the CLIP in `clip_folder` on almost plain pictures, and export to `folder`/export.

    The text tower stays as it is, so whatever was trained on its states goes on to fit.
    """
    config, model = load_clip(clip_folder)
    tokenizer = CLIPTokenizer.from_pretrained(clip_folder)
    device = best_device()
    model = model.to(device, memory_format=torch.channels_last)
    kept = _kept(stickers)
    images = torch.from_numpy(pictures[kept]).permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        tokens = tokenize(tokenizer, [stickers[i].caption for i in kept])
        texts = torch.cat([model.encode_text(batch.to(device), normalize=True) for batch in tokens.split(256)])
    scale = model.logit_scale.exp().detach()
    visual = model.visual
    optimizer = torch.optim.AdamW(visual.parameters(), lr=IMAGE_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    stage = Stage(folder, visual, [optimizer], minutes, ema_decay=0.99)
    loss_of = open_clip.loss.ClipLoss()
    visual.train()
    for step in stage.steps():
        rng, rows = step_generator(seed, step), _rows(len(kept), seed, step)
        vectors = F.normalize(visual(augment(images[rows], rng, GENTLE).to(device)), dim=-1)
        loss = loss_of(vectors, texts[rows], scale)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        stage.log(len(rows), loss=loss)
    visual.load_state_dict(stage.trained_model().state_dict())
    export_clip(model.eval().cpu(), tokenizer, config, folder / "export")


def load_clip(folder: Path) -> tuple[dict, open_clip.CLIP]:
    """An exported CLIP with its model_cfg."""
    config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))["model_cfg"]
    return config, open_clip.create_model(f"local-dir:{folder}").eval()


def _kept(stickers: list[data.Sticker]) -> list[int]:
    """Indices of the stickers that CLIP may see."""
    left_out = data.recall_holdout(stickers)
    return [i for i, s in enumerate(stickers) if s.id not in left_out]


def _rows(count: int, seed: int, step: int) -> torch.Tensor:
    """The rows of one batch: every epoch a new order."""
    per_epoch = max(count // BATCH, 1)
    order = torch.randperm(count, generator=step_generator(seed + 1, step // per_epoch))
    return order[step % per_epoch * BATCH :][:BATCH]


def normalize(images: torch.Tensor) -> torch.Tensor:
    """uint8 (n, 3, h, w) to the range [-1, 1], which is both MEAN/STD's and the autoencoder's."""
    return images.float().div(127.5).sub(1)


def augment(images: torch.Tensor, rng: torch.Generator, strength: float = 1.0) -> torch.Tensor:
    """Random shift, scale, small rotation and brightness; the ground stays white."""
    n = len(images)

    def uniform(low, high, *shape):
        middle = min(max(low, 1.0), high) if low > 0 else 0.0
        return torch.lerp(torch.tensor(middle), torch.rand(n, *shape, generator=rng) * (high - low) + low, strength)

    ink = 1 - normalize(images)  # 0 on white, so that padding is white
    angle, scale, shift = uniform(-0.2, 0.2), uniform(0.85, 1.2), uniform(-0.15, 0.15, 2)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    theta = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    ink = F.grid_sample(ink, F.affine_grid(theta, list(ink.shape), align_corners=False), align_corners=False)
    ink = ink * uniform(0.8, 1.1, 1, 1, 1)
    return (1 - ink).to(memory_format=torch.channels_last)


@torch.no_grad()
def embed(model: open_clip.CLIP, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors of uint8 images (n, 3, 64, 64) and of their captions' tokens, each (n, 192)."""
    image = torch.cat([model.encode_image(normalize(b), normalize=True) for b in images.split(256)])
    text = torch.cat([model.encode_text(b, normalize=True) for b in tokens.split(256)])
    return image, text


def export_clip(model: open_clip.CLIP, tokenizer: CLIPTokenizer, config: dict, folder: Path) -> None:
    """Write open_clip's local-dir format in fp16, tokenizer included."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "longest", "fill_color": 255}
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=2)
    (folder / "open_clip_config.json").write_text(text, encoding="utf-8")
    state = {k: half(v).contiguous() for k, v in model.state_dict().items() if k != "attn_mask"}
    save_file(state, folder / "open_clip_model.safetensors", metadata={"format": "pt"})


def half(value: torch.Tensor) -> torch.Tensor:
    return value.half() if value.is_floating_point() else value


def text_encoder_of(model: open_clip.CLIP, config: dict) -> CLIPTextModel:
    """The text tower as transformers' CLIPTextModel; its last hidden state is the tower's, before pooling."""
    text = config["text_cfg"]
    end = text["vocab_size"] - 1
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=text["vocab_size"],
            hidden_size=text["width"],
            intermediate_size=4 * text["width"],
            projection_dim=config["embed_dim"],
            num_hidden_layers=text["layers"],
            num_attention_heads=text["heads"],
            max_position_embeddings=text["context_length"],
            hidden_act="gelu",
            bos_token_id=end - 1,
            eos_token_id=end,
            pad_token_id=end,
        )
    )
    state = {
        "embeddings.token_embedding.weight": model.token_embedding.weight,
        "embeddings.position_embedding.weight": model.positional_embedding,
        "final_layer_norm.weight": model.ln_final.weight,
        "final_layer_norm.bias": model.ln_final.bias,
    }
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    for i, block in enumerate(model.transformer.resblocks):
        to = f"encoder.layers.{i}."
        for ours, theirs in {**names, "attn.out_proj": "self_attn.out_proj"}.items():
            module = block.get_submodule(ours)
            state |= {f"{to}{theirs}.weight": module.weight, f"{to}{theirs}.bias": module.bias}
        for j, part in enumerate("qkv"):
            state[f"{to}self_attn.{part}_proj.weight"] = block.attn.in_proj_weight.chunk(3)[j]
            state[f"{to}self_attn.{part}_proj.bias"] = block.attn.in_proj_bias.chunk(3)[j]
    prefix = "text_model." if any(k.startswith("text_model.") for k in encoder.state_dict()) else ""
    missing, unexpected = encoder.load_state_dict({prefix + k: v for k, v in state.items()}, strict=False)
    if unexpected or any("position_ids" not in key for key in missing):
        raise RuntimeError(f"the text tower does not fit transformers' CLIPTextModel: {missing} {unexpected}")
    return encoder.eval()

"""Adapters as files: diffusers' own form, and kohya's, which A1111, Forge and ComfyUI read.

In: a project's adapter and the backbone that it was trained on.  Out: a .safetensors file with the metadata that those
tools show, loaded back at once: by diffusers, and by the naming rules against the backbone's own modules.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import safetensors.torch
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from bat_ui.adapters import samples_of_adapter, used_step
from bat_ui.backbones.stable_diffusion import Backbone
from bat_ui.choice import Choice
from bat_ui.errors import in_one_line
from bat_ui.export.names import kohya_name
from bat_ui.files import read_json
from bat_ui.project import Project
from bat_ui.subject import Subject, plain_name
from bat_ui.training.lora import WEIGHTS

CHECKING = "checking"  # the name under which an exported file is loaded to be compared
PARTS = ("unet", "text_encoder", "text_encoder_2")
BASE_VERSIONS = {"sd15": "sd_v1", "sd21": "sd_v2", "sdxl": "sdxl_base_v1-0"}
ARCHITECTURES = {"sticker": "sticker", "sd15": "stable-diffusion-v1", "sdxl": "stable-diffusion-xl-v1-base"}
SGM = "https://github.com/Stability-AI/generative-models"
THUMBNAIL = 256  # pixels


@dataclass(frozen=True)
class Check:
    """What was found when an export was read back: by whose rules, whether all is there and equal, and in words."""

    tool: str
    ok: bool
    found: str


def write_diffusers(project: Project, backbone: Backbone, out: Path) -> list[Check]:
    """The adapter in diffusers' own form, which is that of the project."""
    shutil.copyfile(project.adapter, out / WEIGHTS)
    return [check_loads_in_diffusers(backbone, out / WEIGHTS, read_adapter(project.adapter))]


def write_kohya(project: Project, backbone: Backbone, out: Path) -> list[Check]:
    """The adapter in kohya's form as NAME.safetensors, NAME being the identifier and the class noun."""
    layers = read_adapter(project.adapter)
    tensors: dict[str, Tensor] = {}
    for (part, module), (down, up) in layers.items():
        name = kohya_name(part, module, backbone.family, backbone.unet.config)
        # alpha = rank, as the adapter was trained; a file without it would be taken for alpha = rank, too, but not by all.
        alpha = torch.tensor(float(len(down)))
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": alpha}
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    path = out / f"{file_stem(project)}.safetensors"
    save_file(tensors, path, metadata(project, backbone, tensors))
    return [check_kohya_names(backbone, path, layers), check_loads_in_diffusers(backbone, path, layers)]


def file_stem(project: Project) -> str:
    """The exported file's name without its ending, by which prompts in A1111 call it."""
    subject = Subject.load(project.subject)
    return plain_name(f"{subject.identifier}-{subject.class_noun}")


def read_adapter(path: Path) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
    """A diffusers file's (down, up) matrices by part and module."""
    tensors, layers = load_file(path), {}
    for key in tensors:
        if key.endswith(".lora_A.weight"):
            part, _, module = key.removesuffix(".lora_A.weight").partition(".")
            layers[part, module] = tensors[key], tensors[key.replace(".lora_A.", ".lora_B.")]
    return layers


def metadata(project: Project, backbone: Backbone, tensors: dict[str, Tensor]) -> dict[str, str]:
    """What kohya's trainer writes (ss_*), the ModelSpec standard (modelspec.*), and this program's own settings."""
    subject, choice = Subject.load(project.subject), Choice.load(project.choice_of_adapter)
    training = (read_json(project.report) or {}).get("training", {})
    settings = training.get("settings", {})
    v_prediction, v2 = backbone.prediction == "v_prediction", backbone.family == "sd21"
    ranks = Counter(len(value) for key, value in tensors.items() if key.endswith("lora_down.weight"))
    rank = ranks.most_common(1)[0][0]
    convolutions = any(value.ndim == 4 and value.shape[2] > 1 for value in tensors.values())
    side, trigger = backbone.resolution, f"{subject.identifier} {subject.class_noun}"
    version = BASE_VERSIONS.get(backbone.family, backbone.family)
    second = "stable-diffusion-v2-768-v" if v_prediction else "stable-diffusion-v2-512"
    architecture = second if v2 else ARCHITECTURES[backbone.family]
    captions = {"subject": Counter(subject.captions), "backbone": Counter(c.caption for c in choice.chosen)}
    folders = {"subject": len(subject.images), "backbone": len(choice.chosen)}
    found = {
        "ss_v2": v2,
        "ss_base_model_version": version + ("_v" if v2 and v_prediction else ""),
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": float(rank),
        "ss_network_args": {"conv_dim": rank, "conv_alpha": rank} if convolutions else {},
        "ss_output_name": file_stem(project),
        "ss_sd_model_name": Path(backbone.name).name,
        "ss_resolution": f"({side}, {side})",
        "ss_seed": settings.get("seed"),
        "ss_learning_rate": settings.get("learning_rate"),
        "ss_lr_scheduler": settings.get("lr_scheduler"),
        "ss_lr_warmup_steps": settings.get("lr_warmup_steps"),
        "ss_batch_size_per_device": settings.get("batch_size"),
        "ss_max_train_steps": settings.get("steps"),
        "ss_steps": used_step(project) or training.get("steps"),
        "ss_optimizer": "torch.optim.AdamW",
        "ss_num_train_images": sum(folders.values()),
        "ss_num_reg_images": 0,
        "ss_dataset_dirs": {name: {"n_repeats": 1, "img_count": count} for name, count in folders.items() if count},
        "ss_reg_dataset_dirs": {},
        "ss_tag_frequency": {name: dict(tags) for name, tags in captions.items() if tags},
        "ss_training_comment": f"Trained together with {len(choice.chosen)} backbone pictures, chosen by {choice.rule}.",
        "ss_training_finished_at": project.adapter.stat().st_mtime,
        "sshs_model_hash": tensor_hash(tensors),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": SGM if backbone.family == "sdxl" else "diffusers",
        "modelspec.title": trigger,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.description": f"A {subject.class_noun}, learned from {len(subject.images)} pictures.",
        "modelspec.date": datetime.fromtimestamp(int(project.adapter.stat().st_mtime), timezone.utc).isoformat(),
        "modelspec.hash_sha256": f"0x{tensor_hash(tensors)}",
        "modelspec.trigger_phrase": trigger,
        "modelspec.usage_hint": f'Say "{trigger}" in the prompt.',
        "modelspec.tags": subject.class_noun,
        "modelspec.prediction_type": "v" if v_prediction else "epsilon",
        "modelspec.thumbnail": _thumbnail(project),
        "bat_ui.training": settings,
        "bat_ui.selection_sha256": hashlib.sha256(project.choice_of_adapter.read_bytes()).hexdigest(),
    }
    return {
        key: json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
        for key, value in found.items()
        if value is not None
    }


def tensor_hash(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of a .safetensors file's bytes behind its header, by which A1111 knows a model whatever its metadata."""
    content = safetensors.torch.save(tensors)
    return hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()


def check_kohya_names(backbone: Backbone, path: Path, layers: dict[tuple[str, str], tuple[Tensor, Tensor]]) -> Check:
    """Go the way of the tools that read such a file: name all modules of the model, look each layer's name up in that
    list, and compare the matrices found with the adapter's; no layer may be missing, and none left over."""
    modules = {}
    for part in PARTS:
        model = getattr(backbone.pipeline, part, None)
        for name, module in model.named_modules() if model is not None else ():
            name = name.removesuffix(".base_layer")  # what an adapter leaves behind that was on the model
            if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) and ".lora_" not in name:
                modules[kohya_name(part, name, backbone.family, backbone.unet.config)] = (part, name)
    tensors = load_file(path)
    names = {key.partition(".")[0] for key in tensors}
    unknown = sorted(name for name in names if name not in modules)
    if unknown:
        return Check("A1111 and ComfyUI", False, f"{len(unknown)} layers belong to no module, such as {unknown[0]}")
    wanted = {(part, _plain(module)): matrices for (part, module), matrices in layers.items()}
    found = {(modules[n][0], _plain(modules[n][1])): n for n in names}
    if found.keys() != wanted.keys():
        return Check("A1111 and ComfyUI", False, f"{len(found.keys() ^ wanted.keys())} layers are missing or too many")
    for place, name in found.items():
        down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
        alpha = float(tensors[f"{name}.alpha"])
        if not (torch.equal(down, wanted[place][0]) and torch.equal(up, wanted[place][1]) and alpha == len(down)):
            return Check("A1111 and ComfyUI", False, f"the layer {name} differs from the trained one")
    return Check("A1111 and ComfyUI", True, f"all {len(names)} layers map by their naming rules and are equal")


def check_loads_in_diffusers(backbone: Backbone, path: Path, layers: dict[tuple[str, str], tuple[Tensor, Tensor]]) -> Check:
    """Load the file with diffusers and compare every matrix in the model with the adapter's."""
    pipeline = backbone.pipeline
    try:
        pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name=CHECKING)
    except (ValueError, KeyError, RuntimeError, IndexError) as problem:
        pipeline.unload_lora_weights()
        return Check("diffusers", False, f"its loader refuses the file: {in_one_line(problem)}")
    try:
        same = missing = 0
        for (part, name), (down, up) in layers.items():
            modules = dict(getattr(pipeline, part).named_modules())
            module = modules.get(name) or modules.get(_plain(name)) or modules.get(f"text_model.{name}")
            if CHECKING not in getattr(module, "lora_A", {}):
                missing += 1
                continue
            pairs = ((module.lora_A[CHECKING].weight, down), (module.lora_B[CHECKING].weight, up))
            scaled = module.scaling[CHECKING] == 1.0
            same += scaled and all(torch.equal(a.cpu(), b.to(a.dtype)) for a, b in pairs)
    finally:
        pipeline.unload_lora_weights()
    if same == len(layers):
        return Check("diffusers", True, f"all {same} layers load and are equal")
    return Check(
        "diffusers", False, f"of {len(layers)} layers {missing} do not load and {len(layers) - same - missing} differ"
    )


def _plain(module: str) -> str:
    return module.removeprefix("text_model.")


def _thumbnail(project: Project) -> str | None:
    """The first sample as a small JPEG in a data URL."""
    drawn = samples_of_adapter(project)
    if not drawn:
        return None
    buffer = io.BytesIO()
    with Image.open(drawn[0]["file"], formats=["PNG"]) as image:
        image.convert("RGB").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"

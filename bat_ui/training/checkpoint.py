"""Checkpoints of a run: complete or absent, whatever is killed when.

In: adapter weights and optimiser state.  Out: `step-000100/` with the adapter in diffusers' format, the exact state in
safetensors and, written last, a manifest with every file's SHA-256.  Without a matching manifest a folder is not read.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from bat_ui.backbones.stable_diffusion import Backbone
from bat_ui.errors import UserError
from bat_ui.files import read_json, whole_folder
from bat_ui.samples import step_name
from bat_ui.training.loop import LOSS_SCALE
from bat_ui.training.lora import save_lora

STATE, MANIFEST = "state.safetensors", "manifest.json"


def save_checkpoint(
    folder: Path,
    step: int,
    backbone: Backbone,
    weights: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> Path:
    """Write `folder`/step-NNNNNN; it appears under that name only when all of it is on disk, and leaves nothing if not."""
    target = folder / step_name(step)
    with whole_folder(target) as draft:
        save_lora(backbone, draft)
        save_file(_state(weights, optimizer), draft / STATE)
        digests = {path.name: _digest(path) for path in sorted(draft.iterdir())}
        manifest = {"step": step, "backbone": backbone.identity, "sha256": digests}
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    return target


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose files are all as its manifest says; broken ones are passed over."""
    return next((path for path in reversed(sorted(folder.glob("step-*"))) if is_complete(path)), None)


def is_complete(checkpoint: Path) -> bool:
    """True if the manifest is there and every file that it names has the digest that it gives."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        return all(_digest(checkpoint / name) == digest for name, digest in manifest["sha256"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def check_backbone(checkpoint: Path, backbone: Backbone) -> None:
    """Raises UserError if the checkpoint is of another backbone; an old one does not say of which it is."""
    identity = read_json(checkpoint / MANIFEST).get("backbone")
    if identity and not backbone.is_that(identity):
        said = f"{identity['name']} ({identity['family']}, {identity['prediction']})"
        raise UserError(f"The adapter was trained on another backbone, {said}: use that one, or train anew.")


def restore_checkpoint(checkpoint: Path, weights: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
    """Load weights and optimiser state in place and return the number of steps behind them."""
    state = load_file(checkpoint / STATE)
    moments = {}
    for i, (name, parameter) in enumerate(weights.items()):
        parameter.data.copy_(state[f"weight/{name}"])
        keys = [key for key in state if key.startswith(f"optimizer/{name}/")]
        moments[i] = {key.rsplit("/", 1)[1]: state[key] for key in keys}
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    if LOSS_SCALE in state:
        optimizer.param_groups[0][LOSS_SCALE] = float(state[LOSS_SCALE])
    return json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["step"]


def _state(weights: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    state = {}
    if LOSS_SCALE in optimizer.param_groups[0]:
        state[LOSS_SCALE] = torch.tensor(optimizer.param_groups[0][LOSS_SCALE])
    for name, parameter in weights.items():
        state[f"weight/{name}"] = parameter.detach().cpu().contiguous()
        for key, value in optimizer.state[parameter].items():
            state[f"optimizer/{name}/{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
    return state


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

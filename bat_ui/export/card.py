"""The model card: what the adapter is, how to call it, what it was trained on, with a gallery of its samples.

In: a project and its backbone.  Out: README.md in the form that the Hugging Face hub shows, and images/.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from huggingface_hub import ModelCardData

from bat_ui.adapters import samples_of_adapter, used_step
from bat_ui.backbones.hub import REPOSITORIES, is_repository
from bat_ui.backbones.stable_diffusion import Backbone
from bat_ui.choice import ADDED, OWN, SEARCH, Candidate, Choice
from bat_ui.files import read_json
from bat_ui.project import Project
from bat_ui.subject import Subject
from bat_ui.training.lora import WEIGHTS

LICENCES = {"sd15": "creativeml-openrail-m", "sd21": "openrail++", "sdxl": "openrail++"}  # of the official models
TAGS = ["text-to-image", "lora", "diffusers", "template:sd-lora"]
MOST = 12  # samples in the gallery


def write_card(project: Project, backbone: Backbone, out: Path) -> Path:
    """Write README.md beside the exported file and copy the samples that it shows."""
    subject = Subject.load(project.subject)
    choice = Choice.load(project.choice_of_adapter)
    report = read_json(project.report) or {}
    trigger = f"{subject.identifier} {subject.class_noun}"
    widgets = _gallery(project, out)
    own = backbone.name if is_repository(backbone.name) and not Path(backbone.name).exists() else None
    base = REPOSITORIES.get(backbone.name, own)
    about = ModelCardData(
        base_model=base,
        library_name="diffusers",
        license=LICENCES.get(backbone.family) if backbone.name in REPOSITORIES else None,
        tags=TAGS + [{"sdxl": "stable-diffusion-xl"}.get(backbone.family, "stable-diffusion")],
        instance_prompt=backbone.caption_template.format(identifier=subject.identifier, class_noun=subject.class_noun),
        widget=widgets or None,
    )
    file = next(path.name for path in sorted(out.glob("*.safetensors")))
    text = f"""---
{about.to_yaml()}
---

# {trigger}

A LoRA for {base or Path(backbone.name).name} that knows one {subject.class_noun}, 
learned from {len(subject.images)} pictures.

<Gallery />

## Trigger words

Use `{trigger}` in the prompt.

## Use

{_use(backbone, base, file, trigger)}

## Training

{_training(choice, report, used_step(project))}
"""
    (out / "README.md").write_text(text, encoding="utf-8")
    return out / "README.md"


def _gallery(project: Project, out: Path) -> list[dict]:
    drawn = samples_of_adapter(project)[:MOST]
    if drawn:
        (out / "images").mkdir()
    for sample in drawn:
        shutil.copyfile(sample["file"], out / "images" / sample["file"].name)
    return [{"text": sample["prompt"], "output": {"url": f"images/{sample['file'].name}"}} for sample in drawn]


def _use(backbone: Backbone, base: str | None, file: str, trigger: str) -> str:
    if file != WEIGHTS:
        stem = file.removesuffix(".safetensors")
        return (
            f"Put `{file}` into `models/Lora` of A1111 or Forge and write `<lora:{stem}:1> {trigger}` in the prompt,\n"
            "or into `models/loras` of ComfyUI and load it with the node Load LoRA."
        )
    kind = type(backbone.pipeline).__name__
    return f"""```python
from diffusers import {kind}

pipeline = {kind}.from_pretrained("{base or "PATH/OF/THE/BACKBONE"}")
pipeline.load_lora_weights("PATH/OF/THIS/FOLDER")
image = pipeline("{trigger}").images[0]
```"""


def _store(store: dict) -> str:
    kind = "the backbone's own training data"
    if store.get("place"):
        kind = "a store that the trainer gave as the backbone's training data"
    if store.get("proxy"):
        kind = "a set that stands in for the backbone's own training data, which is not public"
    said = [store.get("title"), f"licence: {store['licence']}" if store.get("licence") else None]
    return f"{kind} ({'; '.join(text for text in said if text)})" if any(said) else kind


def _pictures(candidates: list[Candidate]) -> str:
    return f"{len(candidates)} picture{'s' * (len(candidates) != 1)}"


def _checked(candidates: list[Candidate]) -> str:
    unchecked = sum(c.unchecked for c in candidates)
    return f"; {unchecked} of them not checked for agreement with the subject" if unchecked else ""


def _training(choice: Choice, report: dict, step: int | None) -> str:
    trained = report.get("training", {})
    settings, strength = dict(trained.get("settings", {})), trained.get("lambda")
    settings["strength"] = None if strength is None else round(strength, 4)
    if step and step != settings.get("steps", step):
        settings["steps"] = f"{step}, a checkpoint of {settings['steps']}"
    by_rule, by_hand, own = ([c for c in choice.chosen if c.origin == origin] for origin in (SEARCH, ADDED, OWN))
    lines = []
    if by_rule:
        lines.append(f"- {_pictures(by_rule)} of {_store(choice.store)} beside the subject's, by {choice.rule}")
    if by_hand:
        lines.append(f"- {_pictures(by_hand)} of the same data, added by hand{_checked(by_hand)}")
    if own:
        lines.append(f"- {_pictures(own)} of the trainer's own, not the backbone's training data{_checked(own)}")
    if not choice.chosen:
        lines.append("- the subject's pictures alone")
    names = {
        "steps": "steps",
        "rank": "rank (alpha is the same)",
        "learning_rate": "learning rate",
        "lr_scheduler": "learning rate schedule",
        "batch_size": "batch size",
    }
    names |= {"strength": "weight of the backbone pictures in the last step", "seed": "seed"}
    lines += [f"- {text}: {settings[name]}" for name, text in names.items() if settings.get(name) is not None]
    return "\n".join(lines)

"""What a user can set, one frozen dataclass for each stage that has settings; everything else is derived.

The page binds its widgets to these fields by name and the command line its options, so a field's name, default and
comment are the only place where a setting is described.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

from bat_ui.errors import UserError

Settings = TypeVar("Settings")
RULES = ("albat", "nearest", "random", "none")
SCHEDULES = ("constant", "linear", "cosine")  # how the learning rate goes after the warm-up: it stays, or falls to zero
PREDICTIONS = ("epsilon", "v_prediction")  # what a UNet may predict
ADAPTERS = ("diffusers", "kohya")  # forms in which an adapter is exported
DATASETS = ("kohya-dataset", "custom-diffusion", "imagefolder")  # forms of a selection as a training set
EXPORTS = ADAPTERS + DATASETS
MOST_PROMPTS = 3  # at each checkpoint, where the subject's captions are the prompts


@dataclass(frozen=True)
class BackboneSettings:
    """Which model is adapted; `clip` and `prediction` None where they are its own."""

    backbone: str = "sticker"
    clip: str | None = None
    prediction: str | None = None  # one of PREDICTIONS

    def from_anywhere(self: Settings) -> Settings:
        """The same model, its paths as they are understood in any folder."""
        return replace(self, backbone=_lasting(self.backbone), clip=_lasting(self.clip))


def _lasting(name: str | None) -> str | None:
    return str(Path(name).resolve()) if name and name != "sticker" and Path(name).exists() else name


@dataclass(frozen=True)
class SelectionSettings:
    """How backbone pictures are chosen."""

    rule: str = "albat"  # one of RULES
    num_backbone: int | None = None  # pictures to take; None: as many as the predicted-error curve suggests
    shortlist: int = 200  # candidates that are sketched
    surrogate_steps: int | None = None  # on the subject alone; None: until it learns by heart, at most a quarter of the run
    draws: int = 4  # timesteps and noises for each sketch
    sketch_size: int = 1024  # numbers that a LoRA gradient is projected to
    seed: int = 0
    store: str = ""  # an ingested store to choose from, by name or place; empty: the backbone's own


@dataclass(frozen=True)
class TrainingSettings:
    """How the adapter is trained, surrogate and final run alike."""

    steps: int = 400
    rank: int = 32
    learning_rate: float = 1e-3
    lr_scheduler: str = "constant"  # one of SCHEDULES
    lr_warmup_steps: int = 0  # in which the learning rate rises from zero
    batch_size: int = 4
    strength: float = 1.0  # of the backbone pictures in the last step, times what the selection suggests
    subject_steps: int | None = None  # before backbone pictures come in; None: as many as the selection found out
    checkpoint_every: int = 100  # steps
    seed: int = 0
    text_encoder: bool = False  # the text encoder learns, too

    @property
    def steps_alone(self) -> float:
        """Steps on the subject alone: a fifth of the run where nobody said or found out, and half of it at most."""
        return min(self.steps / 5 if self.subject_steps is None else self.subject_steps, self.steps / 2)

    def subject_alone(self, steps: int) -> TrainingSettings:
        """A run of `steps` that begins as this one does, before backbone pictures come in; no rate falls."""
        return replace(self, steps=steps, lr_scheduler="constant")


@dataclass(frozen=True)
class ValidationSettings:
    """What is drawn and measured at each checkpoint of a training."""

    validation_prompts: str = ""  # one a line; empty: the first captions of the subject
    validation_images: int = 2  # pictures of each prompt, at seeds that are the same everywhere; 0: none
    validation_steps: int = 10  # denoising steps of each, few since only runs and checkpoints are compared

    def prompts(self, captions: Sequence[str]) -> list[str]:
        """What is drawn: the prompts given, one a line, else the subject's first captions, each once."""
        given = [line.strip() for line in re.split(r"[\n|]", self.validation_prompts) if line.strip()]
        return list(dict.fromkeys(given or captions[:MOST_PROMPTS]))


@dataclass(frozen=True)
class GenerationSettings:
    """How samples are drawn."""

    num_images: int = 8  # shared out among the prompts
    negative_prompt: str = ""  # what no sample is to show
    guidance: float = 3.0
    steps: int = 25
    adapter_scale: float = 1.0
    seed: int = 0

    def prompts_of_samples(self, prompts: Sequence[str]) -> list[str]:
        """The prompt of each sample, for all prompts alike.  Raises UserError for more prompts than samples."""
        if len(prompts) > self.num_images:
            raise UserError(f"{len(prompts)} prompts need at least as many samples: raise the number of samples.")
        return [prompts[i * len(prompts) // self.num_images] for i in range(self.num_images)] if prompts else []


# What suits Stable Diffusion better than the defaults above, which are the sticker backbone's.
FOR_PHOTOS = {
    TrainingSettings: {
        "steps": 800,
        "rank": 8,
        "learning_rate": 1e-4,
        "checkpoint_every": 200,
    },
    ValidationSettings: {"validation_steps": 20},
    GenerationSettings: {"guidance": 7.0, "num_images": 4},
}


LEAST = {"lr_warmup_steps": 0, "strength": 0, "subject_steps": 0, "validation_images": 0, "seed": 0, "draws": 2}  # others: 1
MOST_SEED = 2**32 - 1  # as in other tools
ANY = ("guidance", "adapter_scale")  # finite numbers


def checked(settings: Settings) -> Settings:
    """The settings.  Raises UserError for a number that is too small, too large or none."""
    for field in fields(settings):
        value, name = getattr(settings, field.name), field.name.replace("_", " ")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"The {name} is {value}: give a number.")
        if field.name == "learning_rate" and value <= 0:
            raise UserError(f"The {name} is {value:g}: give a number above 0.")
        least = None if field.name in (*ANY, "learning_rate") else LEAST.get(field.name, 1)
        if least is not None and isinstance(value, (int, float)) and not isinstance(value, bool) and value < least:
            raise UserError(f"The {name} is {value:g}: give {least} or more.")
        if field.name == "seed" and value > MOST_SEED:
            raise UserError(f"The {name} is {value}: give {MOST_SEED} or less.")
    return settings


def read_settings(kind: type[Settings], saved: dict, photos: bool = False) -> Settings:
    """The settings of that kind that were saved, without those that there are no more; else as `defaults` has them."""
    names = {field.name for field in fields(kind)}
    return defaults(kind, photos, **{name: value for name, value in saved.items() if name in names})


def defaults(kind: type[Settings], photos: bool, **given) -> Settings:
    """The settings of that kind that suit a backbone for photographs or for stickers, but for those given."""
    return kind(**(FOR_PHOTOS.get(kind, {}) if photos else {}) | given)

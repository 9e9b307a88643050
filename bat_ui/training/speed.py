"""What a training steps with, and what makes it fast or small on the hardware at hand: checkpointing, compilation.

In: a backbone with its preset, the number of steps to come.  Out: an optimiser and its learning rates; a block
in which the UNet is ready to train.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from diffusers.optimization import get_scheduler

from bat_ui.backbones.stable_diffusion import Backbone
from bat_ui.presets import PLENTY, Preset
from bat_ui.settings import TrainingSettings

logger = logging.getLogger(__name__)

COMPILE_STEPS = 1500  # from here on the time to compile is repaid on a GPU


def new_optimizer(
    weights: dict[str, torch.nn.Parameter], settings: TrainingSettings, preset: Preset = PLENTY
) -> torch.optim.Optimizer:
    """Fused AdamW over the adapter's weights; on a GPU of 8 bits where the preset asks and bitsandbytes is there."""
    options = {"lr": settings.learning_rate, "betas": (0.9, 0.99), "weight_decay": 0.01}
    if preset.eight_bit and next(iter(weights.values())).is_cuda:
        if importlib.util.find_spec("bitsandbytes"):
            from bitsandbytes.optim import AdamW8bit

            return AdamW8bit(weights.values(), **options)
        logger.info("The optimiser keeps 32-bit states: `pip install bitsandbytes` would save some memory.")
    return torch.optim.AdamW(weights.values(), **options, fused=True)


def learning_rates(settings: TrainingSettings) -> Callable[[int], float]:
    """The learning rate of each step, counted from 0: diffusers' schedules, by the step's number alone."""
    name = "constant_with_warmup" if settings.lr_scheduler == "constant" else settings.lr_scheduler
    nothing = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = get_scheduler(name, nothing, num_warmup_steps=settings.lr_warmup_steps, num_training_steps=settings.steps)
    return lambda step: settings.learning_rate * schedule.lr_lambdas[0](step)


@contextmanager
def checkpointing(backbone: Backbone) -> Iterator[None]:
    """Gradient checkpointing, where the preset asks for it."""
    if not backbone.preset.checkpointing:
        yield
        return
    backbone.unet.enable_gradient_checkpointing()
    try:
        yield
    finally:
        backbone.unet.disable_gradient_checkpointing()


@contextmanager
def ready_to_train(backbone: Backbone, steps: int) -> Iterator[None]:
    """Gradient checkpointing by the preset, and a compiled UNet where `steps` repay it; undone at the end."""
    unet = backbone.unet
    compiled = repays_compiling(backbone.device, steps) and hasattr(unet, "compile_repeated_blocks")
    if compiled:
        unet.compile_repeated_blocks()
    try:
        with checkpointing(backbone):
            yield
    finally:
        if compiled:
            for module in unet.modules():
                module._compiled_call_impl = None


def repays_compiling(device: torch.device, steps: int) -> bool:
    """Whether a run of that length, resumed or not, wins more by a compiled UNet than compiling takes; never on a CPU."""
    return device.type == "cuda" and steps >= COMPILE_STEPS

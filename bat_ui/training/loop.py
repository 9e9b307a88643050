"""The training loop, for the surrogate (subject alone) and the final run (subject and backbone pictures) alike.

In: a backbone that carries an adapter, encoded pictures, settings.  Out: a stream of steps; the adapter is changed.
A step's rows, timesteps and noise depend on the seed and its number only, so a run may stop after any step and go on.
Knows nothing of files or pages.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bat_ui.backbones.stable_diffusion import Backbone
from bat_ui.seeds import step_generator
from bat_ui.settings import TrainingSettings


@dataclass(frozen=True, eq=False)
class Encoded:
    """Pictures ready for training: latents (n, c, h, w) and their captions' states (n, tokens, width)."""

    latents: Tensor
    states: Tensor
    weights: Tensor | None = None  # (n,) how often each is drawn, relative to the others; None: equally

    def __len__(self) -> int:
        return len(self.latents)


@dataclass(frozen=True)
class Step:
    """Losses of one finished step; `backbone_loss` is None where no backbone picture took part."""

    number: int
    subject_loss: float
    backbone_loss: float | None


def new_optimizer(weights: dict[str, torch.nn.Parameter], settings: TrainingSettings) -> torch.optim.AdamW:
    return torch.optim.AdamW(weights.values(), lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)


def train(
    backbone: Backbone,
    weights: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    subject: Encoded,
    chosen: Encoded | None,
    settings: TrainingSettings,
    start: int = 0,
) -> Iterator[Step]:
    """Minimise mean subject loss + strength * mean backbone loss (theory.md: the BAT objective), yielding each step.

    `backbone_share` of every batch is drawn from `chosen`; without it the whole batch is the subject's.
    `start` is the number of steps that `weights` and `optimizer` have behind them.
    """
    from_backbone = round(settings.batch_size * settings.backbone_share) if chosen is not None and len(chosen) else 0
    from_subject = max(settings.batch_size - from_backbone, 1)
    for step in range(start, settings.steps):
        rng = step_generator(settings.seed, step)
        rows = torch.randint(len(subject), (from_subject,), generator=rng)
        latents, states = subject.latents[rows], subject.states[rows]
        if from_backbone:
            odds = torch.ones(len(chosen)) if chosen.weights is None else chosen.weights
            rows = torch.multinomial(odds, from_backbone, replacement=from_backbone > len(chosen), generator=rng)
            latents, states = torch.cat([latents, chosen.latents[rows]]), torch.cat([states, chosen.states[rows]])
        timesteps, noise = backbone.draw(len(latents), rng)
        prediction, target = backbone.predict(latents, states, timesteps, noise)
        losses = (prediction.float() - target.float()).square().mean((1, 2, 3))
        subject_loss = losses[:from_subject].mean()
        loss, backbone_loss = subject_loss, None
        if from_backbone:
            backbone_loss = losses[from_subject:].mean()
            loss = loss + settings.strength * backbone_loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.step()
        yield Step(step + 1, subject_loss.item(), None if backbone_loss is None else backbone_loss.item())

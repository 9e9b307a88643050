"""The training loop, for the surrogate (subject alone) and the final run (subject and backbone pictures) alike.

In: a backbone that carries an adapter, encoded pictures, settings.  Out: a stream of steps; the adapter is changed.
A step's rows, timesteps and noise depend on the seed and its number only, so a run may stop after any step and go on.
Knows nothing of files or pages.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bat_ui.backbones.encoded import Encoded
from bat_ui.backbones.stable_diffusion import Backbone
from bat_ui.errors import UserError
from bat_ui.seeds import step_generator
from bat_ui.settings import TrainingSettings
from bat_ui.training.processes import Processes, processes
from bat_ui.training.speed import learning_rates, new_optimizer, ready_to_train

__all__ = ["Encoded", "Step", "new_optimizer", "train"]
LOSS_SCALE = "loss_scale"
SKIPPED = 20  # steps in a row that half precision may skip since a number overflowed


@dataclass(frozen=True)
class Step:
    """Losses of one finished step; `backbone_loss` is None where no backbone picture took part."""

    number: int
    subject_loss: float
    backbone_loss: float | None


def train(
    backbone: Backbone,
    weights: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    subject: Encoded,
    chosen: Encoded | None,
    settings: TrainingSettings,
    start: int = 0,
    together: Processes | None = None,
) -> Iterator[Step]:
    """Minimise mean subject loss + lambda(t) * mean backbone loss (theory.md: the BAT objective), yielding each step t.

    lambda(t) is zero for the steps alone and then rises evenly to `strength` (theory.md, When); the sum is divided by
    1 + lambda(t), so that its scale stays.  Each kind has as much of a batch as it counts; without `chosen` the whole batch
    is the subject's.
    `start` is the number of steps that `weights` and `optimizer` have behind them.
    Pictures of one batch that have one shape go through the UNet together, as many as the backbone's preset allows;
    several processes share each batch out and have equal weights after it.  Raises UserError when the losses are no
    finite numbers any more.
    """
    together = together or processes()
    learns_text = any(name.startswith("text_encoder") for name in weights)
    # The scale of half precision's losses goes with the optimizer, so that a resumed run has it, too; it only ever falls.
    scale, half = optimizer.param_groups[0].get(LOSS_SCALE, 2.0**16), backbone.dtype == torch.float16
    scaler = torch.amp.GradScaler(backbone.device.type, init_scale=scale, growth_interval=2**30, enabled=half)
    scaler.scale(torch.zeros((), device=backbone.device))  # makes the scale, for a process without a row in its first step
    learning_rate, skipped = learning_rates(settings), 0
    with ready_to_train(backbone, settings.steps):
        for step in range(start, settings.steps):
            rng = step_generator(settings.seed, step)
            strength = strength_at(step + 1, settings) if chosen is not None and len(chosen) else 0.0
            from_backbone = backbone_part(strength, settings.batch_size)
            from_subject = max(settings.batch_size - from_backbone, 1)
            rows, factors = [_draw_subject(subject, from_subject, rng)], torch.full((from_subject,), 1.0 / from_subject)
            if from_backbone:
                rows.append(_draw_chosen(chosen, from_backbone, rng))
                factors = torch.cat([factors, torch.full((from_backbone,), strength / from_backbone)]) / (1 + strength)
            total = len(factors)
            batches = _of_one_shape(rows)
            timesteps = backbone.draw_timesteps(total, rng)
            noises = [backbone.draw_noise(batch.latents.shape, rng) for batch in batches]
            losses = torch.zeros(total, device=backbone.device)
            optimizer.zero_grad(set_to_none=True)
            first = 0
            for batch, noise in zip(batches, noises):
                for part in together.share(len(batch), backbone.preset.rows):
                    at = first + part
                    images = backbone.with_text(batch[part]) if learns_text else batch[part]
                    prediction, target = backbone.predict(images, timesteps[at], noise[part])
                    found = (prediction.float() - target.float()).square().mean((1, 2, 3))
                    scaler.scale((found * factors[at].to(found.device)).sum()).backward()
                    losses[at] = found.detach()
                first += len(batch)
            together.add_up(weights.values(), losses)
            skipped = 0 if bool(losses.isfinite().all()) else skipped + 1
            if skipped > (SKIPPED if half else 0):
                raise UserError("The loss is not a finite number any more: train anew with a smaller learning rate.")
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step)
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            if half:
                optimizer.param_groups[0][LOSS_SCALE] = scaler.get_scale()
            yield Step(
                step + 1,
                losses[:from_subject].mean().item(),
                losses[from_subject:].mean().item() if total > from_subject else None,
            )


def strength_at(step: int, settings: TrainingSettings) -> float:
    """What the mean loss of the backbone pictures counts at a step, from 1 on, the subject's being 1 (theory.md, When)."""
    return settings.strength * max(step - settings.steps_alone, 0.0) / (settings.steps - settings.steps_alone)


def backbone_part(strength: float, batch_size: int) -> int:
    """Backbone pictures in a batch: their part strength / (1 + strength) of it, in which all pictures count the same.

    Rounded, so the losses keep their weights; one at least of each kind that counts, so that a batch of one is one of two.
    """
    if not strength:
        return 0
    return min(max(round(batch_size * strength / (1 + strength)), 1), max(batch_size - 1, 1))


def backbone_part_of_run(settings: TrainingSettings) -> float:
    """What part of all pictures that a run sees are backbone pictures."""
    strengths = [strength_at(step, settings) for step in range(1, settings.steps + 1)]
    return statistics.fmean(strength / (1 + strength) for strength in strengths)


def _draw_subject(subject: Encoded, count: int, rng: torch.Generator) -> Encoded:
    """`count` pictures of one shape, each of all pictures equally often."""
    bucket = _draw_bucket(subject, rng)
    return subject[bucket[torch.randint(len(bucket), (count,), generator=rng)]]


def _draw_chosen(chosen: Encoded, count: int, rng: torch.Generator) -> Encoded:
    """`count` pictures of one shape by their weights, none twice if there are enough of them."""
    bucket = _draw_bucket(chosen, rng)
    odds = torch.ones(len(chosen)) if chosen.weights is None else chosen.weights
    rows = torch.multinomial(odds[bucket], count, replacement=count > len(bucket), generator=rng)
    return chosen[bucket[rows]]


def _draw_bucket(images: Encoded, rng: torch.Generator) -> Tensor:
    """The rows of one shape; a shape is drawn as often as its pictures are together."""
    if len(images.buckets) == 1:
        return images.buckets[0]
    odds = torch.ones(len(images)) if images.weights is None else images.weights
    masses = torch.stack([odds[rows].sum() for rows in images.buckets])
    return images.buckets[int(torch.multinomial(masses, 1, generator=rng))]


def _of_one_shape(parts: list[Encoded]) -> list[Encoded]:
    """The parts put together where their pictures have one shape."""
    if len({part.latents.shape[1:] for part in parts}) == 1:
        return [Encoded.cat(parts)]
    return parts

"""Random numbers that depend on a seed and a step, never on what ran before: so any run can stop and go on."""

from __future__ import annotations

import torch


def step_generator(seed: int, step: int) -> torch.Generator:
    """The CPU generator of one step; equal arguments give equal numbers on every device that they are moved to."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


def stratified_timesteps(count: int, total: int, rng: torch.Generator) -> torch.Tensor:
    """`count` timesteps in random order, one from each of `count` equal parts of 0..total-1."""
    parts = (torch.randperm(count, generator=rng) + torch.rand(count, generator=rng)) / count
    return (parts * total).long().clamp(max=total - 1)

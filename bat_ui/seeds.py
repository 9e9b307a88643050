"""Random numbers that depend on a seed and a step, never on what ran before: so any run can stop and go on."""

from __future__ import annotations

import torch


def step_generator(seed: int, step: int) -> torch.Generator:
    """The CPU generator of one step; equal arguments give equal numbers on every device that they are moved to."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)

"""Several processes, one GPU each: how a launcher, torchrun or `accelerate launch`, makes them share a training run.

In: how many there are to be, or the environment that the launcher sets.  Out: `Processes`, which shares a batch out and
adds the gradients up.  The adapter is small, so its gradients are summed in one message and nothing is wrapped; one process
is the plain case.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch
from torch import Tensor

from bat_ui.errors import UserError
from bat_ui.hardware import gpus
from bat_ui.processes import LAUNCHER

PATIENCE = timedelta(hours=12)  # of the others, while the main one draws the samples of a checkpoint


@dataclass(frozen=True)
class Processes:
    """`count` processes of which this one is number `rank`; the first one, the main one, writes the files."""

    count: int = 1
    rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, total: int, at_once: int | None) -> Iterator[Tensor]:
        """This process's rows of a batch of `total`, in parts of `at_once` (None: all in one)."""
        own = torch.arange(total)[self.rank :: self.count]
        for start in range(0, len(own), at_once or len(own) or 1):
            yield own[start : start + (at_once or len(own))]

    def add_up(self, weights: Iterable[torch.nn.Parameter], losses: Tensor) -> None:
        """Make every process's gradients, and its losses, the sums over all processes, in place."""
        if self.count == 1:
            return
        weights = list(weights)
        for weight in weights:
            if weight.grad is None:  # this process had no row of the batch
                weight.grad = torch.zeros_like(weight)
        gradients = [weight.grad for weight in weights]
        message = self.sum(torch.cat([*(g.flatten() for g in gradients), losses.flatten()]))
        for part, target in zip(message.split([*(g.numel() for g in gradients), losses.numel()]), [*gradients, losses]):
            target.copy_(part.view_as(target))

    def sum(self, values: Tensor) -> Tensor:
        """The sum of all processes' values."""
        from accelerate.utils import reduce

        return values if self.count == 1 else reduce(values, "sum")

    def agree(self, wish: bool, device: torch.device) -> bool:
        """True on all processes if it is on any, so that all of them stop after the same step."""
        return wish if self.count == 1 else bool(self.sum(torch.tensor([float(wish)], device=device)) > 0)

    def wait(self) -> None:
        """Return when all processes are here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()


def launched() -> bool:
    """Whether a launcher started this process."""
    return "WORLD_SIZE" in os.environ or LAUNCHER in os.environ


def launch(count: int, words: Sequence[str]) -> NoReturn:
    """Begin `python -m bat_ui WORDS` anew as `count` processes, in the place of this one.

    Raises UserError if there are GPUs, but not so many.
    """
    there = gpus()
    if there and count > there:
        raise UserError(f"This machine has {there} GPU{'s' * (there > 1)}: ask for no more processes.")
    os.environ[LAUNCHER] = str(os.getpid())
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    os.execv(sys.executable, [sys.executable, *launcher, "-m", "bat_ui", *words])


@contextmanager
def leaving() -> Iterator[None]:
    """At the end of the block the processes part from one another in order."""
    yield
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def processes() -> Processes:
    """The processes that the launcher started; just this one without a launcher."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return Processes()
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    return Processes(state.num_processes, state.process_index)

"""A pre-training stage that can be killed at any moment and goes on from its last checkpoint.

In: a model, its optimisers and a budget in minutes.  Out: step numbers, with the learning rate set for each, and a
folder with `state.pt` (latest), `undecayed.pt` (before the final decay, so that a larger budget can go on from there)
and `log.jsonl`.  Knows nothing of losses or data: a step's randomness should come from `seeds.step_generator`.
"""

from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from bat_ui.files import replacing

logger = logging.getLogger(__name__)

WARMUP_STEPS = 200
DECAY_FRACTION = 0.25  # of the budget, at its end
SAVE_SECONDS = 120.0
LOG_STEPS = 50
LONGEST_STEP = 60.0  # seconds; what took longer was a machine asleep or a process suspended


def save_start(folder: Path, weights: dict[str, torch.Tensor], record: dict, seconds: float) -> None:
    """Let a stage in the empty `folder` go on from `weights` after `seconds`; `record` is a line of its log."""
    state = {"model": weights, "ema": weights, "optimizers": [], "seconds": seconds, "budget": float("inf")}
    torch.save(state | {name: record[name] for name in ("step", "samples")}, folder / "state.pt")
    (folder / "log.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")


class Stage:
    """Budgeted, resumable loop around one model; `ema` is the averaged model when `ema_decay` is given."""

    def __init__(
        self,
        folder: Path,
        model: torch.nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        minutes: float,
        ema_decay: float | None = None,
    ):
        self.folder, self.model, self.optimizers, self.budget = folder, model, tuple(optimizers), minutes * 60
        self.ema_decay = ema_decay
        self.ema = copy.deepcopy(model).requires_grad_(False) if ema_decay else None
        self.step, self.seconds, self.samples = 0, 0.0, 0
        self.base_lrs = [group["lr"] for group in self._groups()]
        folder.mkdir(parents=True, exist_ok=True)
        self._resume()

    @property
    def decaying(self) -> bool:
        return self.seconds >= (1 - DECAY_FRACTION) * self.budget

    def steps(self) -> Iterator[int]:
        """Yield step numbers until the budget is spent; the caller trains on each and calls `log`."""
        last_save = last_tick = time.monotonic()
        while self.seconds < self.budget:
            self._set_learning_rate()
            yield self.step
            self.step += 1
            if self.ema is not None:
                self._update_ema()
            now = time.monotonic()
            was_decaying = self.decaying
            self.seconds += min(now - last_tick, LONGEST_STEP)
            last_tick = now
            if self.decaying and not was_decaying:
                self._save("undecayed.pt")
            if now - last_save > SAVE_SECONDS or self.seconds >= self.budget:
                self._save("state.pt")
                last_save = last_tick = time.monotonic()
        if self._logged:
            self._write_log()

    def log(self, samples: int, **values: torch.Tensor) -> None:
        """Count `samples` and, every LOG_STEPS steps, write the mean of each scalar since the last line."""
        self.samples += samples
        for key, value in values.items():
            self._sums[key] = self._sums.get(key, 0.0) + value.detach()
        self._logged += 1
        if self._logged == LOG_STEPS:
            self._write_log()

    def trained_model(self) -> torch.nn.Module:
        """The model to export: the averaged one where there is one."""
        return self.model if self.ema is None else self.ema

    def _write_log(self) -> None:
        seconds = max(self.seconds - self._seconds_before, 1e-9)
        row = {"step": self.step, "minutes": round(self.seconds / 60, 2), "samples": self.samples}
        row["per_second"] = round((self.samples - self._samples_before) / seconds, 1)
        row |= {key: round(float(value) / self._logged, 5) for key, value in self._sums.items()}
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as f:
            f.write(json.dumps(row) + "\n")
        logger.info("%s %s", self.folder.name, row)
        self._reset_log()

    def _set_learning_rate(self) -> None:
        left = (self.budget - self.seconds) / (DECAY_FRACTION * self.budget)
        factor = min(1.0, (self.step + 1) / WARMUP_STEPS, max(left, 0.0))
        for group, base in zip(self._groups(), self.base_lrs):
            group["lr"] = base * factor

    def _groups(self) -> list[dict]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @torch.no_grad()
    def _update_ema(self) -> None:
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        averages, values = list(self.ema.parameters()), [p.detach() for p in self.model.parameters()]
        torch._foreach_lerp_(averages, values, 1 - decay)
        for average, value in zip(self.ema.buffers(), self.model.buffers()):
            average.copy_(value)

    def _save(self, name: str) -> None:
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
            "budget": self.budget,
            "samples": self.samples,
        }
        with replacing(self.folder / name) as draft:
            torch.save(state, draft)

    def _resume(self) -> None:
        self._reset_log()
        for name in ("state.pt", "undecayed.pt"):
            path = self.folder / name
            if not path.exists():
                continue
            state = torch.load(path, map_location="cpu", weights_only=True)
            decayed = state["seconds"] > (1 - DECAY_FRACTION) * state["budget"]
            if name == "state.pt" and decayed and self.budget > state["budget"]:
                continue  # decayed for a smaller budget: go on from before that decay
            self.model.load_state_dict(state["model"])
            if self.ema is not None:
                self.ema.load_state_dict(state["ema"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"]):
                optimizer.load_state_dict(saved)
            self.step, self.seconds, self.samples = state["step"], state["seconds"], state["samples"]
            self._reset_log()
            logger.info("%s resumes at step %d, minute %.1f", self.folder.name, self.step, self.seconds / 60)
            return

    def _reset_log(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._logged, self._samples_before, self._seconds_before = 0, self.samples, self.seconds

"""A pre-training stage: killed and started again it ends where it would have ended; larger budgets go on undecayed."""

import itertools

import pytest
import torch

from bat_ui.backbones.sticker import stage as stage_module
from bat_ui.backbones.sticker.stage import Stage
from bat_ui.seeds import step_generator


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Every look at the clock is 30 seconds after the last one."""
    ticks = itertools.count(0, 30)
    monkeypatch.setattr(stage_module.time, "monotonic", lambda: float(next(ticks)))


def run(folder, minutes, kill_after=None):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    stage = Stage(folder, model, [optimizer], minutes, ema_decay=0.9)
    for done, step in enumerate(stage.steps()):
        if done == kill_after:
            return stage
        x = torch.randn(8, 3, generator=step_generator(0, step))
        optimizer.zero_grad()
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        stage.log(8, loss=loss)
    return stage


def test_a_killed_stage_goes_on_from_its_last_checkpoint_to_the_same_weights(tmp_path):
    whole = run(tmp_path / "whole", minutes=20)
    run(tmp_path / "killed", minutes=20, kill_after=11)
    resumed = run(tmp_path / "killed", minutes=20)
    assert 0 < resumed.step == whole.step
    for a, b in zip(whole.trained_model().state_dict().values(), resumed.trained_model().state_dict().values()):
        torch.testing.assert_close(a, b)


def test_a_larger_budget_goes_on_from_before_the_decay(tmp_path):
    first = run(tmp_path / "s", minutes=20)
    assert first.optimizers[0].param_groups[0]["lr"] < 0.02
    undecayed = torch.load(tmp_path / "s" / "undecayed.pt", weights_only=True)
    longer = Stage(tmp_path / "s", torch.nn.Linear(3, 1), [torch.optim.AdamW(first.model.parameters(), lr=0.1)], 60, 0.9)
    assert longer.step == undecayed["step"] < first.step


def test_a_finished_stage_does_nothing_more(tmp_path):
    first = run(tmp_path / "s", minutes=5)
    assert run(tmp_path / "s", minutes=5).step == first.step

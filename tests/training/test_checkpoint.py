"""Checkpoints: exact, and complete or passed over."""

import pytest
import torch

from bat_ui.backbones import load_backbone
from bat_ui.backbones.encoded import Encoded
from bat_ui.settings import TrainingSettings
from bat_ui.training.checkpoint import is_complete, latest_checkpoint, restore_checkpoint, save_checkpoint
from bat_ui.training.loop import new_optimizer, train
from bat_ui.training.lora import lora


@pytest.fixture()
def checkpoints(tiny_backbone_folder, tmp_path):
    """A folder with checkpoints of steps 1 and 2, and the weights after step 3."""
    backbone = load_backbone(str(tiny_backbone_folder))
    rng = torch.Generator().manual_seed(0)
    subject = Encoded(torch.randn(3, 4, 16, 16, generator=rng), torch.randn(3, 24, 16, generator=rng))
    settings = TrainingSettings(steps=3, rank=2, batch_size=2)
    with lora(backbone, 2, 0) as weights:
        optimizer = new_optimizer(weights, settings)
        for step in train(backbone, weights, optimizer, subject, None, settings):
            if step.number < 3:
                save_checkpoint(tmp_path, step.number, backbone, weights, optimizer)
        final = {name: p.detach().clone() for name, p in weights.items()}
    return tmp_path, backbone, subject, settings, final


def test_a_restored_run_ends_bit_equal(checkpoints):
    folder, backbone, subject, settings, final = checkpoints
    with lora(backbone, 2, seed=99) as weights:
        optimizer = new_optimizer(weights, settings)
        start = restore_checkpoint(latest_checkpoint(folder), weights, optimizer)
        assert start == 2
        for _ in train(backbone, weights, optimizer, subject, None, settings, start):
            pass
        assert all(torch.equal(final[name], p) for name, p in weights.items())


@pytest.mark.parametrize("name", ["manifest.json", "state.safetensors", "pytorch_lora_weights.safetensors"])
@pytest.mark.parametrize("harm", ["missing", "cut", "changed"])
def test_a_broken_checkpoint_is_passed_over(checkpoints, name, harm):
    folder = checkpoints[0]
    file = folder / "step-000002" / name
    content = file.read_bytes()
    if harm == "missing":
        file.unlink()
    elif harm == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert not is_complete(folder / "step-000002")
    assert latest_checkpoint(folder).name == "step-000001"


def test_an_unfinished_draft_is_never_taken(checkpoints):
    folder = checkpoints[0]
    (folder / "step-000002").rename(folder / ".step-000002.draft")
    assert latest_checkpoint(folder).name == "step-000001"

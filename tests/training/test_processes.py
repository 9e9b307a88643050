"""Several processes: shares of a batch, and a run under `accelerate launch` that ends like one process's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bat_ui.cli import main
from bat_ui.project import Project
from bat_ui.training.processes import Processes

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("total, count, at_once", [(8, 1, None), (8, 1, 3), (7, 3, 2), (1, 4, None)])
def test_every_row_is_in_one_share(total, count, at_once):
    parts = [part for rank in range(count) for part in Processes(count, rank).share(total, at_once)]
    assert sorted(torch.cat(parts).tolist()) == list(range(total))
    assert all(0 < len(part) <= (at_once or total) for part in parts)


@pytest.mark.slow
def test_two_launched_processes_train_the_adapter_of_one(subject_folder, tiny_backbone_folder, tmp_path):
    quick = ["--steps", "3", "--rank", "2", "--batch-size", "3", "--checkpoint-every", "2"]
    for name in ("one", "two"):
        arguments = [
            "select",
            str(subject_folder),
            "--class-noun",
            "face",
            "--out",
            str(tmp_path / name),
            "--rule",
            "nearest",
        ]
        assert main([*arguments, "--num-backbone", "3", "--backbone", str(tiny_backbone_folder)]) == 0
    train = ["train", str(tmp_path / "one"), "--backbone", str(tiny_backbone_folder), *quick]
    assert main(train) == 0
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "-m", "bat_ui"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    train[1] = str(tmp_path / "two")
    subprocess.run([*launch, *train], check=True, cwd=ROOT, env=environment)
    one, two = (Project(tmp_path / name) for name in ("one", "two"))
    weights = [load_file(project.adapter) for project in (one, two)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-5, rtol=1e-3)
    assert [p.name for p in sorted(two.checkpoints.iterdir())] == ["step-000002", "step-000003"]
    assert len(two.losses.read_text().splitlines()) == 3 and two.status("train")["state"] == "done"

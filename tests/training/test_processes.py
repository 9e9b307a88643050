"""Several processes: shares of a batch, and a run of two of them that ends like one process's."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from bat_ui import queue, registry
from bat_ui.backbones import load_backbone
from bat_ui.cli import main
from bat_ui.files import read_json
from bat_ui.project import Project
from bat_ui.settings import TrainingSettings, ValidationSettings
from bat_ui.store.ingest import ingest
from bat_ui.training.checkpoint import latest_checkpoint
from bat_ui.training.processes import Processes

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


@pytest.mark.parametrize("total, count, at_once", [(8, 1, None), (8, 1, 3), (7, 3, 2), (1, 4, None)])
def test_every_row_is_in_one_share(total, count, at_once):
    parts = [part for rank in range(count) for part in Processes(count, rank).share(total, at_once)]
    assert sorted(torch.cat(parts).tolist()) == list(range(total))
    assert all(0 < len(part) <= (at_once or total) for part in parts)


def test_two_launched_processes_train_the_adapter_of_one(subject_folder, tiny_backbone_folder, tmp_path):
    quick = ["--steps", "3", "--rank", "2", "--batch-size", "3", "--checkpoint-every", "2"]
    backbone = ["--backbone", str(tiny_backbone_folder)]
    (tmp_path / "noises").mkdir()
    for n in range(6):
        Image.effect_noise((48, 48), 20 + 30 * n).convert("RGB").save(tmp_path / "noises" / f"{n}.png")
        (tmp_path / "noises" / f"{n}.txt").write_text(f"noise {n}")
    ingest(str(tmp_path / "noises"), tmp_path / "store", load_backbone(str(tiny_backbone_folder)).clip, name="noises")
    chosen = ["--rule", "nearest", "--num-backbone", "3", "--store", str(tmp_path / "store"), *backbone]
    for name in ("one", "two"):
        assert main(["select", str(subject_folder), "--class-noun", "face", "--out", str(tmp_path / name), *chosen]) == 0
    train = ["train", str(tmp_path / "one"), *backbone, *quick]
    assert main(train) == 0
    train[1] = str(tmp_path / "two")
    launched = subprocess.Popen([sys.executable, "-m", "bat_ui", *train, "--processes=2"], cwd=ROOT, env=ENVIRONMENT)
    assert launched.wait() == 0
    one, two = (Project(tmp_path / name) for name in ("one", "two"))
    weights = [load_file(project.adapter) for project in (one, two)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-5, rtol=1e-3)
    assert [p.name for p in sorted(two.checkpoints.iterdir())] == ["step-000002", "step-000003"]
    assert len(two.losses.read_text().splitlines()) == 3 and two.status("train")["state"] == "done"
    assert two.last_word("train")["pid"] == launched.pid, "who waits for the job knows the process that it started"
    assert [read_json(project.report)["training"]["processes"] for project in (one, two)] == [1, 2]


def test_a_run_of_two_processes_stops_and_saves_when_the_queue_asks(
    subject_folder, tiny_backbone_folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("BAT_UI_DATA", str(tmp_path))
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    project, backbone = registry.make(), ["--backbone", str(tiny_backbone_folder)]
    select = ["select", str(subject_folder), "--class-noun", "face", "--out", str(project.folder), "--rule", "none"]
    assert main([*select, *backbone]) == 0
    run = project.new_run(TrainingSettings(steps=100_000, rank=2), ValidationSettings(validation_images=0))
    job = queue.add(run, "train", ["--processes=2", *backbone, "--steps=100000", "--rank=2", "--validation-images=0"])
    deadline = time.monotonic() + 120
    while queue.status(run, "train").get("what") != "Training":
        assert time.monotonic() < deadline, run.log_file("train").read_text()[-2000:]
        queue.advance()
        time.sleep(0.2)
    queue.stop(job)
    while queue.find(job.id).state == "running":
        assert time.monotonic() < deadline
        queue.advance()
        time.sleep(0.2)
    assert queue.status(run, "train")["state"] == "stopped"
    assert latest_checkpoint(run.checkpoints) is not None and read_json(run.report)["training"]["processes"] == 2

"""The adapter in use: byte for byte a checkpoint's, told by the files alone, and shown with what it drew itself."""

import json
import os

import pytest

from bat_ui import registry
from bat_ui.adapters import samples_of_adapter, saved_steps, use_checkpoint, used_step
from bat_ui.cli import main
from bat_ui.errors import UserError
from bat_ui.files import write_json
from bat_ui.project import Run, StatusWriter
from bat_ui.settings import TrainingSettings
from bat_ui.training.checkpoint import save_checkpoint
from bat_ui.training.loop import new_optimizer
from bat_ui.training.lora import lora


@pytest.fixture()
def run_with_checkpoints(backbone) -> Run:
    """A run with two checkpoints of different weights, whose own adapter is not there yet."""
    project = registry.make()
    write_json(project.subject_marker, {})
    write_json(project.choice, {"candidates": []})
    run = project.new_run()
    with lora(backbone, 2, 0) as weights:
        optimizer = new_optimizer(weights, TrainingSettings(rank=2), backbone.preset)
        for step in (20, 40):
            for weight in weights.values():
                weight.data += 0.1
            save_checkpoint(run.checkpoints, step, backbone, weights, optimizer)
    return run


def test_a_checkpoint_becomes_the_runs_adapter_byte_for_byte(run_with_checkpoints):
    run = run_with_checkpoints
    assert saved_steps(run) == [20, 40] and used_step(run) is None
    for step in (20, 40, 20):
        use_checkpoint(run, step)
        [file] = (run.checkpoints / f"step-{step:06d}").glob("*lora_weights.safetensors")
        assert run.adapter.read_bytes() == file.read_bytes() and used_step(run) == step
    run.adapter.write_bytes(b"something else")
    assert used_step(run) is None


def test_what_cannot_be_used_is_refused_in_a_sentence_and_the_adapter_stays(run_with_checkpoints):
    run = run_with_checkpoints
    use_checkpoint(run, 20)
    with pytest.raises(UserError, match="no checkpoint of step 30: choose one of 20, 40"):
        use_checkpoint(run, 30)
    [file] = (run.checkpoints / "step-000040").glob("*lora_weights.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="damaged"):
        use_checkpoint(run, 40)
    for verb, said in (("export", "packed"), ("generate", "drawn with"), ("train", "still training")):
        StatusWriter(run, verb)
        with pytest.raises(UserError, match=said):
            use_checkpoint(run, 20)
    assert used_step(run) == 20


def test_an_adapter_is_shown_with_what_it_drew_itself(run_with_checkpoints):
    run = run_with_checkpoints
    for step in (20, 40):
        folder = run.samples / f"step-{step:06d}"
        folder.mkdir(parents=True)
        rows = [
            {"file": f"{i}.png", "prompt": f"{of} at {step}", "seed": 0, "of": of}
            for i, of in enumerate(("subject", "class"))
        ]
        write_json(folder / "samples.json", rows)
    write_json(run.samples / "samples.json", [{"file": "000.png", "prompt": "asked for", "seed": 0}])
    use_checkpoint(run, 40)
    os.utime(run.samples / "samples.json", ns=(1, 1))
    assert [row["prompt"] for row in samples_of_adapter(run)] == ["subject at 40"]
    os.utime(run.samples / "samples.json")
    assert [row["prompt"] for row in samples_of_adapter(run)] == ["asked for"]
    use_checkpoint(run, 20)
    os.utime(run.adapter)
    os.utime(run.samples / "samples.json", ns=(1, 1))
    assert [row["prompt"] for row in samples_of_adapter(run)] == ["subject at 20"]


def test_the_command_line_compares_checkpoints_and_puts_one_to_use(run_with_checkpoints, capsys):
    run = run_with_checkpoints
    write_json(run.subject_marker, {})
    rows = [(0, 0.2, 0.3), (20, 0.5, 0.3), (40, 0.5, 0.1)]
    lines = [{"step": s, "clip_i": i, "clip_t": t, "diversity": 0.4, "pres": None} for s, i, t in rows]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["checkpoint", str(run.folder)]) == 0 and used_step(run) is None
    told = capsys.readouterr()
    first, second, third = [line.split() for line in told.out.splitlines()[1:]]
    assert first == ["0", "0.200", "0.300", "0.400", "-"] and third == ["40", "0.500", "0.100", "0.400", "-"]
    assert second == ["20", "0.500", "0.300", "0.400", "-", "recommended"] and "Step 20 has" in told.err
    assert main(["checkpoint", str(run.folder), "--use", "40"]) == 0 and used_step(run) == 40
    assert main(["checkpoint", str(run.folder), "--use", "recommended"]) == 0 and used_step(run) == 20
    assert "recommended, in use" in capsys.readouterr().out
    assert main(["checkpoint", str(run.folder), "--use", "30"]) == 2 and used_step(run) == 20
    assert main(["checkpoint", str(run.folder), "--use", "last"]) == 2 and used_step(run) == 20

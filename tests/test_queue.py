"""The queue: one job at a time, in order, seen from outside, stopped when asked, honest about processes that are gone."""

import os
import signal
import subprocess
import sys
import time

import pytest

from bat_ui import queue, registry
from bat_ui.cli import build_parser
from bat_ui.errors import UserError
from bat_ui.files import read_json, write_json
from bat_ui.processes import is_alive, started_at
from bat_ui.settings import GenerationSettings, SelectionSettings, TrainingSettings, ValidationSettings

SLEEP = "import time; time.sleep(60)"
WORD = (
    "import sys; sys.path.insert(0, '.'); from pathlib import Path; from bat_ui.project import Run, StatusWriter\n"
    "status = StatusWriter(Run(Path(sys.argv[2])), sys.argv[1]); status('Training', 4, 4); status.finish('done')"
)


@pytest.fixture(autouse=True)
def own_data(tmp_path, monkeypatch):
    """A data folder of its own, one device, and no process left over."""
    monkeypatch.setenv("BAT_UI_DATA", str(tmp_path))
    monkeypatch.setattr(queue, "devices", lambda: ["cpu"])
    yield
    for job in queue.active():
        queue.stop(job, now=True)


@pytest.fixture()
def program(monkeypatch):
    """A function that makes jobs run some Python text instead of the command line."""
    return lambda text: monkeypatch.setattr(queue, "COMMAND", (sys.executable, "-c", text))


def advance_until(wanted, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < deadline, [(job.id, job.state) for job in queue.active()]
        queue.advance()
        time.sleep(0.02)


def ended(job) -> bool:
    return queue.find(job.id).state not in ("waiting", "running")


def new_job(verb="train", name=""):
    return queue.add(registry.make(name), verb)


def test_jobs_run_one_after_the_other_in_order_and_say_their_place(program):
    program(SLEEP)
    jobs = [new_job() for _ in range(3)]
    assert [queue.status(job.place, "train")["place"] for job in jobs] == [1, 2, 3]
    queue.advance()
    assert [job.state for job in queue.active()] == ["running", "waiting", "waiting"]
    assert queue.status(jobs[0].place, "train")["state"] == "running"
    assert [queue.status(job.place, "train")["place"] for job in jobs[1:]] == [1, 2]
    queue.advance()
    assert [job.state for job in queue.active()] == ["running", "waiting", "waiting"]
    queue.stop(jobs[0], now=True)
    queue._processes[queue.find(jobs[0].id).pid].wait()
    assert queue.status(jobs[0].place, "train")["state"] == "stopped", "what was asked for is no failure"
    advance_until(lambda: queue.find(jobs[1].id).state == "running")
    assert queue.find(jobs[0].id).state == "stopped" and queue.find(jobs[2].id).state == "waiting"


def test_each_device_has_its_own_job_and_sees_itself_alone(program, monkeypatch):
    monkeypatch.setattr(queue, "devices", lambda: ["cuda:0", "cuda:1"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    program("import os, sys; print(os.environ['CUDA_VISIBLE_DEVICES']); sys.stdout.flush(); import time; time.sleep(60)")
    jobs = [new_job() for _ in range(3)]
    queue.advance()
    assert [job.device for job in queue.active()] == ["cuda:0", "cuda:1", None]
    advance_until(lambda: all(job.place.log_file("train").read_text() for job in jobs[:2]))
    assert [job.place.log_file("train").read_text().strip() for job in jobs[:2]] == ["5", "7"]


def test_a_training_gets_all_the_devices_that_it_asks_for_and_nobody_overtakes_it(program, monkeypatch):
    monkeypatch.setattr(queue, "devices", lambda: ["cuda:0", "cuda:1"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    program("import os, time; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); time.sleep(60)")
    first, shared, last = new_job(), queue.add(registry.make(), "train", ["--processes=2"]), new_job()
    queue.advance()
    assert [job.device for job in queue.active()] == ["cuda:0", None, None], "the second GPU waits for the first"
    queue.stop(first, now=True)
    advance_until(lambda: queue.find(shared.id).state == "running")
    assert queue.find(shared.id).devices == ["cuda:0", "cuda:1"] and queue.find(last.id).state == "waiting"
    advance_until(lambda: shared.place.log_file("train").read_text())
    assert shared.place.log_file("train").read_text() == "5,7\n"


def test_of_fewer_devices_than_asked_for_a_training_takes_all(program, monkeypatch):
    program(SLEEP)
    job = queue.add(registry.make(), "train", ["--processes=4"])
    queue.advance()
    assert queue.find(job.id).devices == ["cpu"]


def test_stopped_at_once_a_job_takes_its_helpers_with_it(program, tmp_path, monkeypatch):
    """As a launcher's processes are, these are in a session of their own, where no signal to its group reaches them."""
    child = "import os, time; open(os.environ['CHILD'], 'w').write(str(os.getpid())); time.sleep(60)"
    monkeypatch.setenv("CHILD", str(tmp_path / "child"))
    program(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], start_new_session=True)")
    job = new_job()
    advance_until(lambda: (tmp_path / "child").is_file() and (tmp_path / "child").read_text())
    pid = int((tmp_path / "child").read_text())
    began = started_at(pid)
    assert is_alive(pid, began)
    queue.stop(job, now=True)
    advance_until(lambda: not is_alive(pid, began))


@pytest.mark.parametrize("text", ["a\0b", "half an emoji \ud83d"])
def test_a_text_that_no_command_line_can_hold_fails_alone(text, program):
    program(WORD)
    bad, good = queue.add(registry.make(), "generate", [f"--prompt={text}"]), new_job()
    advance_until(lambda: ended(bad) and ended(good))
    assert [queue.find(job.id).state for job in (bad, good)] == ["failed", "done"]
    assert queue.status(bad.place, "generate")["message"].startswith("It could not be started")


def test_a_status_that_lost_power_is_put_down_and_holds_nobody_up(program):
    program(SLEEP)
    lost, later = new_job(), new_job()
    queue.advance()
    process = queue._processes[queue.find(lost.id).pid]
    process.kill()
    process.wait()
    lost.place.status_file("train").write_text("")
    advance_until(lambda: queue.find(later.id).state == "running")
    assert queue.find(lost.id).state == "failed" and queue.status(lost.place, "train")["state"] == "failed"


def test_two_jobs_never_work_in_one_folder(program, monkeypatch):
    monkeypatch.setattr(queue, "devices", lambda: ["cuda:0", "cuda:1"])
    program(SLEEP)
    project = registry.make()
    queue.add(project, "train")
    queue.add(project, "generate")
    with pytest.raises(UserError, match="training is already in the queue"):
        queue.add(project, "train")
    queue.advance()
    assert [job.state for job in queue.active()] == ["running", "waiting"]


def test_a_download_is_prepared_beside_a_training_without_its_gpu_and_in_its_own_order(program, monkeypatch):
    monkeypatch.setattr(queue, "devices", lambda: ["cuda:0"])
    program("import os; print('sees', repr(os.environ['CUDA_VISIBLE_DEVICES']), flush=True); import time; time.sleep(60)")
    training, waiting, export, later = new_job(), new_job(), new_job("export"), new_job("export")
    assert queue.status(later.place, "export")["place"] == 2
    queue.advance()
    assert {job.id: job.device for job in queue.active()} == {
        training.id: "cuda:0", export.id: "desk", waiting.id: None, later.id: None,
    }  # fmt: skip
    assert queue.status(waiting.place, "train")["place"] == queue.status(later.place, "export")["place"] == 1
    advance_until(lambda: export.place.log_file("export").read_text())
    assert export.place.log_file("export").read_text() == "sees ''\n"


def test_a_waiting_job_can_be_taken_out(program):
    program(SLEEP)
    job = new_job()
    queue.stop(job)
    assert queue.find(job.id).state == "cancelled" and queue.active() == []
    assert queue.status(job.place, "train")["state"] == "absent"


def test_a_workers_own_last_word_stays(program):
    program(WORD)
    job = new_job()
    advance_until(lambda: ended(job))
    assert queue.find(job.id).state == "done"
    assert queue.status(job.place, "train")["done"] == 4


def test_a_worker_that_ends_with_a_sentence_leaves_that_sentence(program):
    program("import sys; print('error: No pictures.', file=sys.stderr); sys.exit(2)")
    job = new_job("select")
    advance_until(lambda: ended(job))
    said = queue.status(job.place, "select")
    assert (said["state"], said["message"]) == ("failed", "No pictures.")


def test_a_worker_that_crashes_says_where_to_look(program):
    program("raise ValueError('x')")
    job = new_job("select")
    advance_until(lambda: ended(job))
    assert "select.log" in queue.status(job.place, "select")["message"]


def test_a_killed_worker_is_failed_without_a_word_and_the_next_one_starts(program):
    program(SLEEP)
    first, second = new_job(), new_job()
    queue.advance()
    os.kill(queue.find(first.id).pid, signal.SIGKILL)
    advance_until(lambda: queue.find(second.id).state == "running")
    said = queue.status(first.place, "train")
    assert said["state"] == "failed" and said["message"] == queue.SILENT


def test_a_stopped_worker_may_save_and_one_stopped_now_may_not(program, tmp_path):
    program(
        "import signal, sys, time; from pathlib import Path\n"
        "def save(*_): Path(sys.argv[2], 'saved').touch(); sys.exit()\n"
        "signal.signal(signal.SIGTERM, save); Path(sys.argv[2], 'ready').touch(); time.sleep(60)"
    )
    for now, saved in ((False, True), (True, False)):
        job = new_job()
        advance_until(lambda: (job.place.folder / "ready").exists())  # noqa: B023
        queue.stop(job, now=now)
        advance_until(lambda: ended(job))  # noqa: B023
        assert queue.find(job.id).state == "stopped" and not job.place.stop_file("train").exists()
        assert (job.place.folder / "saved").exists() == saved


def test_a_server_that_comes_back_goes_on_with_living_jobs_and_the_queue(program):
    program(SLEEP)
    code = (
        "import sys; sys.path.insert(0, '.'); from bat_ui import queue, registry\n"
        f"queue.COMMAND = {queue.COMMAND!r}; queue.devices = lambda: ['cpu']\n"
        "queue.add(registry.make(), 'train'); queue.add(registry.make(), 'train'); queue.advance()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)  # a server that is gone again
    first, second = queue.active()
    assert first.state == "running" and is_alive(first.pid, first.pid_started)
    queue.advance()
    assert [job.state for job in queue.active()] == ["running", "waiting"]
    queue.stop(first, now=True)
    advance_until(lambda: queue.find(second.id).state == "running")
    assert queue.find(first.id).state == "stopped"


def test_a_process_that_only_has_the_same_id_is_not_taken_for_the_job():
    project = registry.make()
    job = queue.add(project, "train")
    stranger = os.getpid()  # alive, but begun at another time
    with registry.database() as db:
        db.execute(
            "UPDATE jobs SET state = 'running', device = 'cpu', started = ?, pid = ?, pid_started = ? WHERE id = ?",
            (time.time(), stranger, started_at(stranger) - 1000, job.id),
        )
    write_json(
        project.status_file("train"), {"state": "running", "pid": stranger, "pid_started": started_at(stranger) - 1000}
    )
    assert project.status("train")["state"] == "failed"
    queue.advance()
    assert queue.find(job.id).state == "failed"


@pytest.mark.parametrize("lives", [True, False])
def test_a_server_that_died_while_starting_a_job_loses_and_doubles_nothing(lives, program):
    program(SLEEP)
    job = new_job()
    queue.advance()
    pid = queue.find(job.id).pid
    with registry.database() as db:  # as if it had died before it wrote the process down
        db.execute("UPDATE jobs SET pid = NULL, pid_started = NULL, started = ?", (time.time() - 60,))
    if lives:
        queue.advance()
        assert queue.find(job.id).pid == pid
    else:
        os.killpg(pid, signal.SIGKILL)
        queue._processes[pid].wait()
        queue.advance()
        assert queue.find(job.id).pid != pid and queue.find(job.id).state == "running"


def test_stopping_a_project_leaves_others_alone(program):
    program(SLEEP)
    project, other = registry.make(), registry.make()
    jobs = [queue.add(project, "select"), queue.add(project, "train"), queue.add(other, "train")]
    queue.advance()
    queue.stop_project(project.folder.name)
    advance_until(lambda: queue.find(jobs[2].id).state == "running")
    assert [queue.find(job.id).state for job in jobs[:2]] == ["stopped", "cancelled"]


def test_options_mean_the_same_settings_to_the_command_line():
    training = TrainingSettings(steps=5, strength=0.5, seed=3)
    selection = SelectionSettings(rule="nearest", num_backbone=4, seed=3)
    args = build_parser().parse_args(["select", "folder", *queue.options([training, selection])])
    assert (args.steps, args.strength, args.rule, args.num_backbone, args.seed) == (5, 0.5, "nearest", 4, 3)
    validation = ValidationSettings(validation_prompts="--a sks cat\na dog", validation_images=1)
    args = build_parser().parse_args(["train", "folder", *queue.options([training, validation])])
    assert (args.validation_prompts, args.validation_images) == ("--a sks cat\na dog", 1)
    drawn = GenerationSettings(steps=6, guidance=2.5)
    args = build_parser().parse_args(["generate", "folder", *queue.options([drawn]), "--prompt=--host a cat"])
    assert (args.sampling_steps, args.guidance, args.prompts) == (6, 2.5, ["--host a cat"])


def test_a_number_left_to_the_curve_is_not_said():
    assert not any("num-backbone" in option for option in queue.options([SelectionSettings()]))


def test_the_first_word_is_there_before_the_worker_speaks(program):
    program(SLEEP)
    job = new_job()
    queue.advance()
    assert read_json(job.place.status_file("train"))["what"] == "Starting"


def test_a_job_that_is_taken_but_has_no_process_yet_runs(program, monkeypatch):
    program(SLEEP)
    job = new_job()
    monkeypatch.setattr(queue, "_start", lambda job: None)
    queue.advance()
    assert queue.find(job.id).pid is None and queue.status(job.place, "train")["state"] == "running"

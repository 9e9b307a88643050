"""Faults done to a training on purpose: killed at a moment, out of disk, server killed; and what must hold afterwards.

In: a backbone folder, a project with subject and choice, a seed.  Out: for each trial where it was hit and whether the
resumed run ended with the very bytes of the uninterrupted one.  Workers are forked from this process, which has loaded the
libraries already, so that a trial takes a second and not ten; what they run is the command line's own `main`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from bat_ui import cli, line  # noqa: F401 (line: loaded here once, for every child)
from bat_ui.choice import Choice
from bat_ui.project import Project, Run, projects_folder
from bat_ui.training.checkpoint import is_complete

OPTIONS = ["--rank=2", "--batch-size=4", "--validation-images=1", "--validation-steps=1"]
WEIGHTS = "lora/pytorch_lora_weights.safetensors"
FORK = multiprocessing.get_context("fork")


@dataclass
class Trial:
    """What was done to one run and what came of it."""

    fault: str
    hit_at: list[str] = field(default_factory=list)  # where each blow found the worker
    said: str = ""  # the run's own words about the last blow
    corrupt: list[str] = field(default_factory=list)  # files that a reader would have stumbled over
    equal: bool = False  # the weights, the losses and the metrics are those of the uninterrupted run


class Bench:
    """One project that is trained again and again; `reference` is the run that nothing happened to."""

    def __init__(self, folder: Path, backbone: Path, steps: int, every: int):
        self.folder = folder
        self.arguments = [f"--backbone={backbone}", f"--steps={steps}", f"--checkpoint-every={every}", *OPTIONS]
        self.project = Project(projects_folder() / "0123456789abcdef")  # where a queue finds it
        _prepare(self.project)
        started = time.perf_counter()
        self.reference = self.new_run("reference")
        code = self.train(self.reference)
        if code != 0:
            raise RuntimeError(f"the uninterrupted run ended with code {code}")
        self.seconds = time.perf_counter() - started

    def new_run(self, name: str) -> Run:
        run = Run(self.folder / name)
        shutil.copytree(self.project.folder, run.folder)
        return run

    def start(self, run: Run, resume: bool = False) -> multiprocessing.Process:
        process = FORK.Process(target=_work, args=(["train", str(run.folder), *self.arguments, *["--resume"] * resume],))
        process.start()
        return process

    def train(self, run: Run, resume: bool = False) -> int:
        process = self.start(run, resume)
        process.join()
        return process.exitcode

    def kill(self, name: str, rng: random.Random, in_checkpoint: bool) -> Trial:
        """Kill at a random moment, or as soon as a checkpoint is being written; twice in a row now and then."""
        trial, run = Trial("SIGKILL in a checkpoint write" if in_checkpoint else "SIGKILL"), self.new_run(name)
        for blow in range(1 + (rng.random() < 0.3)):
            process = self.start(run, resume=blow > 0)
            if in_checkpoint:
                wanted = rng.randrange(1, 4)
                self._wait_for_draft(process, run, wanted)
                time.sleep(rng.random() * 0.004)
            else:
                process.join(rng.random() * self.seconds)
            process.kill()
            process.join()
            trial.hit_at.append(_where(run))
            trial.corrupt += corrupt_files(run)
        return self._finish(trial, run)

    def fill_disk(self, name: str, rng: random.Random) -> Trial:
        """From a random moment on no file may grow beyond a few bytes; then there is room again."""
        trial, run = Trial("full disk"), self.new_run(name)
        process = self.start(run)
        time.sleep(rng.random() * self.seconds)
        if process.is_alive():
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (rng.choice((0, 100, 5000)), resource.RLIM_INFINITY))
        process.join()
        trial.hit_at.append(_where(run))
        trial.said = run.status("train").get("message", "")
        trial.corrupt += corrupt_files(run)
        return self._finish(trial, run)

    def kill_server(self, rng: random.Random) -> Callable[[], Trial]:
        """Kill the server that started a worker of its own, start another one, which has to see the job through.

        Returns what waits for that: other trials can be made meanwhile, for most of it is the worker's imports.
        """
        from bat_ui import queue  # here, since it is of no use to forked workers

        trial = Trial("killed server")
        run = self.project.new_run()
        job = queue.add(run, "train", self.arguments)
        server = self._server()
        _wait(lambda: queue.find(job.id).pid is not None)
        time.sleep(rng.random() * 5)
        server.kill()
        server.wait()
        trial.hit_at.append(queue.status(run, "train").get("what", ""))
        successor = self._server()

        def finish() -> Trial:
            _wait(lambda: queue.find(job.id).state not in ("waiting", "running"))
            successor.kill()
            successor.wait()
            trial.said = queue.find(job.id).state
            trial.corrupt += corrupt_files(run)
            trial.equal = trial.said == "done" and self._same(run)
            return trial

        return finish

    def _finish(self, trial: Trial, run: Run) -> Trial:
        code = self.train(run, resume=True)
        trial.corrupt += corrupt_files(run)
        trial.equal = code == 0 and self._same(run)
        shutil.rmtree(run.folder)
        return trial

    def _same(self, run: Run) -> bool:
        names = (WEIGHTS, "losses.jsonl", "metrics.jsonl")
        return all((run.folder / n).read_bytes() == (self.reference.folder / n).read_bytes() for n in names)

    def _wait_for_draft(self, process: multiprocessing.Process, run: Run, wanted: int) -> None:
        seen: set[str] = set()
        while process.is_alive() and len(seen) < wanted:
            with suppress(FileNotFoundError):  # a run that begins clears the folder away
                seen |= {path.name for path in run.checkpoints.glob(".*")}

    def _server(self) -> subprocess.Popen:
        code = "from bat_ui import queue; queue.devices = lambda: ['cpu']; queue.keep_going().join()"
        root = Path(__file__).parents[2]
        return subprocess.Popen([sys.executable, "-c", code], cwd=root, env={**os.environ, "PYTHONPATH": str(root)})


def corrupt_files(run: Run) -> list[str]:
    """Every file under its final name that cannot be read to its end."""
    bad = []
    for path in sorted(run.folder.rglob("*")):
        if any(part.startswith(".") for part in path.relative_to(run.folder).parts) or not path.is_file():
            continue
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix == ".safetensors":
                load_file(path)
            elif path.suffix == ".png":
                Image.open(path).load()
        except Exception as problem:
            bad.append(f"{path.relative_to(run.folder)}: {problem}")
    bad += [f"{path.name}: not as its manifest says" for path in run.checkpoints.glob("step-*") if not is_complete(path)]
    return bad


def _prepare(project: Project) -> None:
    pictures = project.folder / "originals"
    pictures.mkdir(parents=True)
    for i in range(3):
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).ellipse((8, 8, 56, 40 + 6 * i), fill="gold", outline="black")
        image.save(pictures / f"face{i}.png")
    line.prepare(project, sorted(pictures.iterdir()), "face", template="a sticker of {identifier} {class_noun}")
    Choice("none", (), 0).save(project.choice)


def _work(arguments: list[str]) -> None:
    os.setpgid(0, 0)
    torch.set_num_threads(1)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    sys.exit(cli.main(arguments))


def _where(run: Run) -> str:
    """What the worker was at: writing a checkpoint or samples if it left a draft, else by its status."""
    if list(run.checkpoints.glob(".*")):
        return "in a checkpoint"
    if list(run.samples.glob(".*")):
        return "in samples"
    status = run.status("train")
    return {"Training": "in training", "Drawing samples": "in samples"}.get(status.get("what"), "at the start")


def _wait(wanted, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not wanted():
        if time.monotonic() > deadline:
            raise RuntimeError("the job did not come to its end")
        time.sleep(0.05)

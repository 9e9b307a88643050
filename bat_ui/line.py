"""The straight line from a subject's pictures to samples: each stage reads the previous one's files in a project.

In: a project folder, a backbone, settings.  Out: the stage's files, and its part of report.json.  The page, the command
line and the benchmarks all call these functions and add nothing to them.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from bat_ui.albat.selection import assess
from bat_ui.albat.validity import GroupVerdict
from bat_ui.backbones.stable_diffusion import Backbone
from bat_ui.choice import Candidate, Choice, apply_selection, save_sketches
from bat_ui.errors import UserError
from bat_ui.files import read_json_lines, write_json
from bat_ui.generation import contact_sheet, generate
from bat_ui.project import Progress, Project
from bat_ui.settings import RULES, GenerationSettings, SelectionSettings, TrainingSettings
from bat_ui.sketching import sketch_candidates
from bat_ui.store.shortlist import Shortlist, shortlist
from bat_ui.store.sticker import open_sticker_store
from bat_ui.store.table import Store
from bat_ui.subject import Subject, prepare_subject
from bat_ui.training.checkpoint import latest_checkpoint, restore_checkpoint, save_checkpoint
from bat_ui.training.loop import Encoded, new_optimizer, train
from bat_ui.training.lora import lora, save_lora

DEFAULT_NUMBER = 40  # pictures that the rules without a predicted-error curve take
RANDOM_PART = 0.25  # part of ALBAT's shortlist that is drawn from the whole store, so that it can reach beyond neighbours


def silent(what: str, done: int, total: int) -> None:
    """A Progress that tells nobody."""


def prepare(
    project: Project,
    sources: Sequence[Path],
    class_noun: str,
    *,
    template: str,
    captions: Sequence[str | None] | None = None,
    cut_out: bool = False,
    identifier: str = "sks",
) -> Subject:
    """Check and prepare the subject's pictures; the project is touched only when all of them are good."""
    started = time.perf_counter()
    subject = prepare_subject(sources, class_noun, identifier, captions=captions, caption_template=template, cut_out=cut_out)
    subject.save(project.subject)
    settings = {
        "class_noun": class_noun,
        "identifier": identifier,
        "cut_out": cut_out,
        "pictures": len(subject.images),
    }
    project.add_to_report("subject", {**settings, "seconds": _since(started)})
    return subject


def select(
    project: Project,
    backbone: Backbone,
    settings: SelectionSettings,
    training: TrainingSettings,
    progress: Progress = silent,
) -> Choice:
    """Choose backbone pictures by `settings.rule` and save selection.json, with the sketches where ALBAT made some.

    The surrogate is trained as the final run will be, for `settings.surrogate_steps`.  Raises UserError for an unknown
    rule or a missing subject.
    """
    if settings.rule not in RULES:
        raise UserError(f'There is no rule "{settings.rule}": choose one of {", ".join(RULES)}.')
    subject = Subject.load(project.subject)
    clock = Clock()
    if settings.rule == "none":
        choice = Choice("none", (), 0)
    else:
        progress("Opening the backbone store", 0, 1)
        store = open_store(backbone, progress)
        clock.lap("store")
        choose = {"albat": _choose_by_albat, "nearest": _choose_nearest, "random": _choose_at_random}[settings.rule]
        choice = choose(project, backbone, store, subject, settings, training, progress, clock)
        _save_candidates(project, store, choice)
    choice.save(project.choice)
    project.add_to_report("selection", {"settings": settings, "chosen": len(choice.chosen), "seconds": clock.seconds})
    return choice


def run_training(
    project: Project,
    backbone: Backbone,
    settings: TrainingSettings,
    progress: Progress = silent,
    stop: Callable[[], bool] = lambda: False,
    resume: bool = False,
) -> bool:
    """Train the adapter on the subject and the chosen pictures; True if it ran to the end, False if it was stopped.

    Writes losses.jsonl as it goes, a checkpoint every `settings.checkpoint_every` steps and when stopped, and the final
    adapter.  With `resume` it goes on from the last complete checkpoint, to the same weights as an uninterrupted run.
    """
    clock = Clock()
    subject = encode_subject(backbone, Subject.load(project.subject))
    chosen = encode_chosen(backbone, Choice.load(project.choice), progress)
    clock.lap("encoding")
    checkpoint = latest_checkpoint(project.checkpoints) if resume else None
    if checkpoint is None:
        shutil.rmtree(project.checkpoints, ignore_errors=True)
        shutil.rmtree(project.lora, ignore_errors=True)
    finished = True
    with lora(backbone, settings.rank, settings.seed) as weights:
        optimizer = new_optimizer(weights, settings)
        start = restore_checkpoint(checkpoint, weights, optimizer) if checkpoint else 0
        kept = [row for row in read_json_lines(project.losses) if row["step"] <= start]  # no step is logged twice
        with open(project.losses, "w", encoding="utf-8") as log:
            log.writelines(json.dumps(row) + "\n" for row in kept)
            for step in train(backbone, weights, optimizer, subject, chosen, settings, start):
                row = {"step": step.number, "subject": step.subject_loss, "backbone": step.backbone_loss}
                log.write(json.dumps(row) + "\n")
                log.flush()
                progress("Training", step.number, settings.steps)
                finished = step.number == settings.steps or not stop()
                if step.number % settings.checkpoint_every == 0 or not finished or step.number == settings.steps:
                    save_checkpoint(project.checkpoints, step.number, backbone, weights, optimizer)
                if not finished:
                    break
        save_lora(backbone, project.lora)
    clock.lap("training")
    losses = read_json_lines(project.losses)
    last = losses[-50:]
    mean = {k: sum(r[k] for r in last) / len(last) for k in ("subject", "backbone") if last and last[0][k] is not None}
    counts = {"subject": len(subject), "backbone": len(chosen) if chosen is not None else 0}
    project.add_to_report(
        "training",
        {
            "settings": settings,
            "pictures": counts,
            "steps": losses[-1]["step"] if losses else 0,
            "loss_of_last_50_steps": mean,
            "seconds": clock.seconds,
        },
    )
    return finished


def run_generation(
    project: Project,
    backbone: Backbone,
    prompts: Sequence[str],
    settings: GenerationSettings,
    progress: Progress = silent,
    compare: bool = True,
) -> list[Path]:
    """Draw `settings.num_images` samples, shared out among the prompts, and save them with a contact sheet.

    samples/*.png are the pictures, samples/without/*.png the same prompts and seeds without the adapter (if `compare`),
    samples.json says which is which.
    """
    clock = Clock()
    prompts = [prompts[i * len(prompts) // settings.num_images] for i in range(settings.num_images)]
    pictures = generate(backbone, prompts, settings, project.lora, progress)
    clock.lap("with_adapter")
    without = generate(backbone, prompts, settings, None, progress) if compare else []
    clock.lap("without_adapter")
    shutil.rmtree(project.samples, ignore_errors=True)
    (project.samples / "without").mkdir(parents=True)
    names = [f"{i:03d}.png" for i in range(len(pictures))]
    for name, picture in zip(names, pictures):
        picture.save(project.samples / name)
    for name, picture in zip(names, without):
        picture.save(project.samples / "without" / name)
    rows = [("with the adapter", pictures)] + ([("without", without)] if compare else [])
    contact_sheet(rows).save(project.folder / "contact_sheet.png")
    listing = [{"file": n, "prompt": p, "seed": settings.seed + i} for i, (n, p) in enumerate(zip(names, prompts))]
    write_json(project.samples / "samples.json", listing)
    project.add_to_report("generation", {"settings": settings, "samples": listing, "seconds": clock.seconds})
    return [project.samples / name for name in names]


class Clock:
    """Seconds of each part of a stage, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Book the time since the last lap under `name`."""
        self.seconds[name] = _since(self._last)
        self._last = time.perf_counter()


def open_store(backbone: Backbone, progress: Progress = silent) -> Store:
    """The store that goes with the backbone, built first if need be."""

    def report(items, desc: str, total: int, unit: str):
        for i, item in enumerate(items):
            progress(desc, i, total)
            yield item

    return open_sticker_store(backbone.clip, report)


def find_candidates(
    store: Store, backbone: Backbone, subject: Subject, class_prompt: str, settings: SelectionSettings
) -> Shortlist:
    """ALBAT's candidates: neighbours of the subject and its class, and RANDOM_PART from anywhere in the store."""
    num_random = round(settings.shortlist * RANDOM_PART)
    return shortlist(
        store,
        backbone.clip,
        subject.images,
        subject.captions,
        class_prompt,
        settings.shortlist - num_random,
        num_random=num_random,
        seed=settings.seed,
        identifier=subject.identifier,
    )


def encode_subject(backbone: Backbone, subject: Subject) -> Encoded:
    """The subject's pictures with their captions, ready for training."""
    return Encoded(backbone.encode_images(subject.images), backbone.encode_captions(subject.captions))


def encode_chosen(backbone: Backbone, choice: Choice, progress: Progress = silent) -> Encoded | None:
    """The chosen backbone pictures, ready for training; None if there are none."""
    chosen = choice.chosen
    if not chosen:
        return None
    pictures = open_store(backbone, progress).pictures([c.id for c in chosen])
    weights = torch.tensor([c.weight for c in chosen])
    return Encoded(backbone.encode_images(pictures), backbone.encode_captions([c.caption for c in chosen]), weights)


def _choose_by_albat(project, backbone, store, subject, settings, training, progress, clock) -> Choice:
    progress("Searching the store", 0, 1)
    found = find_candidates(store, backbone, subject, backbone.class_prompt(subject.class_noun), settings)
    clock.lap("shortlist")
    pictures = store.pictures(found.ids)
    candidates = Encoded(backbone.encode_images(pictures), backbone.encode_captions(found.captions))
    surrogate = replace(training, steps=settings.surrogate_steps)
    sketches = sketch_candidates(
        backbone,
        found.ids,
        found.vectors,
        candidates,
        encode_subject(backbone, subject),
        settings,
        surrogate,
        progress,
    )
    clock.lap("surrogate_and_sketches")
    progress("Checking validity and ranking", 0, 1)
    save_sketches(sketches, project.sketches)
    assessment = assess(sketches)
    groups = tuple(_group_record(g) for g in assessment.validity.groups)
    rows = tuple(
        Candidate(i, caption, round(float(s), 6)) for i, caption, s in zip(found.ids, found.captions, found.similarity)
    )
    choice = Choice("albat", rows, settings.num_backbone, groups=groups, store=store.info.title)
    choice = apply_selection(choice, sketches, assessment)
    clock.lap("ranking")
    return choice


def _choose_nearest(project, backbone, store, subject, settings, training, progress, clock) -> Choice:
    number = settings.num_backbone or DEFAULT_NUMBER
    found = shortlist(
        store,
        backbone.clip,
        subject.images,
        [],
        backbone.class_prompt(subject.class_noun),
        max(settings.shortlist, number),
        identifier=subject.identifier,
    )
    order = sorted(range(len(found)), key=lambda i: (-float(found.similarity[i]), found.ids[i]))
    rows = tuple(
        Candidate(found.ids[i], found.captions[i], round(float(found.similarity[i]), 6), rank=r, chosen=r <= number)
        for r, i in enumerate(order, start=1)
    )
    clock.lap("shortlist")
    return Choice("nearest", rows, number, store=store.info.title)


def _choose_at_random(project, backbone, store, subject, settings, training, progress, clock) -> Choice:
    number = min(settings.num_backbone or DEFAULT_NUMBER, store.count)
    order = torch.randperm(store.count, generator=torch.Generator().manual_seed(settings.seed)).tolist()
    ids = [store.ids[i] for i in order[: max(number, min(settings.shortlist, store.count))]]
    similarity = (store.vectors_of(ids) @ backbone.clip.embed_images(subject.images).T).amax(1).tolist()
    rows = tuple(
        Candidate(i, caption, round(s, 6), rank=r, chosen=r <= number)
        for r, (i, caption, s) in enumerate(zip(ids, store.captions_of(ids), similarity), start=1)
    )
    clock.lap("shortlist")
    return Choice("random", rows, number, store=store.info.title)


def _save_candidates(project: Project, store: Store, choice: Choice) -> None:
    shutil.rmtree(project.candidates, ignore_errors=True)
    project.candidates.mkdir(parents=True)
    ids = [c.id for c in choice.candidates]
    for name, picture in zip(ids, store.pictures(ids)):
        picture.save(project.candidate_picture(name))


def _group_record(verdict: GroupVerdict) -> dict:
    return {
        "group": verdict.group,
        "size": verdict.size,
        "verdict": verdict.verdict,
        "disagreement": verdict.disagreement,
        "interval": list(verdict.interval),
        "evidence": verdict.evidence,
    }


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 2)

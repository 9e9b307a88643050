"""The straight line from a subject's pictures to samples: each stage reads the previous one's files in a project.

In: a project folder, a backbone, settings.  Out: the stage's files, and its part of report.json.  The page, the command
line and the benchmarks all call these functions and add nothing to them.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch

from bat_ui.additions import brought_along, counts, pictures_of, save_candidates, store_of_added
from bat_ui.backbones.encoded import Encoded
from bat_ui.backbones.stable_diffusion import Backbone
from bat_ui.choice import OWN, Choice
from bat_ui.errors import UserError
from bat_ui.files import keep_json_lines, read_json_lines, remove_drafts, write_json
from bat_ui.generation import contact_sheet, generate
from bat_ui.hardware import peak_memory
from bat_ui.project import Clock, Progress, Project, Run, silent
from bat_ui.samples import LISTING, STEP, put_aside
from bat_ui.search import choose_at_random, choose_by_albat, choose_nearest, open_store
from bat_ui.settings import RULES, GenerationSettings, SelectionSettings, TrainingSettings, ValidationSettings
from bat_ui.store.table import Store
from bat_ui.subject import Box, Subject, prepare_subject
from bat_ui.training.checkpoint import check_backbone, latest_checkpoint, restore_checkpoint, save_checkpoint
from bat_ui.training.loop import new_optimizer, train
from bat_ui.training.lora import lora, save_lora
from bat_ui.training.processes import processes
from bat_ui.validation import Validation


def prepare(
    project: Project,
    sources: Sequence[Path],
    class_noun: str,
    *,
    template: str,
    square: bool = True,
    size: int = 512,
    captions: Sequence[str | None] | None = None,
    cut_out: bool | Sequence[bool] = False,
    identifier: str = "sks",
    crops: Sequence[Box | None] | None = None,
) -> Subject:
    """Check and prepare the subject's pictures; the project is touched only when all of them are good."""
    started = time.perf_counter()
    subject = prepare_subject(
        sources, class_noun, identifier, captions, template, cut_out=cut_out, size=size, crops=crops, square=square
    )
    subject.save(project.subject)
    settings = {
        "class_noun": class_noun,
        "identifier": identifier,
        "cut_out": "yes" in subject.cut_out,
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

    The surrogate is trained as the final run will be on the subject alone: for `settings.surrogate_steps`, or until left-out
    pictures show that it would learn the subject's by heart, and so will the run.  What a person added to the last
    choice is looked at by ALBAT, too, and kept as it is by the other rules.  Raises UserError for an unknown rule, a
    missing subject, or a store that is missing or was made with another CLIP model.
    """
    if settings.rule not in RULES:
        raise UserError(f'There is no rule "{settings.rule}": choose one of {", ".join(RULES)}.')
    subject = Subject.load(project.subject)
    made = project.subject_marker.stat().st_mtime_ns
    clock = Clock()
    if settings.rule == "none":
        opened, choice = store_of_added(project), Choice("none", (), 0)
        if opened is not None:
            choice = replace(choice, store=Choice.load(project.choice).store)
    else:
        progress("Opening the backbone store", 0, 1)
        opened = open_store(backbone, progress, settings.store)
        clock.lap("store")
        choose = {"albat": choose_by_albat, "nearest": choose_nearest, "random": choose_at_random}[settings.rule]
        choice = choose(project, backbone, opened, subject, settings, training, progress, clock)
        choice = replace(choice, store=opened.info.summary | ({"place": opened.place.uri} if settings.store else {}))
    known = {c.id for c in choice.candidates}
    further = tuple(c for c in brought_along(project, opened) if c.id not in known)
    if settings.rule == "none":  # "your pictures alone" means just that; they are there to be taken again
        further = tuple(replace(c, chosen=False) for c in further)
        choice = replace(choice, dropped=tuple(sorted(c.id for c in further)))
    choice = replace(choice, candidates=choice.candidates + further)
    save_candidates(project, choice.candidates, opened)
    if settings.rule == "albat":
        os.replace(project.new_sketches, project.sketches)
    choice.save(project.choice)  # all that takes time or room is done: a search that fails leaves the earlier one whole
    project.choice_history.unlink(missing_ok=True)
    about = {key: value for key, value in choice.store.items() if key != "place"}
    report = {"settings": settings, "chosen": len(choice.chosen), "store": about, "seconds": clock.seconds}
    report |= {"taken": counts(choice), "subject_made": made}
    project.remember(backbone.asked)
    project.add_to_report("selection", report)
    return choice


def run_training(
    run: Run,
    backbone: Backbone,
    settings: TrainingSettings,
    progress: Progress = silent,
    stop: Callable[[], bool] = lambda: False,
    resume: bool = False,
    validation: ValidationSettings | None = None,
) -> bool:
    """Train the adapter on the subject and the chosen pictures; True if it ran to the end, False if it was stopped.

    Writes losses.jsonl as it goes, a checkpoint every `settings.checkpoint_every` steps and when stopped, and the final
    adapter; with `validation`, samples and metrics of each checkpoint but a stopped one's.  With `resume` it goes on from
    the last complete checkpoint, to the same weights as an uninterrupted run, whatever ended it and whatever was drawn.
    Raises UserError for a resume with a backbone, settings or pictures that its checkpoints were not made with, or where
    all checkpoints are gone or damaged.  What an earlier run left stays until this one is ready to begin.
    """
    clock, together = Clock(), processes()
    checkpoint = latest_checkpoint(run.checkpoints) if resume else None
    if checkpoint is not None:
        _check_resume(run, checkpoint, settings, backbone)
    elif resume and (run.adapter or any(run.checkpoints.glob(f"{STEP}*"))):
        raise UserError("No checkpoint of this run is whole, so it cannot go on: train anew, without resuming.")
    prepared = Subject.load(run.subject)
    backbone.warn_of_long(prepared.captions)
    subject = prepared.encode(backbone, bucketed=backbone.photos)
    choice = _learned(run, settings)
    suggested = choice.suggested(settings)
    chosen = encode_chosen(backbone, run, choice, progress)
    clock.lap("encoding")
    together.wait()  # until all have looked for a checkpoint
    finished = True
    with lora(backbone, settings.rank, settings.seed, settings.text_encoder) as weights:
        optimizer = new_optimizer(weights, settings, backbone.preset)
        start = restore_checkpoint(checkpoint, weights, optimizer) if checkpoint else 0
        if together.is_main:
            _clear(run, everything=checkpoint is None)
            choice.save(run.learned_from)
            run.remember(settings, backbone.asked, *([validation] if validation else []))
            keep_json_lines(run.losses, lambda row: row["step"] <= start)  # no step is logged twice
        validate = Validation(run, backbone, prepared, validation, start, progress) if validation else lambda step: None
        due = {*range(0, settings.steps, settings.checkpoint_every), settings.steps}
        if start in due:
            validate(start)
            clock.lap("validation")
        with open(run.losses if together.is_main else os.devnull, "a", encoding="utf-8") as log:
            for step in train(backbone, weights, optimizer, subject, chosen, suggested, start):
                row = {"step": step.number, "subject": step.subject_loss, "backbone": step.backbone_loss}
                log.write(json.dumps(row) + "\n")
                log.flush()
                progress("Training", step.number, settings.steps)
                finished = step.number == settings.steps or not together.agree(stop(), backbone.device)
                if together.is_main and (step.number in due or not finished):
                    os.fsync(log.fileno())  # a checkpoint's losses are on disk before it is
                    save_checkpoint(run.checkpoints, step.number, backbone, weights, optimizer)
                clock.lap("training")
                if not finished:
                    break
                if step.number in due:
                    validate(step.number)
                    clock.lap("validation")
                    progress("Training", step.number, settings.steps)
        if not together.is_main:
            return finished
        save_lora(backbone, run.lora)
    clock.lap("training")
    losses = read_json_lines(run.losses)
    last = {k: [r[k] for r in losses[-50:] if r[k] is not None] for k in ("subject", "backbone")}
    mean = {k: sum(values) / len(values) for k, values in last.items() if values}
    pictures = {"subject": len(subject), "backbone": len(chosen) if chosen is not None else 0}
    run.add_to_report(
        "training",
        {
            "settings": settings,
            "lambda": suggested.strength if pictures["backbone"] else None,
            "steps_alone": suggested.steps_alone if pictures["backbone"] else None,
            "pictures": pictures | {"backbone_by_origin": counts(choice)},
            "steps": losses[-1]["step"] if losses else 0,
            "loss_of_last_50_steps": mean,
            "processes": together.count,
            "memory": peak_memory(),
            "seconds": clock.seconds,
        },
    )
    return finished


def _clear(run: Run, everything: bool) -> None:
    """Make room for a run: what was left unfinished and, if it begins anew, what an earlier one left."""
    for folder in (run.checkpoints, run.samples):
        remove_drafts(folder)
    if everything:
        for folder in (run.checkpoints, run.lora, *run.samples.glob(f"{STEP}*")):
            shutil.rmtree(folder, ignore_errors=True)
        run.metrics.unlink(missing_ok=True)  # of the samples that are gone


def _learned(run: Run, settings: TrainingSettings) -> Choice:
    """What a run learns beside the subject: the choice, or nothing where backbone pictures have no strength."""
    choice = Choice.load(run.choice)
    return choice if settings.strength else Choice("none", (), 0)


def _check_resume(run: Run, checkpoint: Path, settings: TrainingSettings, backbone: Backbone) -> None:
    """Raises UserError where a run cannot go on from its checkpoint, before anything of it is changed."""
    check_backbone(checkpoint, backbone)
    start = int(checkpoint.name.removeprefix(STEP))
    if start > settings.steps:
        raise UserError(f"This run has {start} steps behind it: resume it for that many or more.")
    if run.learned_from.is_file() and Choice.load(run.learned_from) != _learned(run, settings):
        raise UserError("Other pictures are taken now than when this run began: begin anew, without going on.")
    before = run.remembered(TrainingSettings)
    for field in fields(TrainingSettings):
        was, given = getattr(before, field.name), getattr(settings, field.name)
        if was != given and field.name not in ("steps", "checkpoint_every"):
            name = field.name.replace("_", " ")
            raise UserError(f"This run was begun with {name} {was}: resume it with the same, or begin anew for {given}.")


def run_generation(
    run: Run,
    backbone: Backbone,
    prompts: Sequence[str],
    settings: GenerationSettings,
    progress: Progress = silent,
    compare: bool = True,
) -> list[Path]:
    """Draw `settings.num_images` samples, shared out among the prompts, and save them with a contact sheet.

    samples/*.png are the pictures, samples/without/*.png the same prompts and seeds without the adapter (if `compare`),
    samples.json says which is which; those of before are put aside.  Raises UserError for more prompts than samples.
    """
    clock, prompts = Clock(), settings.prompts_of_samples(prompts)
    backbone.warn_of_long([*prompts, settings.negative_prompt])
    pictures = generate(backbone, prompts, settings, run.lora, progress)
    clock.lap("with_adapter")
    without = generate(backbone, prompts, settings, None, progress) if compare else []
    clock.lap("without_adapter")
    put_aside(run)
    (run.samples / "without").mkdir(parents=True)
    names = [f"{i:03d}.png" for i in range(len(pictures))]
    for name, picture in zip(names, pictures):
        picture.save(run.samples / name)
    for name, picture in zip(names, without):
        picture.save(run.samples / "without" / name)
    rows = [("with the adapter", pictures)] + ([("without", without)] if compare else [])
    contact_sheet(rows).save(run.folder / "contact_sheet.png")
    listing = [{"file": n, "prompt": p, "seed": settings.seed + i} for i, (n, p) in enumerate(zip(names, prompts))]
    write_json(run.samples / LISTING, listing)
    run.add_to_report("generation", {"settings": settings, "samples": listing, "seconds": clock.seconds})
    return [run.samples / name for name in names]


def encode_chosen(backbone: Backbone, run: Run, choice: Choice, progress: Progress = silent) -> Encoded | None:
    """The chosen backbone pictures and the run's own ones, ready for training; None if there are none."""
    chosen = choice.chosen
    if not chosen:
        return None
    place, store = choice.store.get("place"), None
    if any(c.origin != OWN for c in chosen):
        store = Store.open(place) if place else open_store(backbone, progress)
    pictures = pictures_of(run, chosen, store)
    weights = torch.tensor([c.weight for c in chosen])
    return backbone.encode(pictures, [c.caption for c in chosen], weights, bucketed=backbone.photos)


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 2)

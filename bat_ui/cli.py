"""The command line: the verbs of the line, headless.  `python -m bat_ui VERB --help` says what each one takes.

In: arguments, which are the settings' fields by name.  Out: a project folder; progress on stderr.  A problem that the
user can solve is one sentence on stderr and exit code 2, never a traceback.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from bat_ui.errors import UserError, explained
from bat_ui.options import build_parser, settings_of
from bat_ui.reporter import PictureBar, Reporter, Stopped
from bat_ui.settings import BackboneSettings, GenerationSettings, SelectionSettings, TrainingSettings, ValidationSettings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    args = build_parser().parse_args(words)
    args.words = words
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("bat_ui").setLevel(logging.INFO)
    try:
        return VERBS[args.verb](args) or 0
    except Stopped:
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as problem:
        said = explained(problem)
        if said is None:
            raise
        print(f"error: {said}", file=sys.stderr)
        return 2


def _personalize(args: argparse.Namespace) -> None:
    from bat_ui import line  # here and below: heavy imports only for the verbs that need them

    project, backbone = _prepare(args)
    settings_of(GenerationSettings, args, backbone).prompts_of_samples(args.prompts or [])  # before hours of training
    training = settings_of(TrainingSettings, args, backbone)
    with Reporter(project, "select") as report:
        line.select(project, backbone, settings_of(SelectionSettings, args, backbone), training, report)
    if _run_training(project, backbone, args):
        _draw(project, backbone, args)


def _select(args: argparse.Namespace) -> None:
    from bat_ui import line
    from bat_ui.project import Project

    if Project(args.subject).subject_marker.is_file():
        if args.class_noun or args.out or args.cut_out:
            raise UserError("--class-noun, --out and --cut-out go with a folder of pictures: leave them out for a project.")
        project = Project(args.subject)
        backbone = _load(args, project, search=True)
    elif not args.class_noun or not args.out:
        raise UserError("Give --class-noun and --out with a folder of pictures.")
    else:
        project, backbone = _prepare(args)
    with Reporter(project, "select") as report:
        training = settings_of(TrainingSettings, args, backbone)
        line.select(project, backbone, settings_of(SelectionSettings, args, backbone), training, report)


def _choose(args: argparse.Namespace) -> None:
    """Change the choice by hand, all of it or nothing, and print what is taken; or print what was found in the store."""
    from bat_ui import additions, history
    from bat_ui.backbones import clip_of
    from bat_ui.choice import Choice, mark, predicted_error, revise
    from bat_ui.subject import template_of

    project = _project(args)
    if args.undo and history.undo(project) is None:
        raise UserError("There is nothing to undo: no change by hand since the selection.")
    before = choice = Choice.load(project.choice)
    model = _model(args, project)
    clip = additions.clip_model(model.clip or clip_of(model.backbone)) if args.find or args.add or args.own else None
    if args.find:
        template = template_of(model.backbone)
        for found in additions.search_store(additions.store_of(choice), clip, args.find, template=template):
            print(f"{found.id}  {found.similarity:.3f}  {found.caption}")
        return
    if args.drop:
        choice = mark(choice, args.drop, False, project.sketches)
    if args.keep:
        choice = mark(choice, args.keep, True, project.sketches)
    if args.number:
        if args.number != "suggested" and not args.number.isdecimal():
            raise UserError("Say how many to take: --number M, such as --number 40, or --number suggested.")
        number = None if args.number == "suggested" else int(args.number)
        choice = revise(choice, project.sketches, dropped=choice.dropped, kept=choice.kept, num_backbone=number)
    for picture in args.add:
        choice = additions.add_from_store(project, choice, additions.store_of(choice), clip, picture)
    if args.own:
        choice, problems = additions.add_own(project, choice, clip, args.own, args.caption)
        for problem in problems:
            print(f"note: {problem}", file=sys.stderr)
    history.save_change(project, before, choice)
    for c in choice.chosen:
        print(f"{c.id}  {c.caption}  ({choice.reason(c)})")
    error = predicted_error(choice, project.sketches)
    said = "" if error is None else f", predicted error {error:.1%} of that without any"
    print(f"{len(choice.chosen)} of {len(choice.candidates)} taken{said}", file=sys.stderr)


def _train(args: argparse.Namespace) -> None:
    from bat_ui.training.processes import launch, launched, leaving

    if args.processes > 1 and not launched():
        _project(args)  # complains of a folder that is none once and not in every process
        launch(args.processes, args.words)
    project, backbone = _open(args)
    with leaving():
        _run_training(project, backbone, args, args.resume)


def _run_training(run, backbone, args: argparse.Namespace, resume: bool = False) -> bool:
    """False if it was stopped before its end."""
    from bat_ui import line
    from bat_ui.training.processes import processes

    kinds = (TrainingSettings, ValidationSettings)
    training, validation = (settings_of(kind, args, backbone, run.remembered(kind) if resume else None) for kind in kinds)
    if not processes().is_main:  # of several that a launcher started; the main one tells and stops
        return line.run_training(run, backbone, training, resume=resume)
    with Reporter(run, "train") as report:
        report.finished = line.run_training(run, backbone, training, report, report.stop_asked, resume, validation)
    if not report.finished:
        print(f"Stopped and saved. `python -m bat_ui train {run.folder} --resume` goes on from here.", file=sys.stderr)
    return report.finished


def _generate(args: argparse.Namespace) -> None:
    project, backbone = _open(args)
    _draw(project, backbone, args)


def _checkpoint(args: argparse.Namespace) -> None:
    """Print what each checkpoint measured, the recommended one and why, and put one to use where that is asked for."""
    from bat_ui.adapters import saved_steps, use_checkpoint, used_step
    from bat_ui.comparison import recommendation
    from bat_ui.files import read_json_lines
    from bat_ui.validation import METRICS

    project = _project(args)
    found = recommendation(project)
    if args.use:
        step = found.step if args.use == "recommended" else args.use
        if step is None:
            raise UserError(f"None can be recommended. {found.why}")
        if not str(step).isdecimal():
            raise UserError("Say which one to use: --use STEP, such as --use 200, or --use recommended.")
        use_checkpoint(project, int(step))
    measured = {row["step"]: row for row in read_json_lines(project.metrics)}
    print(f"{'step':>8}" + "".join(f"{name:>12}" for name in METRICS))
    for step in sorted({*measured, *saved_steps(project)}):
        row = measured.get(step, {})
        values = "".join(f"{row[key]:>12.3f}" if row.get(key) is not None else f"{'-':>12}" for key in METRICS)
        marks = [word for word, at in (("recommended", found.step), ("in use", used_step(project))) if at == step]
        print(f"{step:>8}{values}  {', '.join(marks)}".rstrip())
    print("\n".join((found.why, *found.cautions)), file=sys.stderr)


def _export(args: argparse.Namespace) -> int:
    import torch

    from bat_ui.export import export, packed

    project = _project(args)
    # Names and matrices are compared, nothing is computed: a training may have the GPU and most of the memory.
    small = {"device": "cpu", "dtype": torch.bfloat16}
    with Reporter(project, "export") as report:
        report(f"Preparing {args.format}", 0, 1)
        folder, checks = export(project, args.format, args.to, lambda: _load(args, project, **small), args.zip)
        if args.zip:
            packed(folder, checks)
    for check in checks:
        print(f"{'loads in' if check.ok else 'DOES NOT LOAD in'} {check.tool}: {check.found}", file=sys.stderr)
    print(folder)
    return 0 if all(check.ok for check in checks) else 1


def _build_sticker(args: argparse.Namespace) -> None:
    from bat_ui.backbones import ASSETS
    from bat_ui.backbones.sticker.build import BuildSettings, build_sticker, export, unpack

    out = args.out or ASSETS / "sticker"
    if args.snapshot:
        return export(args.work, out)
    if args.built and not (args.work / "unet").exists():
        unpack(args.built, args.work)
    build_sticker(BuildSettings(*(args.minutes or ()), seed=args.seed), args.work, out)


def _ingest(args: argparse.Namespace) -> None:
    from bat_ui.backbones import clip_of
    from bat_ui.backbones.hub import needed_clip_downloads
    from bat_ui.clip_space import ClipSpace
    from bat_ui.hardware import best_device
    from bat_ui.store.catalogue import is_upload, opened_source, place_to_write
    from bat_ui.store.ingest import ingest

    model, place = args.clip or clip_of(args.backbone), place_to_write(args.store)
    fetch(needed_clip_downloads(model), args.download)
    clip = ClipSpace.load(model, best_device())
    names = ("name", "title", "licence", "caption_column", "image_column", "split", "link", "proxy", "engine", "workers")
    given = {name: getattr(args, name) for name in names}
    with _ingest_progress(args.project) as progress, opened_source(args.source) as source:
        if source != args.source:  # unpacked: what it is called is not where it lies
            if args.link:
                raise UserError("A zip is unpacked for a while only: unpack it yourself, or leave out --link.")
            given["name"] = given["name"] or Path(args.source).stem
            given["address"] = "an upload" if is_upload(args.source) else str(Path(args.source).absolute())
        try:
            report = ingest(source, place, clip, **given, progress=progress)
        except KeyboardInterrupt:
            print("Stopped. What was read so far stays; the same command goes on from there.", file=sys.stderr)
            raise
        changes = [f"{report.replaced} took the place of another file of their name."] if report.replaced else []
        if report.recaptioned:
            changes.append(f"Corrected captions: {report.recaptioned}.")
        sums = f"{report.info.title}: {report.added} new pictures, {report.info.count} in all."
        progress.said = " ".join([sums, *changes])
        if report.broken:
            file, reason = next(iter(report.broken.items()))
            progress.said += f" {len(report.broken)} could not be used; the first, {file}: {reason}"
    info = report.info
    print(
        f"{info.title}: {info.count} pictures, {report.added} of them new; {report.known} of the source were there before."
    )
    for change in changes:
        print(change)
    print(f"Twice in the store: {report.exact} exact copies, {report.near} near ones.")
    if report.broken:
        print(f"Not usable: {len(report.broken)}, listed with the reason in broken.csv in the store. The first ones:")
        for file, reason in list(report.broken.items())[:5]:
            print(f"  {file}: {reason}")


def _ingest_progress(folder: Path | None):
    """A Progress as a context: for a page's project its status file, else a bar that counts pictures."""
    from bat_ui.project import Project

    return Reporter(Project(folder), "ingest") if folder else PictureBar()


def _evaluate(args: argparse.Namespace) -> None:
    from bat_ui.evaluation.command import evaluate

    evaluate(args, " ".join(["python -m bat_ui", *sys.argv[1:]]), lambda: _load(args, search=True))


def _prepare(args: argparse.Namespace):
    from bat_ui import line
    from bat_ui.project import Project
    from bat_ui.subject import subject_files, subject_warnings

    sources = subject_files(args.subject)
    project, backbone = Project(args.out), _load(args, search=True)
    for kind in (SelectionSettings, TrainingSettings, ValidationSettings, GenerationSettings):
        settings_of(kind, args, backbone)  # before anything is written
    subject = line.prepare(
        project,
        sources,
        args.class_noun,
        template=backbone.caption_template,
        square=not backbone.photos,
        size=max(512, backbone.resolution),
        cut_out=args.cut_out,
        identifier=args.identifier,
    )
    for warning in subject_warnings(subject, backbone.resolution):
        print(f"note: {warning}", file=sys.stderr)
    return project, backbone


def _open(args: argparse.Namespace):
    project = _project(args)
    return project, _load(args, project)


def _project(args: argparse.Namespace):
    from bat_ui.project import Project

    project = Project(args.project)
    if not project.subject_marker.is_file():
        raise UserError(f"There is no project in {args.project}: make one with `python -m bat_ui select`.")
    return project


def _model(args: argparse.Namespace, project=None) -> BackboneSettings:
    """The model that the options name; what they leave out is the project's, unless they name another backbone."""
    remembered = project.remembered(BackboneSettings) if project and not args.backbone else BackboneSettings()
    names = (field.name for field in fields(BackboneSettings))
    return replace(remembered, **{name: value for name in names if (value := getattr(args, name)) is not None})


def _load(args: argparse.Namespace, project=None, search: bool = False, **options):
    """The backbone that `_model` names, with `search` its CLIP model, too; what is missing is fetched by consent."""
    from bat_ui.backbones import load_backbone, needed_downloads

    model = _model(args, project)
    fetch(needed_downloads(model.backbone, model.clip, search), args.download)
    return load_backbone(model.backbone, clip=model.clip, prediction=model.prediction, memory=args.memory, **options)


def fetch(downloads: Sequence, agreed: bool) -> None:
    """Fetch what is missing, after a question unless `agreed`.  Raises UserError without consent, or somebody to ask."""
    for download in downloads:
        if not agreed and not sys.stdin.isatty():
            raise UserError(f"{download.question} Run again with --download to agree.")
        if not agreed and input(f"{download.question} [y/N] ").strip().lower() not in ("y", "yes"):
            raise UserError(f"Nothing was fetched, so {download.name} cannot be used: choose another backbone.")
        download.run()


def _draw(project, backbone, args: argparse.Namespace) -> None:
    from bat_ui import line
    from bat_ui.subject import Subject

    settings = settings_of(GenerationSettings, args, backbone)
    prompts = args.prompts or list(dict.fromkeys(Subject.load(project.subject).captions))[: settings.num_images]
    with Reporter(project, "generate") as report:
        line.run_generation(project, backbone, prompts, settings, report)


VERBS = {
    "personalize": _personalize,
    "select": _select,
    "choose": _choose,
    "train": _train,
    "generate": _generate,
    "checkpoint": _checkpoint,
    "export": _export,
    "evaluate": _evaluate,
    "ingest": _ingest,
    "build-sticker": _build_sticker,
}

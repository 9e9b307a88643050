"""The command line: the verbs of the line, headless.  `python -m bat_ui VERB --help` says what each one takes.

In: arguments, which are the settings' fields by name.  Out: a project folder; progress on stderr.  A problem that the
user can solve is one sentence on stderr and exit code 2, never a traceback.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path

from tqdm import tqdm

from bat_ui.errors import UserError, explained
from bat_ui.presets import MEMORY
from bat_ui.settings import (
    EXPORTS,
    FOR_PHOTOS,
    PREDICTIONS,
    RULES,
    GenerationSettings,
    SelectionSettings,
    TrainingSettings,
    ValidationSettings,
    defaults,
)

HELP = {
    "rule": f"how backbone pictures are chosen: {', '.join(RULES)}",
    "num_backbone": "backbone pictures to take; as many as the predicted-error curve suggests if left out",
    "shortlist": "candidates that are sketched",
    "surrogate_steps": "training steps of the surrogate",
    "draws": "timesteps and noises for each sketch",
    "sketch_size": "numbers that a LoRA gradient is projected to",
    "steps": "training steps",
    "rank": "LoRA rank",
    "learning_rate": "learning rate of the adapter",
    "batch_size": "pictures in a training step",
    "backbone_share": "part of each batch that is backbone pictures",
    "strength": "weight of the backbone pictures' loss (lambda)",
    "checkpoint_every": "steps between checkpoints",
    "validation_prompts": "what is drawn at each checkpoint, one prompt a line or between |; else the first captions",
    "validation_images": "pictures of each such prompt, 0 for none",
    "validation_steps": "denoising steps of each such picture",
    "num_images": "samples to draw, shared out among the prompts",
    "guidance": "how strictly samples follow the prompt",
    "sampling_steps": "denoising steps of a sample",
    "adapter_scale": "strength of the adapter in samples, 1 as trained",
    "seed": "seed of everything that is random",
    "store": "choose from this ingested store, by name or place, not the backbone's own",
    "text_encoder": "let the text encoder learn, too",
}


EVALUATE_LISTS = {
    "rules": "rules to run (default: all)",
    "subjects": "families, or style/family (default: the suite's 12)",
    "seeds": "seeds (default: 0,1,2)",
    "steps": "steps to measure at (default: 25,50,100,200,400)",
    "sample-steps": "steps that draw samples too, which takes as long as all else (default: all steps)",
    "numbers": "backbone pictures to take, 'all' for a rule's own suggestion (default: as tuned, or 40)",
    "strengths": "weights lambda of the backbone pictures (default: as tuned, or 1)",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    args = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("bat_ui").setLevel(logging.INFO)
    try:
        return args.run(args) or 0
    except _Stopped:
        return 128 + signal.SIGTERM
    except Exception as problem:
        said = explained(problem)
        if said is None:
            raise
        print(f"error: {said}", file=sys.stderr)
        return 2


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = argparse.ArgumentParser(prog="python -m bat_ui", description="Personalize an image model from a few photos.")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    whole = _verb(verbs, "personalize", _personalize, "from a folder of pictures to samples")
    _add_subject(whole)
    _add_settings(whole, SelectionSettings, TrainingSettings, ValidationSettings, GenerationSettings)
    _add_prompts(whole)

    select = _verb(verbs, "select", _select, "choose backbone pictures for a folder of pictures, or again for a project")
    _add_subject(select, required=False)
    _add_settings(select, SelectionSettings, TrainingSettings)

    train = _verb(verbs, "train", _train, "train the adapter of a project")
    train.add_argument("project", type=Path, help="folder that `select` wrote")
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint, with the same settings")
    _add_settings(train, TrainingSettings, ValidationSettings)

    generate = _verb(verbs, "generate", _generate, "draw samples with a project's adapter")
    generate.add_argument("project", type=Path, help="folder that `train` wrote")
    _add_settings(generate, GenerationSettings)
    _add_prompts(generate)

    checkpoint = _verb(verbs, "checkpoint", _checkpoint, "compare the checkpoints of a project, and put one to use")
    checkpoint.add_argument("project", type=Path, help="folder that `train` wrote")
    checkpoint.add_argument("--use", metavar="STEP", help="make the adapter of this step the project's, or `recommended`")

    export = _verb(verbs, "export", _export, "write a project's adapter or selection for other tools")
    export.add_argument("project", type=Path, help="folder that `train`, or for a training set `select`, wrote")
    export.add_argument("--format", choices=EXPORTS, required=True, help="for which tool")
    export.add_argument("--to", type=Path, help="folder to write (default: PROJECT/exports/FORMAT)")
    export.add_argument("--zip", action="store_true", help="write FOLDER.zip beside it, too, for another machine")

    for verb in (whole, select, train, generate, export):
        _add_backbone(verb)

    _add_evaluate(verbs)
    _add_ingest(verbs)

    build = _verb(verbs, "build-sticker", _build_sticker, "make the sticker backbone from the picture packages")
    build.add_argument(
        "--minutes", nargs=4, type=float, metavar=("CLIP", "IMAGE", "AUTOENCODER", "UNET"), help="of each stage"
    )
    build.add_argument("--seed", type=int, default=0)
    build.add_argument("--work", type=Path, default=Path("build/sticker"), help="where the stages keep their state")
    build.add_argument("--out", type=Path, help="where the weights go (default: assets/sticker)")
    build.add_argument("--from", type=Path, dest="built", metavar="DIR", help="built weights whose UNet is trained further")
    build.add_argument("--snapshot", action="store_true", help="only write the weights as they are by now")
    return parser


def _add_evaluate(verbs) -> None:
    verb = _verb(verbs, "evaluate", _evaluate, "compare the rules on held-out subjects and write the report")
    verb.add_argument("--out", type=Path, help="where results.jsonl and the report go (default: docs/evidence)")
    verb.add_argument("--cache", type=Path, default=Path("runs/evidence"), help="where sketches and samples are kept")
    _add_backbone(verb)
    for name, text in EVALUATE_LISTS.items():
        verb.add_argument(f"--{name}", metavar="A,B", help=text)
    verb.add_argument("--shard", metavar="I/N", help="run part I of N; parts may share the results file")
    verb.add_argument("--tune", action="store_true", help="run the grid of numbers and weights on the tuning subjects")
    verb.add_argument("--photos", type=Path, metavar="DIR", help="a folder of photos as the only subject")
    verb.add_argument("--class-noun", help="what the photos show")
    verb.add_argument("--no-generation", action="store_true", help="measure losses only, which is much cheaper")
    verb.add_argument("--no-prediction", action="store_true", help="predict no errors, so that plain rules need no sketches")
    verb.add_argument("--variant", default="", help="a name that tells a changed method's rows from others")
    verb.add_argument("--quick", action="store_true", help="two subjects, one seed and few steps, only to see it work")
    verb.add_argument("--report", action="store_true", help="run nothing, only write the report")
    left_out = ("rule", "num_backbone", "store", "steps", "strength", "checkpoint_every", "seed", "text_encoder")
    _add_settings(verb, SelectionSettings, TrainingSettings, leave_out=left_out)


def _add_ingest(verbs) -> None:
    verb = _verb(verbs, "ingest", _ingest, "put captioned pictures into a store that `select --store` chooses from")
    verb.add_argument(
        "source", metavar="SOURCE", help="folder, .zip, .tar shards, .parquet, s3://..., or a Hugging Face OWNER/NAME"
    )
    verb.add_argument("--project", type=Path, help=argparse.SUPPRESS)  # whose page asked for it and looks at its status
    verb.add_argument("--store", metavar="S", required=True, help="name of the store, or a folder or s3://... for it")
    verb.add_argument("--backbone", default="sticker", help="the backbone whose CLIP model is taken (default: %(default)s)")
    verb.add_argument("--clip", metavar="MODEL", help="another CLIP model: an open_clip NAME:TAG or a folder")
    verb.add_argument("--download", action="store_true", help="fetch weights that are missing, without a question")
    verb.add_argument("--name", help="what the ids of these pictures begin with (default: the source's last word)")
    verb.add_argument("--title", help="the store's title, for people")
    verb.add_argument("--licence", default="not stated", help="licence of these pictures, for people (default: %(default)s)")
    verb.add_argument("--caption-column", metavar="C", help="where captions are, if it is not found")
    verb.add_argument("--image-column", metavar="C", help="where pictures are in a table, if it is not found")
    verb.add_argument("--split", default="train", help="split of a Hugging Face dataset (default: %(default)s)")
    verb.add_argument("--link", action="store_true", help="leave the pictures of a folder where they are")
    verb.add_argument(
        "--proxy", action="store_true", help="label the store: it stands in for training data that is not public"
    )
    verb.add_argument(
        "--engine", default="local", choices=("local", "ray"), help="what does the work (default: %(default)s)"
    )
    verb.add_argument("--workers", type=int, metavar="N", help="threads that decode, or Ray's encoders (default: by cores)")


def _verb(verbs, name: str, run: Callable, text: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def _add_backbone(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("backbone")
    text = "sticker, sd15, sd21, sdxl, a diffusers folder, a .safetensors file or OWNER/NAME on the Hugging Face hub"
    group.add_argument("--backbone", default="sticker", help=f"the backbone to adapt: {text} (default: %(default)s)")
    group.add_argument("--clip", metavar="MODEL", help="the CLIP model to search with: an open_clip NAME:TAG or a folder")
    group.add_argument("--prediction", choices=PREDICTIONS, help="what a single file's UNet predicts, if it is misjudged")
    group.add_argument(
        "--memory", choices=MEMORY, default="auto", help="gigabytes of graphics memory to get by with (default: %(default)s)"
    )
    group.add_argument("--download", action="store_true", help="fetch weights that are missing, without a question")


def _add_subject(parser: argparse.ArgumentParser, required: bool = True) -> None:
    parser.add_argument("subject", type=Path, metavar="SUBJECT_DIR", help="folder of pictures, captions in NAME.txt")
    parser.add_argument("--class-noun", required=required, help='what the subject is, such as "cat"')
    parser.add_argument("--out", type=Path, required=required, help="project folder to write")
    parser.add_argument("--identifier", default="sks", help="the word that is to mean the subject (default: %(default)s)")
    parser.add_argument("--cut-out", action="store_true", help="cut the subject out onto white")


def _add_prompts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", action="append", dest="prompts", metavar="P", help="may be given several times")


def _add_settings(parser: argparse.ArgumentParser, *kinds: type, leave_out: Sequence[str] = ()) -> None:
    """One option for each field; sampling steps have a name of their own, a seed is shared by all.

    An option that is not given is absent from the parsed arguments, so that defaults may come from elsewhere.
    """
    group = parser.add_argument_group("settings")
    for kind in kinds:
        for field in fields(kind):
            name = option_name(kind, field.name)
            if name in leave_out or any(action.dest == name for action in group._group_actions):
                continue
            default, photos = field.default, FOR_PHOTOS.get(kind, {}).get(field.name)
            switch = {"type": _yes_or_no, "nargs": "?", "const": True, "metavar": "YES"}
            said = f"{default}, for photographs {photos}" if photos else default
            group.add_argument(
                "--" + name.replace("_", "-"),
                dest=name,
                default=argparse.SUPPRESS,  # what is left out depends on the backbone, or on the run that is resumed
                choices=RULES if name == "rule" else None,
                help=HELP[name] + ("" if default in (None, "") else f" (default: {said})"),
                **(switch if isinstance(default, bool) else {"type": int if default is None else type(default)}),
            )


def _yes_or_no(text: str) -> bool:
    if text.lower() not in ("yes", "true", "1", "no", "false", "0"):
        raise argparse.ArgumentTypeError(f"say yes or no, not {text}")
    return text.lower() in ("yes", "true", "1")


def option_name(kind: type, name: str) -> str:
    """The option, with underscores, that sets the field `name` of the settings `kind`."""
    return "sampling_steps" if kind is GenerationSettings and name == "steps" else name


def _settings(kind: type, args: argparse.Namespace, backbone, otherwise=None):
    """The settings that the options say; what they leave out is as in `otherwise`, else as suits the backbone."""
    names = {field.name: option_name(kind, field.name) for field in fields(kind)}
    given = {field: getattr(args, name) for field, name in names.items() if hasattr(args, name)}
    return replace(otherwise or defaults(kind, backbone.photos), **given)


def _personalize(args: argparse.Namespace) -> None:
    from bat_ui import line  # here and below: heavy imports only for the verbs that need them

    project, backbone = _prepare(args)
    training = _settings(TrainingSettings, args, backbone)
    with _Reporter(project, "select") as report:
        line.select(project, backbone, _settings(SelectionSettings, args, backbone), training, report)
    _run_training(project, backbone, args)
    _draw(project, backbone, args)


def _select(args: argparse.Namespace) -> None:
    from bat_ui import line
    from bat_ui.project import Project

    if Project(args.subject).subject_marker.is_file():
        project, backbone = Project(args.subject), _load(args, search=True)
    elif not args.class_noun or not args.out:
        raise UserError("Give --class-noun and --out with a folder of pictures.")
    else:
        project, backbone = _prepare(args)
    with _Reporter(project, "select") as report:
        training = _settings(TrainingSettings, args, backbone)
        line.select(project, backbone, _settings(SelectionSettings, args, backbone), training, report)


def _train(args: argparse.Namespace) -> None:
    project, backbone = _open(args)
    _run_training(project, backbone, args, args.resume)


def _run_training(run, backbone, args: argparse.Namespace, resume: bool = False) -> None:
    from bat_ui import line
    from bat_ui.training.processes import processes

    kinds = (TrainingSettings, ValidationSettings)
    training, validation = (_settings(kind, args, backbone, run.remembered(kind) if resume else None) for kind in kinds)
    if not processes().is_main:  # of several that `accelerate launch` started; the main one tells and stops
        line.run_training(run, backbone, training, resume=resume)
        return
    with _Reporter(run, "train") as report:
        report.finished = line.run_training(run, backbone, training, report, report.stop_asked, resume, validation)


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
    from bat_ui.export import export, packed

    project = _project(args)
    with _Reporter(project, "export") as report:
        report(f"Preparing {args.format}", 0, 1)
        folder, checks = export(project, args.format, args.to, lambda: _load(args))
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
    from bat_ui.backbones.hub import needed_clip_download
    from bat_ui.clip_space import ClipSpace
    from bat_ui.hardware import best_device
    from bat_ui.store.catalogue import opened_source, store_place
    from bat_ui.store.ingest import ingest

    model = args.clip or clip_of(args.backbone)
    _fetch([download for download in [needed_clip_download(model)] if download], args.download)
    clip = ClipSpace.load(model, best_device())
    names = ("name", "title", "licence", "caption_column", "image_column", "split", "link", "proxy", "engine", "workers")
    given = {name: getattr(args, name) for name in names}
    with _ingest_progress(args.project) as progress, opened_source(args.source) as source:
        if source != args.source:  # unpacked: what it is called is not where it lies
            given["name"] = given["name"] or Path(args.source).stem
        report = ingest(source, store_place(args.store), clip, **given, progress=progress)
        progress.said = f"{report.info.title}: {report.added} new pictures, {report.info.count} in all."
        if report.broken:
            file, reason = next(iter(report.broken.items()))
            progress.said += f" {len(report.broken)} could not be used; the first, {file}: {reason}"
    info = report.info
    print(
        f"{info.title}: {info.count} pictures, {report.added} of them new; {report.known} of the source were there before."
    )
    print(f"Twice in the store: {report.exact} exact copies, {report.near} near ones.")
    if report.broken:
        print(f"Not usable: {len(report.broken)}, listed with the reason in broken.csv in the store. The first ones:")
        for file, reason in list(report.broken.items())[:5]:
            print(f"  {file}: {reason}")


def _ingest_progress(folder: Path | None):
    """A Progress as a context: for a page's project its status file, else a bar that counts pictures."""
    from bat_ui.project import Project

    return _Reporter(Project(folder), "ingest") if folder else _PictureBar()


def _evaluate(args: argparse.Namespace) -> None:
    from bat_ui.evaluation.command import evaluate

    evaluate(args, " ".join(["python -m bat_ui", *sys.argv[1:]]), lambda: _load(args, search=True))


def _prepare(args: argparse.Namespace):
    from bat_ui import line
    from bat_ui.project import Project
    from bat_ui.subject import subject_files, subject_warnings

    sources = subject_files(args.subject)
    project, backbone = Project(args.out), _load(args, search=True)
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
    return _project(args), _load(args)


def _project(args: argparse.Namespace):
    from bat_ui.project import Project

    project = Project(args.project)
    if not project.subject_marker.is_file():
        raise UserError(f"There is no project in {args.project}: make one with `python -m bat_ui select`.")
    return project


def _load(args: argparse.Namespace, search: bool = False):
    """The backbone that the options name, with `search` its CLIP model, too; what is missing is fetched by consent."""
    from bat_ui.backbones import load_backbone, needed_downloads

    _fetch(needed_downloads(args.backbone, args.clip, search), args.download)
    return load_backbone(args.backbone, clip=args.clip, prediction=args.prediction, memory=args.memory)


def _fetch(downloads: Sequence, agreed: bool) -> None:
    for download in downloads:
        if not agreed and not sys.stdin.isatty():
            raise UserError(f"{download.question} Run again with --download to agree.")
        if not agreed and input(f"{download.question} [y/N] ").strip().lower() not in ("y", "yes"):
            raise UserError(f"Nothing was fetched, so {download.name} cannot be used: choose another backbone.")
        download.run()


def _draw(project, backbone, args: argparse.Namespace) -> None:
    from bat_ui import line
    from bat_ui.subject import Subject

    prompts = args.prompts or list(dict.fromkeys(Subject.load(project.subject).captions))
    with _Reporter(project, "generate") as report:
        line.run_generation(project, backbone, prompts, _settings(GenerationSettings, args, backbone), report)


class _PictureBar:
    """A Progress that draws one bar on stderr, of pictures whose number is an estimate."""

    said = ""

    def __enter__(self) -> _PictureBar:
        self.bar = tqdm(unit="picture", mininterval=1)
        return self

    def __exit__(self, *problem) -> None:
        self.bar.close()

    def __call__(self, what: str, done: int, total: int) -> None:
        if what == "Ingesting":
            self.bar.total = total or None
            self.bar.update(done - self.bar.n)
        self.bar.set_description(what)


class _Stopped(Exception):
    """A verb was asked to stop that has nothing to save."""


class _Reporter:
    """A Progress that draws bars on stderr and keeps the verb's status file; SIGTERM asks the verb to stop.

    Training saves what it has and ends by itself; the other verbs are left at their next sign of progress.
    """

    def __init__(self, project, verb: str):
        from bat_ui.project import StatusWriter

        self.project, self.verb = project, verb
        self.status = StatusWriter(project, verb)
        self.what, self.bar = "", None
        self.asked = False
        self.finished = True
        self.said = ""  # about a good end

    def __enter__(self) -> _Reporter:
        self._previous = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, kind, problem, trace) -> None:
        signal.signal(signal.SIGTERM, self._previous)
        if self.bar is not None:
            self.bar.close()
        if kind is None:
            self.status.finish("done" if self.finished else "stopped", self.said)
        elif issubclass(kind, _Stopped):
            self.status.finish("stopped")
        else:
            said = explained(problem) or f"Something unexpected went wrong ({kind.__name__}): see the log."
            with suppress(OSError):  # on a full disk not even this finds room; the page then sees that the process is gone
                self.status.finish("failed", said)

    def __call__(self, what: str, done: int, total: int) -> None:
        self.status(what, done, total)
        if what != self.what:
            if self.bar is not None:
                self.bar.close()
            self.what, self.bar = what, tqdm(total=total, desc=what, initial=done)
        self.bar.update(done - self.bar.n)
        if self.verb != "train" and self.stop_asked():
            raise _Stopped

    def stop_asked(self) -> bool:
        """True once the process got SIGTERM or the page left a stop file."""
        return self.asked or self.project.stop_file(self.verb).exists()

    def _ask(self, signum: int, frame: object) -> None:
        self.asked = True

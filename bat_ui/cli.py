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
from dataclasses import fields
from pathlib import Path

from tqdm import tqdm

from bat_ui.errors import UserError
from bat_ui.settings import RULES, GenerationSettings, SelectionSettings, TrainingSettings

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
    "num_images": "samples to draw, shared out among the prompts",
    "guidance": "how strictly samples follow the prompt",
    "sampling_steps": "denoising steps of a sample",
    "adapter_scale": "strength of the adapter in samples, 1 as trained",
    "seed": "seed of everything that is random",
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
    except UserError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except _Stopped:
        return 128 + signal.SIGTERM


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = argparse.ArgumentParser(prog="python -m bat_ui", description="Personalize an image model from a few photos.")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    whole = _verb(verbs, "personalize", _personalize, "from a folder of pictures to samples")
    _add_subject(whole)
    _add_settings(whole, SelectionSettings, TrainingSettings, GenerationSettings)
    _add_prompts(whole)

    select = _verb(verbs, "select", _select, "choose backbone pictures for a folder of pictures, or again for a project")
    _add_subject(select, required=False)
    _add_settings(select, SelectionSettings, TrainingSettings)

    train = _verb(verbs, "train", _train, "train the adapter of a project")
    train.add_argument("project", type=Path, help="folder that `select` wrote")
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    _add_settings(train, TrainingSettings)

    generate = _verb(verbs, "generate", _generate, "draw samples with a project's adapter")
    generate.add_argument("project", type=Path, help="folder that `train` wrote")
    _add_settings(generate, GenerationSettings)
    _add_prompts(generate)

    for verb in (whole, select, train, generate):
        verb.add_argument("--backbone", default="sticker", help="the backbone to adapt (default: %(default)s)")

    _add_evaluate(verbs)

    build = _verb(verbs, "build-sticker", _build_sticker, "make the sticker backbone from the picture packages")
    build.add_argument(
        "--minutes", nargs=4, type=float, metavar=("CLIP", "IMAGE", "AUTOENCODER", "UNET"), help="of each stage"
    )
    build.add_argument("--seed", type=int, default=0)
    build.add_argument("--work", type=Path, default=Path("build/sticker"), help="where the stages keep their state")
    build.add_argument("--out", type=Path, help="where the weights go (default: assets/sticker)")
    build.add_argument("--snapshot", action="store_true", help="only write the weights as they are by now")
    return parser


def _add_evaluate(verbs) -> None:
    verb = _verb(verbs, "evaluate", _evaluate, "compare the rules on held-out subjects and write the report")
    verb.add_argument("--out", type=Path, help="where results.jsonl and the report go (default: docs/evidence)")
    verb.add_argument("--cache", type=Path, default=Path("runs/evidence"), help="where sketches and samples are kept")
    verb.add_argument("--backbone", default="sticker", help="the backbone to adapt (default: %(default)s)")
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
    kinds = (SelectionSettings, TrainingSettings)
    _add_settings(verb, *kinds, leave_out=("rule", "num_backbone", "steps", "strength", "checkpoint_every", "seed"))


def _verb(verbs, name: str, run: Callable, text: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def _add_subject(parser: argparse.ArgumentParser, required: bool = True) -> None:
    parser.add_argument("subject", type=Path, metavar="SUBJECT_DIR", help="folder of pictures, captions in NAME.txt")
    parser.add_argument("--class-noun", required=required, help='what the subject is, such as "cat"')
    parser.add_argument("--out", type=Path, required=required, help="project folder to write")
    parser.add_argument("--identifier", default="sks", help="the word that is to mean the subject (default: %(default)s)")
    parser.add_argument("--cut-out", action="store_true", help="cut the subject out onto white")


def _add_prompts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", action="append", dest="prompts", metavar="P", help="may be given several times")


def _add_settings(parser: argparse.ArgumentParser, *kinds: type, leave_out: Sequence[str] = ()) -> None:
    """One option for each field; sampling steps have a name of their own, a seed is shared by all."""
    group = parser.add_argument_group("settings")
    for kind in kinds:
        for field in fields(kind):
            name = option_name(kind, field.name)
            if name in leave_out or any(action.dest == name for action in group._group_actions):
                continue
            default = field.default
            group.add_argument(
                "--" + name.replace("_", "-"),
                dest=name,
                type=int if default is None else type(default),
                default=default,
                choices=RULES if name == "rule" else None,
                help=f"{HELP[name]} (default: %(default)s)",
            )


def option_name(kind: type, name: str) -> str:
    """The option, with underscores, that sets the field `name` of the settings `kind`."""
    return "sampling_steps" if kind is GenerationSettings and name == "steps" else name


def _settings(kind: type, args: argparse.Namespace):
    return kind(**{field.name: getattr(args, option_name(kind, field.name)) for field in fields(kind)})


def _personalize(args: argparse.Namespace) -> None:
    from bat_ui import line  # here and below: heavy imports only for the verbs that need them

    project, backbone = _prepare(args)
    with _Reporter(project, "select") as report:
        line.select(project, backbone, _settings(SelectionSettings, args), _settings(TrainingSettings, args), report)
    with _Reporter(project, "train") as report:
        line.run_training(project, backbone, _settings(TrainingSettings, args), report, report.stop_asked)
    _draw(project, backbone, args)


def _select(args: argparse.Namespace) -> None:
    from bat_ui import line
    from bat_ui.backbones import load_backbone
    from bat_ui.project import Project

    if Project(args.subject).subject_marker.is_file():
        project, backbone = Project(args.subject), load_backbone(args.backbone)
    elif not args.class_noun or not args.out:
        raise UserError("Give --class-noun and --out with a folder of pictures.")
    else:
        project, backbone = _prepare(args)
    with _Reporter(project, "select") as report:
        line.select(project, backbone, _settings(SelectionSettings, args), _settings(TrainingSettings, args), report)


def _train(args: argparse.Namespace) -> None:
    from bat_ui import line

    project, backbone = _open(args)
    with _Reporter(project, "train") as report:
        settings = _settings(TrainingSettings, args)
        report.finished = line.run_training(project, backbone, settings, report, report.stop_asked, args.resume)


def _generate(args: argparse.Namespace) -> None:
    project, backbone = _open(args)
    _draw(project, backbone, args)


def _build_sticker(args: argparse.Namespace) -> None:
    from bat_ui.backbones import ASSETS
    from bat_ui.backbones.sticker.build import BuildSettings, build_sticker, export

    out = args.out or ASSETS / "sticker"
    if args.snapshot:
        return export(args.work, out)
    build_sticker(BuildSettings(*(args.minutes or ()), seed=args.seed), args.work, out)


def _evaluate(args: argparse.Namespace) -> None:
    from bat_ui.evaluation.command import evaluate

    evaluate(args, " ".join(["python -m bat_ui", *sys.argv[1:]]))


def _prepare(args: argparse.Namespace):
    from bat_ui import line
    from bat_ui.backbones import load_backbone
    from bat_ui.project import Project
    from bat_ui.subject import subject_files, subject_warnings

    sources = subject_files(args.subject)
    project, backbone = Project(args.out), load_backbone(args.backbone)
    subject = line.prepare(
        project,
        sources,
        args.class_noun,
        template=backbone.caption_template,
        cut_out=args.cut_out,
        identifier=args.identifier,
    )
    for warning in subject_warnings(subject):
        print(f"note: {warning}", file=sys.stderr)
    return project, backbone


def _open(args: argparse.Namespace):
    from bat_ui.backbones import load_backbone
    from bat_ui.project import Project

    project = Project(args.project)
    if not project.subject_marker.is_file():
        raise UserError(f"There is no project in {args.project}: make one with `python -m bat_ui select`.")
    return project, load_backbone(args.backbone)


def _draw(project, backbone, args: argparse.Namespace) -> None:
    from bat_ui import line
    from bat_ui.subject import Subject

    prompts = args.prompts or list(dict.fromkeys(Subject.load(project.subject).captions))
    with _Reporter(project, "generate") as report:
        line.run_generation(project, backbone, prompts, _settings(GenerationSettings, args), report)


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

    def __enter__(self) -> _Reporter:
        self._previous = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, kind, problem, trace) -> None:
        signal.signal(signal.SIGTERM, self._previous)
        if self.bar is not None:
            self.bar.close()
        if kind is None:
            self.status.finish("done" if self.finished else "stopped")
        elif issubclass(kind, _Stopped):
            self.status.finish("stopped")
        elif issubclass(kind, UserError):
            self.status.finish("failed", str(problem))
        else:
            self.status.finish("failed", f"Something unexpected went wrong ({kind.__name__}): see the log.")

    def __call__(self, what: str, done: int, total: int) -> None:
        self.status(what, done, total)
        if what != self.what:
            if self.bar is not None:
                self.bar.close()
            self.what, self.bar = what, tqdm(total=total, desc=what)
        self.bar.update(done - self.bar.n)
        if self.verb != "train" and self.stop_asked():
            raise _Stopped

    def stop_asked(self) -> bool:
        """True once the process got SIGTERM or the page left a stop file."""
        return self.asked or self.project.stop_file(self.verb).exists()

    def _ask(self, signum: int, frame: object) -> None:
        self.asked = True

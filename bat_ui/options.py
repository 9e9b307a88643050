"""What the command line takes: the verbs' options, most of which are the settings' fields by name.

In: nothing but the settings' own fields.  Out: a parser; from what it parsed, the settings of a stage.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from bat_ui.presets import MEMORY
from bat_ui.settings import (
    EXPORTS,
    FOR_PHOTOS,
    PREDICTIONS,
    RULES,
    SCHEDULES,
    GenerationSettings,
    SelectionSettings,
    TrainingSettings,
    ValidationSettings,
    checked,
    defaults,
)

HELP = {
    "rule": f"how backbone pictures are chosen: {', '.join(RULES)}",
    "num_backbone": "backbone pictures to take; as many as the predicted-error curve suggests if left out",
    "shortlist": "candidates that are sketched",
    "surrogate_steps": "training steps of the surrogate; if left out, until it would learn by heart",
    "draws": "timesteps and noises for each sketch",
    "sketch_size": "numbers that a LoRA gradient is projected to",
    "steps": "training steps",
    "rank": "LoRA rank",
    "learning_rate": "learning rate of the adapter",
    "lr_scheduler": f"how the learning rate goes: {', '.join(SCHEDULES)}",
    "lr_warmup_steps": "steps in which the learning rate rises from zero",
    "batch_size": "pictures in a training step",
    "strength": "of the backbone pictures, times the lambda that the selection suggests",
    "subject_steps": "steps on the subject alone, before backbone pictures come in; if left out, as the selection found",
    "checkpoint_every": "steps between checkpoints",
    "validation_prompts": "what is drawn at each checkpoint, one prompt a line or between |; else the first captions",
    "validation_images": "pictures of each such prompt, 0 for none",
    "validation_steps": "denoising steps of each such picture",
    "num_images": "samples to draw, shared out among the prompts",
    "negative_prompt": "what samples are not to show",
    "guidance": "how strictly samples follow the prompt",
    "sampling_steps": "denoising steps of a sample",
    "adapter_scale": "strength of the adapter in samples, 1 as trained",
    "seed": "seed of everything that is random",
    "store": "choose from this ingested store, by name or place, not the backbone's own",
    "text_encoder": "let the text encoder learn, too",
}

CHOICES = {"rule": RULES, "lr_scheduler": SCHEDULES}

CHOOSE = {
    "drop": "leave these pictures out",
    "keep": "take these pictures, whatever the rule says",
    "add": "take these pictures of the store, which no rule has looked at",
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


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs; `verb` of what it parsed is the verb's name."""
    parser = argparse.ArgumentParser(prog="python -m bat_ui", description="Personalize an image model from a few photos.")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    whole = _verb(verbs, "personalize", "from a folder of pictures to samples")
    _add_subject(whole)
    _add_settings(whole, SelectionSettings, TrainingSettings, ValidationSettings, GenerationSettings)
    _add_prompts(whole)

    select = _verb(verbs, "select", "choose backbone pictures for a folder of pictures, or again for a project")
    _add_subject(select, required=False)
    _add_settings(select, SelectionSettings, TrainingSettings)

    train = _verb(verbs, "train", "train the adapter of a project")
    train.add_argument("project", type=Path, help="folder that `select` wrote")
    train.add_argument(
        "--processes", type=int, default=1, metavar="N", help="share the training out among N processes, a GPU each"
    )
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint, with the same settings")
    _add_settings(train, TrainingSettings, ValidationSettings)

    generate = _verb(verbs, "generate", "draw samples with a project's adapter")
    generate.add_argument("project", type=Path, help="folder that `train` wrote")
    _add_settings(generate, GenerationSettings)
    _add_prompts(generate)

    checkpoint = _verb(verbs, "checkpoint", "compare the checkpoints of a project, and put one to use")
    checkpoint.add_argument("project", type=Path, help="folder that `train` wrote")
    checkpoint.add_argument("--use", metavar="STEP", help="make the adapter of this step the project's, or `recommended`")

    export = _verb(verbs, "export", "write a project's adapter or selection for other tools")
    export.add_argument("project", type=Path, help="folder that `train`, or for a training set `select`, wrote")
    export.add_argument("--format", choices=EXPORTS, required=True, help="for which tool")
    export.add_argument("--to", type=Path, help="folder to write (default: PROJECT/exports/FORMAT)")
    export.add_argument("--zip", action="store_true", help="write FOLDER.zip beside it, too, for another machine")

    choose = _verb(verbs, "choose", "look at the backbone pictures of a project, drop, keep and add some by hand")
    choose.add_argument("project", type=Path, help="folder that `select` wrote")
    choose.add_argument("--number", metavar="M", help="take M of them, or `suggested`: as many as the curve suggests")
    for option, text in CHOOSE.items():
        choose.add_argument(f"--{option}", nargs="+", default=[], metavar="ID", help=text)
    choose.add_argument("--own", nargs="+", type=Path, default=[], metavar="FILE", help="add pictures of your own")
    choose.add_argument("--caption", default="", help="what your own pictures show")
    choose.add_argument("--find", metavar="WORDS", help="list pictures of the store that suit these words")
    choose.add_argument("--undo", action="store_true", help="take the last change back")

    add_backbone(whole)
    for verb in (select, choose, train, generate, export):
        add_backbone(verb, of_project=True)

    _add_evaluate(verbs)
    _add_ingest(verbs)

    build = _verb(verbs, "build-sticker", "make the sticker backbone from the picture packages")
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
    verb = _verb(verbs, "evaluate", "compare the rules on held-out subjects and write the report")
    verb.add_argument("--out", type=Path, help="where results.jsonl and the report go (default: docs/evidence)")
    verb.add_argument("--cache", type=Path, default=Path("runs/evidence"), help="where sketches and samples are kept")
    add_backbone(verb)
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
    verb = _verb(verbs, "ingest", "put captioned pictures into a store that `select --store` chooses from")
    verb.add_argument(
        "source", metavar="SOURCE", help="folder, .zip, .tar shards, .parquet, s3://..., or a Hugging Face OWNER/NAME"
    )
    verb.add_argument("--project", type=Path, help=argparse.SUPPRESS)  # whose page asked for it and looks at its status
    verb.add_argument("--store", metavar="S", required=True, help="name of the store, or ./FOLDER or s3://... for it")
    verb.add_argument("--backbone", default="sticker", help="the backbone whose CLIP model is taken (default: %(default)s)")
    verb.add_argument("--clip", metavar="MODEL", help="another CLIP model: an open_clip NAME:TAG or a folder")
    verb.add_argument("--download", action="store_true", help="fetch weights that are missing, without a question")
    verb.add_argument("--name", help="what the ids of these pictures begin with (default: the source's last word)")
    verb.add_argument("--title", help="the store's title, for people")
    verb.add_argument("--licence", help="licence of these pictures, for people (default: as before, or not stated)")
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
    text = "threads that decode, or Ray's encoders (default: by cores)"
    verb.add_argument("--workers", type=_count, metavar="N", help=text)


def _verb(verbs, name: str, text: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(verb=name)
    return parser


def add_backbone(parser: argparse.ArgumentParser, of_project: bool = False) -> None:
    """The options that name a backbone and how it is loaded; `of_project`, left out they are as a project remembers them."""
    group = parser.add_argument_group("backbone")
    text = "sticker, sd15, sd21, sdxl, a diffusers folder, a .safetensors file or OWNER/NAME on the Hugging Face hub"
    default = "the project's, else sticker" if of_project else "sticker"
    group.add_argument(
        "--backbone", default=None if of_project else "sticker", help=f"the backbone to adapt: {text} (default: {default})"
    )
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
                choices=CHOICES.get(name),
                help=HELP[name] + ("" if default in (None, "") else f" (default: {said})"),
                **(switch if isinstance(default, bool) else {"type": int if default is None else type(default)}),
            )


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"give a number of 1 or more, not {text}")
    return int(text)


def _yes_or_no(text: str) -> bool:
    if text.lower() not in ("yes", "true", "1", "no", "false", "0"):
        raise argparse.ArgumentTypeError(f"say yes or no, not {text}")
    return text.lower() in ("yes", "true", "1")


def option_name(kind: type, name: str) -> str:
    """The option, with underscores, that sets the field `name` of the settings `kind`."""
    return "sampling_steps" if kind is GenerationSettings and name == "steps" else name


def settings_of(kind: type, args: argparse.Namespace, backbone, otherwise=None):
    """The settings that the options say; what they leave out is as in `otherwise`, else as suits the backbone.

    Raises UserError for a number that is too small.
    """
    names = {field.name: option_name(kind, field.name) for field in fields(kind)}
    given = {field: getattr(args, name) for field, name in names.items() if hasattr(args, name)}
    return checked(replace(otherwise or defaults(kind, backbone.photos), **given))

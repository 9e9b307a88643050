"""What `python -m bat_ui evaluate` does: arguments to settings, the suite's jobs, the report.

In: parsed arguments.  Out: results.jsonl, README.md and plots.  Left out on purpose: the options themselves (cli.py).
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

from tqdm import tqdm

from bat_ui.backbones.stable_diffusion import Backbone
from bat_ui.errors import UserError
from bat_ui.evaluation.plan import EvaluationSettings, plan, shard
from bat_ui.evaluation.report import COMMANDS, write_report
from bat_ui.evaluation.results import config_of, read_rows, selection_of
from bat_ui.evaluation.rules import POOLED
from bat_ui.evaluation.suite import run
from bat_ui.settings import SelectionSettings, TrainingSettings

OUT, QUICK_OUT = Path("docs/evidence"), Path("runs/quick-evidence")
QUICK = {"seeds": (0,), "steps": (10, 20), "subjects": ("flat/cat-faces", "outlined/cat-faces"), "loss_draws": 8}
QUICK |= {"prior_pictures": 16, "prior_draws": 2, "sample_steps": ()}
QUICK_SELECTION = {"shortlist": 60, "surrogate_steps": 10, "draws": 2, "sketch_size": 256}


def evaluate(args: Namespace, command: str, load: Callable[[], Backbone]) -> None:
    """Run what is missing and write the report; a shard leaves the report to a later `--report`.

    Raises UserError for options that make no sense.
    """
    settings = settings_of(args)
    out = args.out or (QUICK_OUT if args.quick else OUT)
    results, cache = out / "results.jsonl", args.cache
    if args.photos and not args.class_noun:
        raise UserError("Say with --class-noun what the photos show.")
    if not args.report:
        backbone = load()
        config, selection = config_of(backbone, settings), selection_of(settings)
        mine = [
            r
            for r in read_rows(results)
            if (r["config"], r["variant"]) == (config, settings.variant)
            and (r["rule"] not in POOLED or r["selection"] == selection)
        ]
        jobs = plan(settings, mine, args.photos.name if args.photos else None)
        if args.shard:
            jobs = shard(jobs, *_shard(args.shard))
        _note(out / COMMANDS, command)
        with tqdm(total=len(jobs), unit="run") as bar:
            photos = (args.photos, args.class_noun) if args.photos else None
            run(backbone, settings, jobs, results, cache, _Bar(bar, len(jobs)), photos)
            bar.update(len(jobs) - bar.n)
    if args.report or not args.shard:
        write_report(read_rows(results), out, cache)


def settings_of(args: Namespace) -> EvaluationSettings:
    """The settings that the arguments ask for.  Raises UserError for a list that cannot be read."""
    selection = SelectionSettings(**_named(SelectionSettings, args))
    settings = EvaluationSettings(
        sample_steps=() if args.no_generation else None,
        prediction=not args.no_prediction,
        variant=args.variant,
        tuning=args.tune,
        selection=selection,
        training=replace(EvaluationSettings.training, **_named(TrainingSettings, args)),
    )
    if args.quick:
        settings = replace(settings, **QUICK, selection=replace(selection, **QUICK_SELECTION))
    if args.tune:
        settings = replace(settings, subjects=())
    readers = {"rules": str, "subjects": str, "seeds": int, "steps": int, "sample_steps": int}
    readers |= {"numbers": _number, "strengths": float}
    given = {name: _items(name, getattr(args, name), read) for name, read in readers.items() if getattr(args, name)}
    settings = replace(settings, **given)
    if min(settings.steps) < 1:
        raise UserError("Steps to measure at start at 1; the rule `backbone` is the model before any step.")
    return settings


class _Bar:
    """A Progress for tqdm: the bar counts training runs, its words say what is going on."""

    def __init__(self, bar: tqdm, jobs: int):
        self.bar, self.jobs = bar, jobs

    def __call__(self, what: str, done: int, total: int) -> None:
        if total == self.jobs and done >= self.bar.n and " seed " in what:
            self.bar.update(done - self.bar.n)
        self.bar.set_description(what if " seed " in what else f"{what} {done}/{total}")


def _note(path: Path, command: str) -> None:
    known = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    if command not in known:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(command + "\n")


def _items(name: str, text: str, read: Callable) -> tuple:
    try:
        return tuple(read(item.strip()) for item in text.split(",") if item.strip())
    except ValueError as e:
        raise UserError(f"--{name} is a list with commas, and {text!r} cannot be read as one.") from e


def _number(text: str) -> int | None:
    return None if text == "all" else int(text)


def _shard(text: str) -> tuple[int, int]:
    part, _, count = text.partition("/")
    if not part.isdigit() or not count.isdigit():
        raise UserError("--shard is I/N, such as 1/4.")
    return int(part), int(count)


def _named(kind: type, args: Namespace) -> dict:
    """The fields that cli.py offers as options of the same name; `steps` and `strengths` are lists here."""
    names = {f.name for f in fields(kind)} - {"steps"}
    return {name: getattr(args, name) for name in names if hasattr(args, name)}

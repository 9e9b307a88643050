"""The suite: subjects x rules x seeds, each trained once and measured at several steps of that one run.

In: a backbone, settings, a plan of jobs.  Out: one JSON line a checkpoint in results.jsonl.  A killed run goes on where it
was: a row is known by its key, and none is written twice.  Everything but the choice of pictures is equal for all rules:
optimiser steps, batch size, seeds, and the noise and prompts that measure them.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import torch
from filelock import FileLock
from PIL import Image

from bat_ui.albat.selection import METHOD
from bat_ui.backbones.encoded import Encoded
from bat_ui.backbones.stable_diffusion import Backbone
from bat_ui.errors import UserError
from bat_ui.evaluation import metrics
from bat_ui.evaluation.rules import (
    ABLATIONS,
    FOLDED,
    RULES,
    SKETCHED,
    WITHOUT_NUMBER,
    WITHOUT_PICTURES,
    Pool,
    World,
    choose,
    encode_store,
    make_pool,
    predict,
)
from bat_ui.evaluation.subjects import TUNING_FAMILIES, Case, load_case, photo_case, subject_names
from bat_ui.files import read_json_lines
from bat_ui.generation import generate
from bat_ui.project import Progress, silent
from bat_ui.search import RANDOM_PART, open_store
from bat_ui.settings import GenerationSettings, SelectionSettings, TrainingSettings
from bat_ui.sketching import CLASS_LIKE, PICTURES_PER_GROUP, SUBJECT_DRAWS, SUBJECT_VECTORS
from bat_ui.training.loop import new_optimizer, train
from bat_ui.training.lora import lora

PROMPTS, SAMPLES = 2, 4  # for diversity: samples of different seeds for each of so many prompts
CLASS_SAMPLES = 8  # for PRES
KEY = ("split", "subject", "style", "rule", "seed", "step", "number", "strength", "variant", "config", "selection")
MEASURES = ("heldout_loss", "clip_i", "clip_member", "pixel_rmse", "clip_t", "diversity", "pres", "prior_loss")


@dataclass(frozen=True)
class EvaluationSettings:
    """What is run and measured; `numbers` and `strengths` empty: each rule's tuned ones, or the defaults."""

    seeds: tuple[int, ...] = (0, 1, 2)
    rules: tuple[str, ...] = RULES
    subjects: tuple[str, ...] = ()  # 'style/family' or 'family'; empty: all
    steps: tuple[int, ...] = (25, 50, 100, 200, 400)
    numbers: tuple[int | None, ...] = ()  # pictures; None: the rule's own suggestion, or all it has
    strengths: tuple[float, ...] = ()
    given: int = 4
    loss_draws: int = 48
    prior_pictures: int = 64
    prior_draws: int = 4
    sample_steps: tuple[int, ...] | None = None  # steps that draw samples too, which is dear; None: all of them
    prediction: bool = True  # sketch the other rules' pictures too and predict their error
    variant: str = ""  # a name for a change of the code, to tell its rows from others
    tuning: bool = False  # run the tuning subjects instead of the suite's
    selection: SelectionSettings = field(default_factory=SelectionSettings)
    training: TrainingSettings = TrainingSettings(subject_steps=80)  # where a rule does not find out when


DEFAULT_NUMBER, DEFAULT_STRENGTH = 40, 1.0
TUNING_NUMBERS, TUNING_STRENGTHS = (10, 40, 160, 640), (0.03, 0.1, 0.3, 1.0)


@dataclass(frozen=True)
class Job:
    """One training run. `subject` is 'style/family'; number and strength are None where a rule has no use for them."""

    split: str
    subject: str
    seed: int
    rule: str
    number: int | None
    strength: float | None


def plan(settings: EvaluationSettings, rows: Sequence[dict] = (), photos: str | None = None) -> list[Job]:
    """The jobs of these settings, those of one subject and seed together.

    Raises UserError for unknown rules or subjects.  `rows` are the results so far: where numbers or strengths are not
    given, each rule takes what did best on the tuning subjects.  `photos` names a photo subject to run alone.
    """
    unknown = [r for r in settings.rules if r not in RULES + ABLATIONS]
    if unknown:
        raise UserError(f'There is no rule "{unknown[0]}": choose from {", ".join(RULES + ABLATIONS)}.')
    split = "photos" if photos else "tuning" if settings.tuning else "suite"
    names = [f"photos/{photos}"] if photos else _wanted(settings)
    jobs: dict[Job, None] = {}
    for name in names:
        for seed in settings.seeds:
            for rule in settings.rules:
                for number, strength in _grid(rule, settings, rows):
                    jobs[Job(split, name, seed, rule, number, strength)] = None
    return list(jobs)


def shard(jobs: Sequence[Job], index: int, count: int) -> list[Job]:
    """Part `index` of `count` (from 1): whole groups of one subject and seed, which share their sketches.

    Raises UserError unless 1 <= index <= count.
    """
    if not 1 <= index <= count:
        raise UserError(f"There is no part {index} of {count}: count the parts from 1.")
    groups = list(dict.fromkeys((j.subject, j.seed) for j in jobs))
    mine = set(groups[index - 1 :: count])
    return [j for j in jobs if (j.subject, j.seed) in mine]


def tuned(rows: Sequence[dict], rule: str) -> tuple[int | None, float] | None:
    """(number, strength) of lowest held-out loss, at the best and the last step alike, a mean over runs; None if not tuned.

    Only settings that ran on all tuning subjects, seeds and steps that any of the rule's settings ran on are compared.
    """
    runs: dict[tuple, dict[tuple, dict[int, float]]] = {}
    for row in rows:
        if row["split"] == "tuning" and row["rule"] == rule and row["heldout_loss"] is not None:
            steps = runs.setdefault((row["number"], row["strength"]), {})
            steps.setdefault((row["subject"], row["style"], row["seed"]), {})[row["step"]] = row["heldout_loss"]
    measured = {key: sum(map(len, found.values())) for key, found in runs.items()}
    most = max(measured.values(), default=0)
    complete = {
        key: statistics.fmean(min(steps.values()) + steps[max(steps)] for steps in found.values())
        for key, found in runs.items()
        if measured[key] == most
    }
    return min(complete, key=complete.get) if complete else None


def run(
    backbone: Backbone,
    settings: EvaluationSettings,
    jobs: Sequence[Job],
    results: Path,
    cache: Path,
    progress: Progress = silent,
    photos: tuple[Path, str] | None = None,
) -> int:
    """Run the jobs that `results` has no rows of; returns the number of rows written.

    `cache` keeps the sketches, the prior's pictures and each run's last samples.  `photos` is the folder and class noun of
    a photo subject.
    """
    config = config_of(backbone, settings)
    world, written, group, bench = None, 0, None, None
    for count, job in enumerate(jobs):
        progress(f"{job.subject} seed {job.seed} {job.rule}", count, len(jobs))
        missing = missing_steps(job, settings, config, read_rows(results))
        if not missing:
            continue
        if world is None:
            store = open_store(backbone, progress)
            world = World(backbone, store, encode_store(backbone, store))
        if (job.subject, job.seed) != group:
            group, case = (job.subject, job.seed), _load(job, settings, photos, backbone)
            bench = Bench(world, case, job.seed, settings, cache, config, progress)
        for row in bench.run(job, missing):
            append_row(results, _keyed(job, settings, config, row["step"]) | row)
            written += 1
    return written


class Bench:
    """One subject and seed on the bench: its pictures encoded, its sketches shared by all rules."""

    def __init__(
        self,
        world: World,
        case: Case,
        seed: int,
        settings: EvaluationSettings,
        cache: Path,
        config: str,
        progress: Progress = silent,
    ):
        self.world, self.case, self.seed, self.settings, self.progress = world, case, seed, settings, progress
        self.backbone, self.pictures = world.backbone, cache / config
        self.cache = cache / _digest(backbone_digest(self.backbone))
        self.subject = case.given.encode(self.backbone)
        self.loss_draws = metrics.common_draws(self.backbone, settings.loss_draws)
        self.prior_draws = metrics.common_draws(self.backbone, settings.prior_draws)
        order = torch.randperm(world.store.count, generator=torch.Generator().manual_seed(metrics.EVALUATION_SEED))
        rows = order[: settings.prior_pictures]
        self.prior = world.encoded[rows]
        self.truth = None
        if case.truths:
            self.truth = self.backbone.encode(case.truths, case.captions)
        self._pool: Pool | None = None

    def pool(self) -> Pool:
        """The sketches, made at their first use."""
        if self._pool is None:
            s = self.settings
            folder = self.cache / "sketches" / f"{self.case.style}-{self.case.name}-{self.seed}-{selection_of(s)}"
            folds = any(rule in FOLDED for rule in s.rules)
            training = replace(s.training, seed=self.seed)
            self._pool = make_pool(self.world, self.case, self.seed, s.selection, training, folds, folder, self.progress)
        return self._pool

    def run(self, job: Job, steps: Sequence[int]) -> Iterable[dict]:
        """Train once and yield a row at each of `steps`, measured while training waits."""
        s = self.settings
        pool = self.pool() if job.rule in SKETCHED or s.prediction else None
        chosen = choose(job.rule, job.number, self.world, self.case, self.seed, pool, self.cache)
        strength = DEFAULT_STRENGTH if job.strength is None else job.strength
        training = replace(s.training, seed=self.seed, steps=max(steps), strength=strength * chosen.strength)
        if chosen.subject_steps is not None:
            training = replace(training, subject_steps=chosen.subject_steps)
        if job.rule == "none_share":
            training = replace(training.subject_alone(training.steps), lr_scheduler=training.lr_scheduler)
        said = {"rho": None, "rho_sandwich": None, "rho_cross_fit": None}
        if s.prediction and job.rule not in ("backbone", "prior"):
            said = predict(pool, chosen.ids, None if chosen.images is None else chosen.images.weights, training.strength)
        num = 0 if chosen.images is None else len(chosen.images)
        common = {"num": num, "lambda": training.strength, "steps_alone": training.steps_alone if num else None, **said}
        seconds, last = chosen.seconds, time.perf_counter()
        with self._adapter(job, training) as weights:
            for step, losses in self._steps(job, chosen.images, training, weights):
                if step not in steps:
                    continue
                seconds += time.perf_counter() - last
                began = time.perf_counter()
                measured = self.measure(job, draws_samples(s, step), keep=step == max(steps))
                took = time.perf_counter() - began
                yield common | {"step": step} | losses | measured | {
                    "seconds": round(seconds, 2),
                    "selection_seconds": round(chosen.seconds, 2),
                    "measuring_seconds": round(took, 2),
                }  # fmt: skip
                last = time.perf_counter()

    def measure(self, job: Job, samples: bool, keep: bool) -> dict:
        """Every metric of the backbone as it is now, with whatever adapter it carries; `keep` its samples in the cache."""
        found: dict[str, float | None] = dict.fromkeys(MEASURES)
        if self.truth is not None:
            found["heldout_loss"] = float(metrics.denoising_loss(self.backbone, self.truth, self.loss_draws).mean())
        found["prior_loss"] = float(metrics.denoising_loss(self.backbone, self.prior, self.prior_draws).mean())
        if samples:
            found |= self._draw(job, keep)
        return found

    def _draw(self, job: Job, keep: bool) -> dict[str, float | None]:
        case, clip = self.case, self.backbone.clip
        prompts = list(case.captions or case.given.captions)
        repeated = [p for p in prompts[:PROMPTS] for _ in range(SAMPLES)]
        every = [*prompts, *repeated, *[case.class_prompt] * CLASS_SAMPLES]
        drawn = generate(self.backbone, every, generation_settings())
        members, rest = drawn[: len(prompts)], drawn[len(prompts) :]
        vectors, true = clip.embed_images(members), clip.embed_images(case.truths or case.given.images)
        samples = clip.embed_images(rest[: len(repeated)])
        plain = clip.embed_texts([metrics.without_identifier(p, case.given.identifier) for p in prompts])
        if keep:
            _save_strip(members, picture_path(self.pictures, job))
        class_pictures = clip.embed_images(rest[len(repeated) :])
        return {
            "clip_i": metrics.similarity(vectors, true),
            "clip_member": metrics.paired_similarity(vectors, true) if case.truths else None,
            "pixel_rmse": metrics.pixel_distance(members, case.truths) if case.truths else None,
            "clip_t": metrics.paired_similarity(vectors, plain),
            "diversity": metrics.diversity(samples.view(-1, SAMPLES, samples.shape[1])),
            "pres": metrics.similarity(class_pictures, clip.embed_images(case.given.images)),
        }

    def _adapter(self, job: Job, training: TrainingSettings):
        return nullcontext() if job.rule == "backbone" else lora(self.backbone, training.rank, training.seed)

    def _steps(self, job: Job, chosen: Encoded | None, training: TrainingSettings, weights):
        """(step, training losses) of the run; the one step 0 of the bare backbone."""
        if job.rule == "backbone":
            yield 0, {"train_subject_loss": None, "train_backbone_loss": None}
            return
        optimizer = new_optimizer(weights, training)
        sums: list[tuple[float, float | None]] = []
        for step in train(self.backbone, weights, optimizer, self.subject, chosen, training):
            sums = [*sums[-24:], (step.subject_loss, step.backbone_loss)]
            backbone = None if sums[0][1] is None else statistics.fmean(b for _, b in sums)
            subject = statistics.fmean(a for a, _ in sums)
            yield step.number, {"train_subject_loss": subject, "train_backbone_loss": backbone}


def generation_settings() -> GenerationSettings:
    """How every sample of the suite is drawn: the default settings, from the same noise for every rule and seed."""
    return GenerationSettings(seed=metrics.EVALUATION_SEED)


def config_of(backbone: Backbone, settings: EvaluationSettings) -> str:
    """Digest of all that changes every rule's rows: the weights, the training and the measuring."""
    apart = ("steps", "strength", "seed", "checkpoint_every", "text_encoder")  # these are in the key, or change nothing
    later = {"lr_scheduler": "constant", "lr_warmup_steps": 0}  # settings that rows were measured before, at their defaults
    every = asdict(settings.training).items()
    training = {k: v for k, v in every if k not in apart and (k not in later or v != later[k])}
    measured = [settings.given, settings.loss_draws, settings.prior_pictures, settings.prior_draws]
    return _digest([training, measured, backbone_digest(backbone), backbone.clip.digest])


def selection_of(settings: EvaluationSettings) -> str:
    """Digest of what changes the rules of sketches alone."""
    selection = {k: v for k, v in asdict(settings.selection).items() if k not in ("rule", "num_backbone", "seed", "store")}
    training = settings.training
    fixed = [METHOD, RANDOM_PART, SUBJECT_DRAWS, SUBJECT_VECTORS, PICTURES_PER_GROUP, CLASS_LIKE]
    return _digest([selection, training.rank, training.learning_rate, training.batch_size, settings.given, fixed])


def backbone_digest(backbone: Backbone) -> str:
    """SHA-256 of the UNet's own weights, whatever adapter is or was on it (it renames the layers that it wraps)."""
    digest, state = hashlib.sha256(), backbone.unet.state_dict()
    own = {name.replace(".base_layer.", "."): value for name, value in state.items() if ".lora_" not in name}
    for name, value in sorted(own.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def missing_steps(job: Job, settings: EvaluationSettings, config: str, rows: Iterable[dict]) -> list[int]:
    """The job's checkpoints that no row covers; a row without samples covers only what needs none."""
    steps = [0] if job.rule == "backbone" else sorted(set(settings.steps))
    known = {tuple(row[k] for k in KEY): row["generation"] for row in rows}

    def covered(step: int) -> bool:
        found = known.get(tuple(_keyed(job, settings, config, step)[k] for k in KEY))
        return found is not None and (found or not draws_samples(settings, step))

    return [step for step in steps if not covered(step)]


def draws_samples(settings: EvaluationSettings, step: int) -> bool:
    """Whether samples are drawn at a step; of the bare backbone, if they are at any."""
    wanted = settings.steps if settings.sample_steps is None else settings.sample_steps
    return step in wanted or (step == 0 and bool(wanted))


def read_rows(results: Path) -> list[dict]:
    """The complete rows of a results file; where one was measured again with samples, only that one."""
    rows: dict[tuple, dict] = {}
    for row in read_json_lines(results):
        key = tuple(row[k] for k in KEY)
        if key not in rows or row["generation"]:
            rows[key] = row
    return list(rows.values())


def append_row(results: Path, row: dict) -> None:
    """Add one line, safe from other processes; half a line that a killed process left is cut off first."""
    results.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(results.with_name(f".{results.name}.lock")), open(results, "a+b") as file:
        file.seek(0)
        whole = file.read()
        if whole and not whole.endswith(b"\n"):
            file.truncate(whole.rfind(b"\n") + 1)
        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def picture_path(folder: Path, job: Job) -> Path:
    """Where a job's last samples are kept, side by side; `folder` is the cache's for its configuration."""
    settings = f"{job.number}-{job.strength}"
    return folder / f"{job.subject.replace('/', '-')}-{job.seed}-{job.rule}-{settings}.png"


def _keyed(job: Job, settings: EvaluationSettings, config: str, step: int) -> dict:
    style, _, subject = job.subject.partition("/")
    return {
        "split": job.split,
        "subject": subject,
        "style": style,
        "rule": job.rule,
        "seed": job.seed,
        "step": step,
        "number": job.number,
        "strength": job.strength,
        "variant": settings.variant,
        "generation": draws_samples(settings, step),
        "config": config,
        "selection": selection_of(settings) if job.rule in SKETCHED else None,
        "settings": {
            "given": settings.given,
            "rank": settings.training.rank,
            "learning_rate": settings.training.learning_rate,
            "batch_size": settings.training.batch_size,
            "backbone_share": settings.training.backbone_share,
            "subject_steps": settings.training.subject_steps,
            "shortlist": settings.selection.shortlist,
            "surrogate_steps": settings.selection.surrogate_steps,
            "draws": settings.selection.draws,
            "sketch_size": settings.selection.sketch_size,
            "torch": version("torch"),
        },
    }


def _wanted(settings: EvaluationSettings) -> list[str]:
    names = subject_names(settings.tuning)
    if not settings.subjects:
        return names
    unknown = [w for w in settings.subjects if not any(w in (n, n.partition("/")[2]) for n in names)]
    if unknown:
        kept = f" ({', '.join(TUNING_FAMILIES)} is for tuning only)" if not settings.tuning else ""
        raise UserError(f'There is no subject "{unknown[0]}" here: choose from {", ".join(names)}{kept}.')
    return [n for n in names if n in settings.subjects or n.partition("/")[2] in settings.subjects]


def _grid(rule: str, settings: EvaluationSettings, rows: Sequence[dict]) -> list[tuple[int | None, float | None]]:
    """The (number, strength) pairs that a rule runs with."""
    number, strength = (None if settings.tuning else tuned(rows, rule)) or (DEFAULT_NUMBER, DEFAULT_STRENGTH)
    numbers = settings.numbers or (TUNING_NUMBERS if settings.tuning else (number,))
    strengths = settings.strengths or (TUNING_STRENGTHS if settings.tuning else (strength,))
    if rule in WITHOUT_NUMBER:
        numbers = (None,)
    if rule in WITHOUT_PICTURES:
        strengths = (None,)
    return [(n, s) for n in numbers for s in strengths]


def _load(job: Job, settings: EvaluationSettings, photos: tuple[Path, str] | None, backbone: Backbone) -> Case:
    if photos is not None:
        return photo_case(*photos, backbone.caption_template)
    return load_case(job.subject, job.seed, settings.given)


def _digest(content) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _save_strip(pictures: Sequence[Image.Image], path: Path) -> None:
    strip = Image.new("RGB", (sum(p.width for p in pictures), pictures[0].height), "white")
    left = 0
    for picture in pictures:
        strip.paste(picture, (left, 0))
        left += picture.width
    path.parent.mkdir(parents=True, exist_ok=True)
    strip.save(path)

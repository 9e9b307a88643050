"""The suite: subjects x rules x seeds, each trained once and measured at several steps of that one run.

In: a backbone, settings, a plan of jobs.  Out: one JSON line a checkpoint in results.jsonl.  A killed run goes on where it
was.  Everything but the choice of pictures is equal for all rules:
optimiser steps, batch size, seeds, and the noise and prompts that measure them.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image

from bat_ui.backbones.encoded import Encoded
from bat_ui.backbones.stable_diffusion import Backbone
from bat_ui.evaluation import metrics
from bat_ui.evaluation.plan import DEFAULT_STRENGTH, EvaluationSettings, Job, picture_path
from bat_ui.evaluation.results import (
    DRAWN,
    append_row,
    backbone_digest,
    config_of,
    digest,
    draws_samples,
    keyed,
    missing_steps,
    read_rows,
    selection_of,
)
from bat_ui.evaluation.rules import EXTRA, FOLDED, POOLED, SKETCHED, Pool, World, choose, encode_store, make_pool, predict
from bat_ui.evaluation.subjects import Case, load_case, photo_case
from bat_ui.files import read_json_lines
from bat_ui.generation import generate
from bat_ui.project import Progress, Run, silent
from bat_ui.search import open_store
from bat_ui.settings import GenerationSettings, TrainingSettings, ValidationSettings
from bat_ui.training.loop import new_optimizer, train
from bat_ui.training.lora import lora
from bat_ui.validation import METRICS, Validation

PROMPTS, SAMPLES = 2, 4  # for diversity: samples of different seeds for each of so many prompts
CLASS_SAMPLES = 8  # for PRES
MEASURES = ("heldout_loss", "prior_loss", *DRAWN)


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
            append_row(results, keyed(job, settings, config, row["step"]) | row)
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
        self.cache = cache / digest(backbone_digest(self.backbone))
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
            s, training = self.settings, self.settings.run(self.seed)
            form = digest([selection_of(s), asdict(training), s.variant, s.prediction])
            folder = self.cache / "sketches" / f"{self.case.style}-{self.case.name}-{self.seed}-{form}"
            folds = any(rule in FOLDED for rule in s.rules)
            further = EXTRA if s.prediction else 0
            self._pool = make_pool(self.world, self.case, s.selection, training, folds, further, folder, self.progress)
        return self._pool

    def run(self, job: Job, steps: Sequence[int]) -> Iterable[dict]:
        """Train once, to the last of `steps`, and yield a row at each of them, measured while training waits."""
        s = self.settings
        pool = self.pool() if job.rule in POOLED or s.prediction else None
        chosen = choose(job.rule, job.number, self.world, self.case, self.seed, pool, self.cache)
        strength = DEFAULT_STRENGTH if job.strength is None else job.strength
        training = replace(s.run(self.seed), strength=strength * chosen.strength)
        if chosen.subject_steps is not None:
            training = replace(training, subject_steps=chosen.subject_steps)
        if job.rule == "none_share":
            training = replace(training, batch_size=max(training.batch_size // 2, 1))
        said = {"rho": None, "rho_sandwich": None, "rho_cross_fit": None, "predicted_by": None}
        if s.prediction and job.rule not in ("backbone", "prior"):
            said |= predict(pool, chosen.ids, None if chosen.images is None else chosen.images.weights, training.strength)
            said["predicted_by"] = selection_of(s)
        said["verdicts"] = dict(Counter(pool.assessment.verdicts("albat").values())) if job.rule in SKETCHED else None
        num = 0 if chosen.images is None else len(chosen.images)
        common = {"num": num, "lambda": training.strength, "steps_alone": training.steps_alone if num else None, **said}
        seconds, last = chosen.seconds, time.perf_counter()
        final = max(steps)
        with self._adapter(job, training) as weights:
            for step, losses in self._steps(job, chosen.images, training, weights):
                if step not in steps:
                    continue
                seconds += time.perf_counter() - last
                began = time.perf_counter()
                measured = self.measure(job, draws_samples(s, step), keep=step in (0, training.steps))
                took = time.perf_counter() - began
                yield common | {"step": step} | losses | measured | {
                    "seconds": round(seconds, 2),
                    "selection_seconds": round(chosen.seconds, 2),
                    "measuring_seconds": round(took, 2),
                }  # fmt: skip
                if step == final:
                    return
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
            "validation": self._validation(),
        }

    def _validation(self) -> dict[str, float | None]:
        """What a person's own run measures at a checkpoint, from the given pictures alone."""
        with TemporaryDirectory() as folder:
            run = Run(Path(folder))
            Validation(run, self.backbone, self.case.given, ValidationSettings(), 0, silent)(0)
            [row] = read_json_lines(run.metrics)
        return {name: row[name] for name in METRICS}

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


def _load(job: Job, settings: EvaluationSettings, photos: tuple[Path, str] | None, backbone: Backbone) -> Case:
    if photos is not None:
        return photo_case(*photos, backbone.caption_template)
    return load_case(job.subject, job.seed, settings.given)


def _save_strip(pictures: Sequence[Image.Image], path: Path) -> None:
    strip = Image.new("RGB", (sum(p.width for p in pictures), pictures[0].height), "white")
    left = 0
    for picture in pictures:
        strip.paste(picture, (left, 0))
        left += picture.width
    path.parent.mkdir(parents=True, exist_ok=True)
    strip.save(path)

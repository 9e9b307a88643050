"""What ALBAT costs: sketches beside plain LoRA training steps, growth with the candidates, and a prune by hand.

    python benchmarks/albat.py [--quick]

Nothing else should run meanwhile.  Writes docs/benchmarks/albat.md, .json and albat.png.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import record
import torch

from bat_ui.albat.selection import Sketches, assess, make_sketches, select
from bat_ui.albat.sketch import lora_layers, make_projection
from bat_ui.albat.validity import cluster
from bat_ui.backbones import load_backbone
from bat_ui.backbones.encoded import Encoded
from bat_ui.hardware import peak_memory as peak_of_process
from bat_ui.presets import PLENTY
from bat_ui.project import silent
from bat_ui.seeds import step_generator
from bat_ui.settings import SelectionSettings, TrainingSettings
from bat_ui.sketching import CLASS_LIKE, PICTURES_PER_GROUP, sketch_candidates, sketch_images
from bat_ui.training.loop import new_optimizer
from bat_ui.training.lora import lora

SETTINGS, TRAINING = SelectionSettings(), TrainingSettings()
IMAGES = PLENTY.rows_at_once // SETTINGS.draws  # in one pass, as the product sketches them
VARIANTS = ("step", "gradients", "fisher", "gauss_newton", "naive")
PRUNED, PRUNED_SKETCH = 1000, 512
COUNTS = (100, 400, 1000, 4000)


class Bench:
    """One backbone with an adapter, one batch of random latents, and each variant as a call."""

    def __init__(self) -> None:
        self.backbone = load_backbone()
        config, rng = self.backbone.unet.config, torch.Generator().manual_seed(0)
        shape = (IMAGES, config.in_channels, config.sample_size, config.sample_size)
        states = self.backbone.encode_captions(["a flat sticker of cat"])[0].expand(IMAGES, -1, -1)
        self.images = Encoded(torch.randn(shape, generator=rng).to(self.backbone.device), states.contiguous())
        self.draw = self.backbone.draw(SETTINGS.draws, step_generator(0, 1))
        self.keys = torch.arange(IMAGES)

    @contextmanager
    def adapted(self) -> Iterator[None]:
        with lora(self.backbone, TRAINING.rank, 0) as self.weights:
            rng = torch.Generator().manual_seed(1)
            for p in self.weights.values():  # as trained: with lora_B at zero half of the gradients vanish
                p.data += 0.02 * torch.randn(p.shape, generator=rng).to(p.device)
            self.projection = make_projection(self.backbone.unet, SETTINGS.sketch_size, 0)
            self.optimizer = new_optimizer(self.weights, TRAINING)
            yield

    def run(self, variant: str) -> None:
        """Work through the batch once: images x draws rows."""
        if variant == "step":
            loss = self._losses(self.images).mean()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
        elif variant == "naive":
            self._naive()
        else:
            kind = "fisher" if variant == "gradients" else variant
            vectors = 0 if variant == "gradients" else 1
            sketch_images(self.backbone, self.images, self.keys, self.draw, self.projection, vectors, kind, 0)
        if self.backbone.device.type == "cuda":
            torch.cuda.synchronize()

    def _losses(self, images: Encoded) -> torch.Tensor:
        """Mean loss of each image over the draws."""
        timesteps, noise = self.draw
        count, draws = len(images), len(timesteps)
        rows = torch.arange(count).repeat_interleave(draws)
        prediction, target = self.backbone.predict(images[rows], timesteps.repeat(count), noise.repeat(count, 1, 1, 1))
        return (prediction - target).square().flatten(1).mean(1).view(count, draws).mean(1)

    def _naive(self) -> torch.Tensor:
        """torch.func gradients of one image at a time, then the projection."""
        unet, base = self.backbone.unet, dict(self.backbone.unet.named_parameters())
        values = {name: base[name].detach() for layer in lora_layers(unet) for name in (layer.a_weight, layer.b_weight)}
        timesteps, noise = self.draw

        def loss(values, latent, state):
            latents, states = (x.expand(len(timesteps), *x.shape[1:]) for x in (latent, state))
            noisy = self.backbone.pipeline.scheduler.add_noise(latents, noise, timesteps)
            prediction = torch.func.functional_call(unet, values, (noisy, timesteps, states)).sample
            target = self.backbone.pipeline.scheduler.get_velocity(latents, noise, timesteps)
            return (prediction - target).square().mean()

        rows = []
        for i in range(IMAGES):
            found = torch.func.grad(loss)(values, self.images.latents[i : i + 1], self.images.states[i : i + 1])
            rows.append(sum(self.projection.apply(name, g.flatten()[None]) for name, g in found.items()))
        return torch.cat(rows)


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def paired(bench: Bench, rounds: int) -> dict[str, list[float]]:
    """Each variant's seconds, round by round, in turning order, so that a slow moment meets them all."""
    found: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for variant in VARIANTS:
        bench.run(variant)
    for r in range(rounds):
        for variant in VARIANTS[r % len(VARIANTS) :] + VARIANTS[: r % len(VARIANTS)]:
            found[variant].append(seconds(partial(bench.run, variant)))
    return found


def peak_memory(variant: str) -> float:
    """MiB at the peak of one variant beyond what the loaded model takes, in a process of its own."""
    command = [sys.executable, __file__, "--memory", variant]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))


def measure_memory(variant: str) -> None:
    bench = Bench()
    with bench.adapted():
        if bench.backbone.device.type == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            bench.run(variant)
            print((torch.cuda.max_memory_allocated() - before) / 2**20)
        else:
            gc.collect()
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: loading may have taken more than the pass
            before = psutil.Process().memory_info().rss
            bench.run(variant)
            print((peak_of_process()["ram"] - before) / 2**20)


def random_sketches(count: int, size: int, folds: int) -> Sketches:
    """Sketches with a decaying spectrum: a few directions that all pictures share, and noise."""
    rng = torch.Generator().manual_seed(0)
    shared = torch.randn(64, size, generator=rng) * torch.logspace(0.5, -1.5, 64)[:, None]

    def rows(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, 64, generator=rng) @ shared / 8 + 0.02 * torch.randn(*shape, size, generator=rng)

    return make_sketches(
        tuple(str(i) for i in range(count)),
        torch.arange(count) % (count // 20),
        rows(count) * 0.1,
        rows(count, 1),
        rows(4, 4),
        risk=rows(CLASS_LIKE) / CLASS_LIKE**0.5,
        judges=rows(folds, 8),
        judge_curvature=rows(folds, 4),
        fold_gradients=rows(folds, count),
    )


def pruning(rounds: int) -> dict[str, float]:
    """Median milliseconds until a new selection stands after one picture was dropped, by rule."""
    sketches = random_sketches(PRUNED, PRUNED_SKETCH, 4)
    started = time.perf_counter()
    assessment = assess(sketches)
    found = {"assess": (time.perf_counter() - started) * 1e3}
    for rule in ("albat", "cross_fit", "without_validity", "gradient_cosine"):
        drop = partial(select, sketches, assessment, rule)
        took = [seconds(partial(drop, excluded=(str(i),))) for i in range(rounds)]
        found[rule] = statistics.median(took) * 1e3
    return found


def growth(bench: Bench, counts: tuple[int, ...]) -> list[tuple[int, float, float]]:
    """(candidates, seconds of sketching them, seconds of grouping, judging and ranking) of whole selections, each picture
    another one; the surrogate has one step, since its time does not depend on them."""
    found = []
    for n in counts:
        rng = torch.Generator().manual_seed(n)
        latents = torch.randn(n + 4, *bench.images.latents.shape[1:], generator=rng).to(bench.backbone.device)
        pictures = Encoded(latents, bench.images.states[:1].expand(n + 4, -1, -1))
        vectors = torch.nn.functional.normalize(torch.randn(n, bench.backbone.clip.dim, generator=rng), dim=1)
        given = (vectors, pictures[:n], pictures[n:], replace(SETTINGS, shortlist=n), replace(TRAINING, steps=1), silent)
        grouping = seconds(partial(cluster, vectors, n // PICTURES_PER_GROUP, 0))
        started = time.perf_counter()
        sketches = sketch_candidates(bench.backbone, tuple(str(i) for i in range(n)), *given)
        sketched = time.perf_counter()
        select(sketches, assess(sketches))
        found.append((n, sketched - started - grouping, time.perf_counter() - sketched + grouping))
    return found


def plot(found: list[tuple[int, float, float]], path) -> float:
    """Draw seconds against candidates with the line that is nearest in relative distance; returns the largest of these."""
    from matplotlib import pyplot as plt

    counts, took = np.array([(n, sketching + judging) for n, sketching, judging in found]).T
    start, slope = np.linalg.lstsq(np.stack([1 / took, counts / took], 1), np.ones(len(took)))[0]
    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    axes.plot(counts, took, "o")
    axes.plot([0, counts[-1]], [start, start + slope * counts[-1]], "-", linewidth=1)
    axes.set(xlabel="candidates", ylabel="seconds of a selection")
    figure.savefig(path, dpi=130)
    return float(max(abs((start + slope * counts) / took - 1)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--memory", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        measure_memory(args.memory)
        return
    bench = Bench()
    with bench.adapted():
        times = paired(bench, 2 if args.quick else 15)
    points = growth(bench, COUNTS[:1] if args.quick else COUNTS)
    memory = {variant: peak_memory(variant) for variant in VARIANTS}
    write(times, memory, points, pruning(3 if args.quick else 20))


def write(
    times: dict[str, list[float]], memory: dict[str, float], points: list[tuple[int, float, float]], prune: dict[str, float]
) -> None:
    """Write what was measured into docs/benchmarks."""
    record.DOCS.mkdir(parents=True, exist_ok=True)
    away = plot(points, record.DOCS / "albat.png")

    rows, figures = IMAGES * SETTINGS.draws, {}
    for variant in VARIANTS:
        ratios = sorted(step / own for step, own in zip(times["step"], times[variant]))
        figures[variant] = {
            "rows_per_second": rows / statistics.median(times[variant]),
            "speed": statistics.median(ratios),
            "low": ratios[len(ratios) // 10],
            "high": ratios[-1 - len(ratios) // 10],
            "memory": memory[variant] / memory["step"],
        }
    names = {
        "step": "LoRA training step",
        "gradients": "sketch: gradients alone",
        "fisher": "sketch: gradients and Fisher curvature (candidates)",
        "gauss_newton": "sketch: gradients and one Gauss-Newton vector (subject)",
        "naive": "torch.func, one image at a time",
    }
    table = "\n".join(
        f"| {names[v]} | {f['rows_per_second']:.1f} | {f['speed']:.2f} ({f['low']:.2f} to {f['high']:.2f}) "
        f"| {f['memory']:.2f} |"
        for v, f in figures.items()
    )
    curve = "\n".join(f"| {n} | {sketching:.1f} | {judging:.1f} |" for n, sketching, judging in points)
    clicks = "\n".join(f"| {name} | {ms:.0f} |" for name, ms in prune.items())
    text = f"""# What ALBAT costs

{IMAGES} images x {SETTINGS.draws} draws a pass, LoRA of rank {TRAINING.rank} on the sticker backbone, sketches of
{SETTINGS.sketch_size} numbers. Speed is relative to the training step, paired in one run: median (10th to 90th percentile).
Memory is the peak beyond the loaded model, relative to the step's, each in a process of its own.

| pass | image draws a second | speed | memory |
| --- | --- | --- | --- |
{table}

A selection among more candidates, each another picture: the farthest point is {away:.0%} off a straight line.

| candidates | seconds: sketching | seconds: grouping, judging, ranking |
| --- | --- | --- |
{curve}

![seconds of a selection against the number of candidates](albat.png)

A picture dropped by hand among {PRUNED:,} candidates with sketches of {PRUNED_SKETCH}: milliseconds until the new ranking
and its predicted errors stand (`assess`: once a selection).

| rule | ms |
| --- | --- |
{clicks}
"""
    headline = {f"speed_{v}": round(figures[v]["speed"], 3) for v in VARIANTS[1:]}
    headline |= {f"memory_{v}": round(figures[v]["memory"], 3) for v in VARIANTS[1:]}
    headline |= {f"prune_ms_{name}": round(ms, 1) for name, ms in prune.items()} | {"off_the_line": round(away, 3)}
    everything = {
        "passes": figures,
        "seconds": times,
        "mebibytes": memory,
        "growth": points,
        "prune_ms": prune,
        "off_the_line": away,
    }
    record.write("albat", everything, text, headline)


if __name__ == "__main__":
    main()

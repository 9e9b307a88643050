"""Validation: what an adapter draws and how it measures at each checkpoint, so that checkpoints and runs can be compared.

In: a run in training.  Out: `samples/step-NNNNNN/` with pictures of the same prompts at the same seeds for every step and
run, and a line of metrics.jsonl a step: clip_i, clip_t, diversity and pres (evaluation/metrics.py).  Step 0 is the backbone
itself.  Left out on purpose: which checkpoint is best; and random state, which is never touched.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

from PIL import Image

from bat_ui.backbones.hub import needed_clip_downloads
from bat_ui.backbones.stable_diffusion import Backbone
from bat_ui.clip_space import ClipSpace
from bat_ui.errors import UserError
from bat_ui.evaluation import metrics
from bat_ui.files import keep_json_lines, whole_folder, write_json
from bat_ui.generation import generate
from bat_ui.project import Progress, Run
from bat_ui.samples import LISTING, step_name
from bat_ui.settings import GenerationSettings, ValidationSettings, defaults
from bat_ui.subject import Subject

METRICS = ("clip_i", "clip_t", "diversity", "pres")
SEED = 0  # of the first picture of each prompt, the same for every run


class Validation:
    """Draws and measures with the adapter that is on the backbone; call it with the number of steps behind it.

    Subject prompts give CLIP-I, CLIP-T and diversity, the class prompt PRES; a metric that cannot be told is None.
    A step that was validated before is left as it is; those after `start` are forgotten.
    """

    def __init__(
        self,
        run: Run,
        backbone: Backbone,
        subject: Subject,
        settings: ValidationSettings,
        start: int,
        progress: Progress,
    ):
        self.run, self.backbone, self.subject, self.settings, self.progress = run, backbone, subject, settings, progress
        self.prompts = settings.prompts(subject.captions) if settings.validation_images > 0 else []
        self.done = {row["step"] for row in keep_json_lines(run.metrics, lambda row: row["step"] <= start)}
        self._vectors = None

    @cached_property
    def clip(self) -> ClipSpace | None:
        """The backbone's CLIP space; None rather than a download that nobody has agreed to."""
        try:
            return None if needed_clip_downloads(self.backbone.clip_source) else self.backbone.clip
        except UserError:  # the hub that would have to be asked is out of reach
            return None

    def __call__(self, step: int) -> None:
        if step in self.done or not self.prompts:
            return
        class_prompt = self.backbone.class_prompt(self.subject.class_noun)
        prompts = [*self.prompts, class_prompt]
        drawn = []
        for i, prompt in enumerate(prompts):
            self.progress("Drawing samples", i, len(prompts))
            drawn.append(self._draw(prompt))
        with whole_folder(self.run.samples / step_name(step)) as folder:
            self._save(folder, prompts, drawn)
        self.progress("Drawing samples", len(prompts), len(prompts))
        row = {"step": step, **self._measure(drawn[:-1], drawn[-1])}
        with open(self.run.metrics, "a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
        self.done.add(step)

    def _draw(self, prompt: str) -> list[Image.Image]:
        count = self.settings.validation_images
        given = {"num_images": count, "steps": self.settings.validation_steps, "seed": SEED}
        return generate(self.backbone, [prompt] * count, defaults(GenerationSettings, self.backbone.photos, **given))

    def _save(self, folder: Path, prompts: list[str], drawn: list[list[Image.Image]]) -> None:
        listing = []
        for p, (prompt, pictures) in enumerate(zip(prompts, drawn)):
            of = "class" if p == len(prompts) - 1 else "subject"
            for i, picture in enumerate(pictures):
                name = f"{p:02d}-{i:02d}.png"
                picture.save(folder / name)
                listing.append({"file": name, "prompt": prompt, "seed": SEED + i, "of": of})
        write_json(folder / LISTING, listing)

    def _measure(self, drawn: list[list[Image.Image]], of_class: list[Image.Image]) -> dict[str, float | None]:
        clip = self.clip
        if clip is None:
            return dict.fromkeys(METRICS)
        if self._vectors is None:  # the same at every step
            plain = [metrics.without_identifier(prompt, self.subject.identifier) for prompt in self.prompts]
            self._vectors = clip.embed_images(self.subject.images), clip.embed_texts(plain)
        true, texts = self._vectors
        count = self.settings.validation_images
        vectors = clip.embed_images([picture for pictures in drawn for picture in pictures])
        found = {
            "clip_i": metrics.similarity(vectors, true),
            "clip_t": metrics.paired_similarity(vectors, texts.repeat_interleave(count, 0)),
            "diversity": metrics.diversity(vectors.view(-1, count, vectors.shape[1])) if count > 1 else None,
            "pres": metrics.similarity(clip.embed_images(of_class), true),
        }
        return {name: None if value is None else round(value, 5) + 0.0 for name, value in found.items()}

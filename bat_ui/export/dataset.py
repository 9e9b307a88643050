"""The subject and its selected backbone pictures as training sets of other trainers.

In: a project with a selection.  Out: pictures with captions in the layout that kohya's scripts, Custom Diffusion or
diffusers' scripts read, checked by reading the lists back.
"""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from bat_ui.choice import Choice
from bat_ui.errors import UserError
from bat_ui.export.lora import Check
from bat_ui.files import read_json
from bat_ui.project import Project
from bat_ui.settings import TrainingSettings, read_settings
from bat_ui.subject import Subject
from bat_ui.training.loop import backbone_part_of_run

NEAR = 1 / 20


@dataclass(frozen=True)
class _Picture:
    source: Path
    name: str
    caption: str


def write_kohya_dataset(project: Project, out: Path) -> list[Check]:
    """subject/ and backbone/ with captions in NAME.txt, and dataset.toml for --dataset_config.

    The backbone's pictures are an ordinary subset: as `is_reg` all beyond the subject's number would not be used.  The
    repeats make their part of an epoch what it is of a run here.
    """
    subject, chosen = _subject(project), _chosen(project)
    settings = (read_json(project.report) or {}).get("training", {}).get("settings", {})
    part = backbone_part_of_run(Choice.load(project.choice).suggested(read_settings(TrainingSettings, settings)))
    chosen = chosen if part else []  # a run without their weight is the subject's alone
    repeats = whole_repeats(len(chosen) / len(subject) * (1 - part) / part) if chosen else (1, 1)
    lines = ["[general]", 'caption_extension = ".txt"', "enable_bucket = true", "", "[[datasets]]"]
    lines += [f"resolution = {Subject.load(project.subject).size}", f"batch_size = {settings.get('batch_size', 1)}"]
    subsets = [("subject", subject, repeats[0]), ("backbone", chosen, repeats[1])]
    for name, pictures, times in subsets:
        if pictures:
            _copy(pictures, out / name, captions=True)
            folder = json.dumps(str((out / name).resolve()), ensure_ascii=False)
            lines += ["", "  [[datasets.subsets]]", f"  image_dir = {folder}", f"  num_repeats = {times}"]
            if name == "subject":
                lines.append(f"  class_tokens = {json.dumps(_trigger(project), ensure_ascii=False)}")
    (out / "dataset.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = [(out / name / f"{p.name}.png", out / name / f"{p.name}.txt") for name, ps, _ in subsets for p in ps]
    return [_check("kohya's sd-scripts", [image for image, _ in found], all(text.is_file() for _, text in found))]


def whole_repeats(ratio: float) -> tuple[int, int]:
    """Two whole numbers of which the first is `ratio` times the second, but for a twentieth, and as small as that allows."""
    if ratio < 1:
        return whole_repeats(1 / ratio)[::-1]
    fewer = next(n for n in itertools.count(1) if abs(round(n * ratio) / (n * ratio) - 1) <= NEAR)  # 10 at the latest
    return round(fewer * ratio), fewer


def write_custom_diffusion(project: Project, out: Path) -> list[Check]:
    """subject/, and real_prior/ as its retrieval leaves it; concepts.json for --concepts_list with --real_prior."""
    subject, chosen = _subject(project), _chosen(project)
    if not chosen:
        raise UserError("Custom Diffusion's real prior needs backbone pictures, and none are chosen: select some first.")
    _copy(subject, out / "subject")
    prior = (out / "real_prior").resolve()
    images = _copy(chosen, prior / "images")
    (prior / "images.txt").write_text("".join(f"{path}\n" for path in images), encoding="utf-8")
    (prior / "caption.txt").write_text("".join(f"{picture.caption}\n" for picture in chosen), encoding="utf-8")
    (prior / "urls.txt").write_text("".join(f"{path.as_uri()}\n" for path in images), encoding="utf-8")
    concept = {
        "instance_prompt": Subject.load(project.subject).captions[0],
        "class_prompt": Subject.load(project.subject).class_noun,
        "instance_data_dir": str((out / "subject").resolve()),
        "class_data_dir": str(prior),
    }
    (out / "concepts.json").write_text(json.dumps([concept], indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    listed = [Path(line) for line in (prior / "images.txt").read_text(encoding="utf-8").splitlines()]
    captions = (prior / "caption.txt").read_text(encoding="utf-8").splitlines()
    return [_check("Custom Diffusion", listed, len(captions) == len(listed) == len(chosen))]


def write_imagefolder(project: Project, out: Path) -> list[Check]:
    """train/ with metadata.jsonl (file_name, text, source), which `datasets.load_dataset("imagefolder")` reads."""
    rows = []
    for source, pictures in (("subject", _subject(project)), ("backbone", _chosen(project))):
        for picture, path in zip(pictures, _copy(pictures, out / "train" / source)):
            rows.append({"file_name": f"{source}/{path.name}", "text": picture.caption, "source": source})
    listing = out / "train" / "metadata.jsonl"
    listing.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    found = [json.loads(line) for line in listing.read_text(encoding="utf-8").splitlines()]
    images = [listing.parent / row["file_name"] for row in found]
    return [_check("diffusers' training scripts", images, all(row["text"] for row in found))]


def _subject(project: Project) -> list[_Picture]:
    subject = Subject.load(project.subject)
    return [_Picture(project.subject / f"{n}.png", n, c) for n, c in zip(subject.names, subject.captions)]


def _chosen(project: Project) -> list[_Picture]:
    chosen = Choice.load(project.choice).chosen
    return [_Picture(project.candidate_picture(c.id), f"{i:05d}", c.caption) for i, c in enumerate(chosen)]


def _copy(pictures: list[_Picture], folder: Path, captions: bool = False) -> list[Path]:
    """Copy the pictures as NAME.png, with captions in NAME.txt if wanted; their paths.  Raises UserError if one is gone."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for picture in pictures:
        if not picture.source.is_file():
            raise UserError("A picture of the selection is no longer in the project: run the selection again.")
        paths.append(folder / f"{picture.name}.png")
        shutil.copyfile(picture.source, paths[-1])
        if captions:
            paths[-1].with_suffix(".txt").write_text(picture.caption + "\n", encoding="utf-8")
    return paths


def _trigger(project: Project) -> str:
    subject = Subject.load(project.subject)
    return f"{subject.identifier} {subject.class_noun}"


def _check(tool: str, images: list[Path], captioned: bool) -> Check:
    for path in images:
        try:
            with Image.open(path, formats=["PNG"]) as image:
                image.verify()
        except (OSError, SyntaxError):
            return Check(tool, False, f"the picture {path.name} cannot be read")
    if not captioned:
        return Check(tool, False, "captions are missing")
    return Check(tool, True, f"all {len(images)} pictures and captions are read back")

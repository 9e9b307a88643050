"""Export: a trained adapter as other tools load it, with a model card, and the selection as a training set of theirs.

In: a project, for adapters its backbone, too.  Out: a folder, and what was checked by reading it back (`Check`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from bat_ui.backbones.stable_diffusion import Backbone
from bat_ui.errors import UserError
from bat_ui.export.card import write_card
from bat_ui.export.dataset import write_custom_diffusion, write_imagefolder, write_kohya_dataset
from bat_ui.export.lora import Check, write_diffusers, write_kohya
from bat_ui.files import whole_folder, write_json, write_zip
from bat_ui.project import Project
from bat_ui.settings import ADAPTERS, DATASETS, EXPORTS
from bat_ui.training.checkpoint import check_backbone, latest_checkpoint

__all__ = ["Check", "export", "packed"]

MARKER = ".export"  # tells an earlier export, which may be replaced, from other files
TEXTS = (".json", ".jsonl", ".toml", ".txt")


def export(
    project: Project,
    format: str,
    out: Path | None = None,
    load: Callable[[], Backbone] | None = None,
    zipped: bool = False,
) -> tuple[Path, list[Check]]:
    """Write the project in one of EXPORTS to `out` (default: PROJECT/exports/FORMAT) and check that it can be read back.

    `load` gives the backbone, which only ADAPTERS need.  An earlier export there is replaced once the new one is whole, and
    `zipped`, what `packed` made of it.  Raises UserError for an unknown format, other files in the place of these, or a
    project that has not got so far, or was trained on another backbone.
    """
    if format not in EXPORTS:
        raise UserError(f'There is no export format "{format}": choose one of {", ".join(EXPORTS)}.')
    out = out or project.exports / format
    if out.exists() and not out.is_dir():
        raise UserError(f"{out.name} is a file: give an empty folder or a new one.")
    if out.exists() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise UserError(f"{out.name} has other files in it: give an empty folder or a new one.")
    for file in _beside(out) if zipped and not (out / MARKER).is_file() else ():
        if file.exists():
            raise UserError(f"{file.name} would be replaced: give a folder of another name.")
    if format in ADAPTERS and project.adapter is None:
        raise UserError("There is no trained adapter yet: run the training first.")
    backbone = load() if format in ADAPTERS else None
    if backbone is not None and (checkpoint := latest_checkpoint(project.checkpoints)):
        check_backbone(checkpoint, backbone)
    with whole_folder(out.resolve()) as draft:
        (draft / MARKER).write_text(format + "\n", encoding="utf-8")
        checks = _write(project, format, backbone, draft)
        for path, content in _texts(draft, dict(zip(_spellings(draft), _spellings(out)))):
            path.write_text(content, encoding="utf-8")
    return out, checks


def _write(project: Project, format: str, backbone: Backbone | None, out: Path) -> list[Check]:
    if format in DATASETS:
        write = dict(zip(DATASETS, (write_kohya_dataset, write_custom_diffusion, write_imagefolder)))[format]
        return write(project, out)
    checks = (write_diffusers if format == "diffusers" else write_kohya)(project, backbone, out)
    write_card(project, backbone, out)
    return checks


def _spellings(folder: Path) -> tuple[str, str, str]:
    """How a folder is written in lists: as a link, inside a JSON string, and as it is."""
    here = folder.resolve()
    return here.as_uri(), json.dumps(str(here), ensure_ascii=False)[1:-1], str(here)


def _texts(folder: Path, replaced: dict[str, str]) -> Iterator[tuple[Path, str]]:
    """The text files of an export, and what they say when some words are replaced by others."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in TEXTS and path.is_file():
            content = path.read_text(encoding="utf-8")
            for old, new in replaced.items():
                content = content.replace(old, new)
            yield path, content


def packed(folder: Path, checks: list[Check]) -> Path:
    """An export as FOLDER.zip for another machine, and what was checked as FOLDER.json, both beside it.

    Lists in it name their files relative to the unpacked folder, where the training is then to be started.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MARKER]
    texts = dict(_texts(folder, {f"{spelling}/": "" for spelling in _spellings(folder)}))
    contents = {str(path.relative_to(folder)): texts.get(path, path) for path in files}
    target, said = _beside(folder)
    target.unlink(missing_ok=True)
    write_json(said, [asdict(check) for check in checks])
    write_zip(target, contents)
    return target


def _beside(folder: Path) -> tuple[Path, Path]:
    """Where the zip of an export lies, and what was checked."""
    return folder.with_name(f"{folder.name}.zip"), folder.with_name(f"{folder.name}.json")

"""Make the pictures of the README from real runs, so that they stay true.

    python -m docs.make_pictures cat
    python -m docs.make_pictures photo --photos FOLDER --class-noun cartoon

Writes docs/images/cat.png (given, asked for, with and without the adapter) and docs/images/photo.png (samples only).  The
photographs of the second are the subject red_cartoon of the DreamBooth data set, which are not included.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from bat_ui.backbones.sticker import data
from bat_ui.generation import contact_sheet
from bat_ui.subject import Subject

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"


def personalize(folder: Path, class_noun: str, out: Path, prompts: list[str], *more: str) -> tuple[list, list]:
    """Run the command line; returns the samples with and without the adapter."""
    command = [sys.executable, "-m", "bat_ui", "personalize", str(folder), "--class-noun", class_noun, "--out", str(out)]
    asked = [word for prompt in prompts for word in ("--prompt", prompt)]
    subprocess.run([*command, *asked, "--num-images", str(len(prompts)), *more], cwd=ROOT, check=True)
    files = sorted((out / "samples").glob("*.png"))
    return [Image.open(p) for p in files], [Image.open(p.parent / "without" / p.name) for p in files]


def cat() -> None:
    """Four expressions of the flat cat are given, the other five asked for by their captions."""
    given_folder = ROOT / "assets" / "examples" / "flat-cat"
    given = {p.read_text(encoding="utf-8").strip().replace("sks ", "") for p in given_folder.glob("*.txt")}
    family = [s for s in data.load_stickers() if s.family == "cat-faces" and s.style == "flat"]
    others = [s for s in family if s.caption not in given]
    prompts = [s.caption.replace("cat", "sks cat", 1) for s in others]
    with tempfile.TemporaryDirectory() as out:
        with_adapter, without = personalize(given_folder, "cat", Path(out), prompts)
        subject = Subject.load(Path(out) / "subject")
    rows = [
        (
            "given: " + ", ".join(c.replace("sks ", "").split("sticker of ")[-1] for c in subject.captions),
            list(subject.images),
        ),
        ("asked for: " + ", ".join(s.name for s in others), [data.render(s) for s in others]),
        ("drawn with the adapter", with_adapter),
        ("drawn without", without),
    ]
    contact_sheet(rows, 128).save(IMAGES / "cat.png")


def photo(folder: Path, class_noun: str) -> None:
    """A photographed subject, cut out; only what was drawn is shown."""
    asked = ("", "", "", " with a hat", " and a heart", " on fire")
    prompts = [f"a sticker of sks {class_noun}{rest}" for rest in asked]
    with tempfile.TemporaryDirectory() as out:
        with_adapter, without = personalize(folder, class_noun, Path(out), prompts, "--cut-out")
    contact_sheet([("drawn with the adapter", with_adapter), ("drawn without", without)], 128).save(IMAGES / "photo.png")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["cat", "photo"])
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--class-noun", default="toy")
    args = parser.parse_args()
    if args.what == "photo" and not args.photos:
        parser.error("say with --photos where the photographs are")
    IMAGES.mkdir(parents=True, exist_ok=True)
    cat() if args.what == "cat" else photo(args.photos, args.class_noun)


if __name__ == "__main__":
    main()

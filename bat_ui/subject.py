"""The user's own pictures: read, oriented, cut out if asked, made square and captioned.

In: 3 to 10 picture files (JPEG, PNG, WebP) or a folder of them, a class noun, captions in NAME.txt beside a picture.
Out: a `Subject`, which saves to and loads from a folder of PNGs, caption files and subject.json (written last).
Left out on purpose: face and landmark detection; a crop that the middle of the picture does not settle is the user's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from bat_ui.cut_out import cut_out_subject, is_on_white, subject_box
from bat_ui.errors import UserError
from bat_ui.files import write_json
from bat_ui.pictures import MIN_SIDE, is_blurred, look_the_same, read_picture, shown_name, subject_files

if TYPE_CHECKING:  # torch takes seconds to import, and the page should be up before
    from bat_ui.backbones.encoded import Encoded
    from bat_ui.backbones.stable_diffusion import Backbone

__all__ = ["Subject", "cut_out_subject", "prepare_subject", "read_picture", "subject_files", "subject_warnings"]

MAX_PICTURES = 40
MAX_CAPTION = 300  # characters
LONGEST_NAME = 56  # characters
TEMPLATE = "a photo of {identifier} {class_noun}"
STICKER_TEMPLATE = "a sticker of {identifier} {class_noun}"  # for the built-in backbone
MARGIN = 0.06  # white around a cut-out, as a part of its longest side

CROPS = ("start", "middle", "end")  # which square of a picture that is none: left or top, middle, right or bottom

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Subject:
    """The prepared pictures of one subject.

    `images` are RGB, squares unless `square` is False, whose shorter side has at most `size` pixels; each has a caption and
    a unique name to save it by.
    `cut_out` says of each: "no" (not wished), "yes" (cut out, or already on white), "failed" (no subject was found).
    """

    images: tuple[Image.Image, ...]
    captions: tuple[str, ...]
    names: tuple[str, ...]
    class_noun: str
    identifier: str = "sks"
    cut_out: tuple[str, ...] = ()
    size: int = 512
    square: bool = True

    def __post_init__(self) -> None:
        if not self.cut_out:
            object.__setattr__(self, "cut_out", ("no",) * len(self.images))

    def encode(self, backbone: Backbone, bucketed: bool = False) -> Encoded:
        """The pictures with their captions, ready for training."""
        return backbone.encode(self.images, self.captions, bucketed=bucketed)

    def save(self, folder: Path | str) -> None:
        """Write NAME.png and NAME.txt for each picture, then subject.json; an older subject there is replaced."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        marker = folder / "subject.json"
        stale = set()
        if marker.exists():
            stale = {name for name in _read_json(marker).get("names", []) if name == plain_name(str(name))}
            marker.unlink()  # a half-written folder must not look complete
        for name in stale - set(self.names):
            for suffix in (".png", ".txt"):
                (folder / f"{name}{suffix}").unlink(missing_ok=True)
        for name, image, caption in zip(self.names, self.images, self.captions, strict=True):
            image.save(folder / f"{name}.png")
            (folder / f"{name}.txt").write_text(caption + "\n", encoding="utf-8")
        record = {key: getattr(self, key) for key in ("class_noun", "identifier", "names", "cut_out", "size", "square")}
        write_json(marker, record)

    @classmethod
    def load(cls, folder: Path | str) -> Subject:
        """The subject that `save` wrote.  Raises UserError if the folder is not complete or was altered beyond use."""
        folder = Path(folder)
        marker = folder / "subject.json"
        if not marker.is_file():
            raise UserError(f"There is no finished subject in {shown_name(folder)}: prepare the pictures again.")
        record = _read_json(marker)
        names, flags = record.get("names"), record.get("cut_out")
        if (
            not isinstance(names, list)
            or not isinstance(flags, list)
            or not 1 <= len(names) == len(flags) <= MAX_PICTURES
            or any(name != plain_name(str(name)) for name in names)
            or not isinstance(record.get("size"), int)
        ):
            raise UserError(f"The file subject.json in {shown_name(folder)} is damaged: prepare the pictures again.")
        images = tuple(read_picture(folder / f"{name}.png") for name in names)
        square = record.get("square") is not False
        if square and any(image.width != image.height for image in images):
            raise UserError(f"A picture in {shown_name(folder)} is no longer square: prepare the pictures again.")
        return cls(
            images=images,
            captions=tuple(read_caption(folder / f"{name}.txt") or "" for name in names),
            names=tuple(names),
            class_noun=check_class_noun(str(record.get("class_noun") or "")),
            identifier=check_identifier(str(record.get("identifier") or "")),
            cut_out=tuple(str(flag) for flag in flags),
            size=record["size"],
            square=square,
        )


def draws_stickers(backbone: str) -> bool:
    """True for the built-in backbone, by name, and folders as its own is one."""
    return backbone == "sticker" or (Path(backbone) / "pipeline").is_dir()


def template_of(backbone: str) -> str:
    """The caption template of the backbone of that name."""
    return STICKER_TEMPLATE if draws_stickers(backbone) else TEMPLATE


def filled(template: str, identifier: str, class_noun: str) -> str:
    """The template with {identifier} and {class_noun} filled in; other braces are text."""
    return template.replace("{identifier}", identifier).replace("{class_noun}", class_noun)


def square_box(width: int, height: int, where: str) -> Box:
    """One of CROPS as a box in parts of a picture."""
    side = min(width, height)
    shift = {"start": 0.0, "middle": 0.5, "end": 1.0}[where]
    left, top = (width - side) * shift / width, (height - side) * shift / height
    return left, top, left + side / width, top + side / height


def read_caption(path: Path | str) -> str | None:
    """The one line of a caption file; None if the file is missing or blank.  Raises UserError for anything else."""
    path = Path(path)
    if not path.is_file():
        return None
    shown = shown_name(path)
    try:
        with path.open("rb") as file:
            text = file.read(8 * MAX_CAPTION).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"The caption file {shown} is not text in UTF-8: save it again as plain text.") from error
    return check_caption(text, f"The caption file {shown}") or None


def check_caption(text: str, where: str = "The caption") -> str:
    """`text` without space around it.  Raises UserError, beginning with `where`, unless it is one printable line."""
    text = text.strip()
    if not text.isprintable():
        raise UserError(f"{where} has more than one line or unprintable characters: write one line of text.")
    if len(text) > MAX_CAPTION:
        raise UserError(f"{where} is longer than {MAX_CAPTION} characters: shorten it.")
    return text


def check_class_noun(text: str) -> str:
    """The class noun with single spaces.  Raises UserError if it is empty, too long or not a plain noun."""
    noun = " ".join(text.split(" ")).strip()
    if not noun:
        raise UserError('Say what the subject is, in a word or two such as "cat": its class noun is empty.')
    if len(noun) > 40 or not re.fullmatch(r"[^\W_](?:[^\W_]|[ '’-])*", noun):
        raise UserError("The class noun must be at most 40 letters, digits, spaces, hyphens or apostrophes on one line.")
    return re.sub(" +", " ", noun)


def check_identifier(text: str) -> str:
    """The subject's identifier.  Raises UserError unless it is one short word."""
    if not re.fullmatch(r"[A-Za-z0-9]{1,20}", text):
        raise UserError('The identifier must be one word of at most 20 letters and digits, such as "sks".')
    return text


def names_subject(text: str, identifier: str) -> bool:
    """Whether a caption or prompt has the identifier in it, as a word."""
    return bool(re.search(rf"\b{re.escape(identifier)}\b", text))


def prepare_subject(
    sources: Sequence[Path | str],
    class_noun: str,
    identifier: str = "sks",
    captions: Sequence[str | None] | None = None,
    caption_template: str | None = None,
    cut_out: bool | Sequence[bool] = False,
    size: int = 512,
    crops: Sequence[Box | None] | None = None,
    square: bool = True,
) -> Subject:
    """Read, crop, cut out, square and caption the pictures.

    A picture's caption is the one given in `captions`, else the line in NAME.txt beside it, else `caption_template`
    with {identifier} and {class_noun} filled in.  `crops` are boxes (left, top, right, bottom) in parts 0..1 of the
    upright picture; `cut_out` is for all pictures or each.  Cut-outs are cropped to the subject and padded to a square on
    white; other pictures on white are padded; all others are cropped to the middle square, or keep their shape if `square`
    is False.  The shorter side is reduced to `size` pixels and never enlarged.
    Raises UserError for none or over 40 pictures, a bad class noun, identifier or caption, or a bad file.
    """
    noun, identifier = check_class_noun(class_noun), check_identifier(identifier)
    paths = [Path(source) for source in sources]
    if not paths:
        raise UserError("There is no picture of the subject: choose 3 to 10.")
    if len(paths) > MAX_PICTURES:
        raise UserError(f"{len(paths)} pictures are too many: choose the 3 to 10 best ones, at most {MAX_PICTURES}.")
    cuts = [cut_out] * len(paths) if isinstance(cut_out, bool) else cut_out
    for given in (captions, crops, cuts):
        if given is not None and len(given) != len(paths):
            raise ValueError(f"{len(given)} captions, crops or cut_outs for {len(paths)} pictures")
    template = check_caption(filled(caption_template or TEMPLATE, identifier, noun), "The caption template")
    # All captions before the first picture: text is quick to check, pictures are not.
    lines = [
        check_caption((captions and captions[i]) or "", f"The caption of {shown_name(path)}")
        or read_caption(path.with_suffix(".txt"))
        or template
        for i, path in enumerate(paths)
    ]
    images, flags = [], []
    for i, path in enumerate(paths):
        image = read_picture(path)
        if crops is not None and crops[i] is not None:
            image = _cropped(image, crops[i], path)
        image, flag = _framed(image, cuts[i], square)
        scale = size / min(image.size)
        if scale < 1:
            sides = (max(round(side * scale), size) for side in image.size)
            image = image.resize(tuple(sides), Image.Resampling.LANCZOS)
        images.append(image)
        flags.append(flag)
    return Subject(tuple(images), tuple(lines), unique_names(paths), noun, identifier, tuple(flags), size, square)


def subject_warnings(subject: Subject, resolution: int = 512) -> list[str]:
    """What may spoil the result, as plain sentences; empty if nothing was found.  `resolution` is the backbone's: a picture
    is small that has less than half of it, up to 512."""
    said, count = [], len(subject.images)
    if count < 3:
        said.append(f"Only {count} picture{'s' * (count > 1)}: with fewer than 3 the model tends to copy; add more.")
    if count > 10:
        said.append(f"{count} pictures: more than 10 seldom help and take longer to learn.")
    for i in range(count):
        twin = next((j for j in range(i) if look_the_same(subject.images[i], subject.images[j])), None)
        if twin is not None:
            said.append(f"{subject.names[i]} looks the same as {subject.names[twin]}: keep one of the two.")
    for image, name, caption, flag in zip(subject.images, subject.names, subject.captions, subject.cut_out, strict=True):
        if min(image.size) < min(subject.size, resolution, 512) / 2:
            said.append(f"{name} is only {min(image.size)} pixels wide once square: a larger one would show more detail.")
        if is_blurred(image):
            said.append(f"{name} looks blurred: a sharper picture would show more detail.")
        if flag == "failed":
            said.append(f"No subject was found to cut out in {name}: it is used as it is, so crop it or leave it out.")
        if not names_subject(caption, subject.identifier):
            said.append(f'The caption of {name} lacks the word "{subject.identifier}", which is to mean the subject.')
    return said


def _cropped(image: Image.Image, box: Box, path: Path) -> Image.Image:
    if len(box) != 4 or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
        raise UserError(f"The crop of {shown_name(path)} lies outside the picture: draw it again.")
    begin = [round(box[i] * side) for i, side in enumerate(image.size)]
    end = [min(begin[i] + round((box[i + 2] - box[i]) * side), side) for i, side in enumerate(image.size)]
    if min(end[0] - begin[0], end[1] - begin[1]) < MIN_SIDE:
        raise UserError(f"The crop of {shown_name(path)} is less than {MIN_SIDE} pixels wide or high: draw it larger.")
    return image.crop((*begin, *end))


def _framed(image: Image.Image, cut_out: bool, square: bool) -> tuple[Image.Image, str]:
    """The square picture, or the whole one if `square` is False, and its `Subject.cut_out` flag."""
    flag = "no"
    if cut_out:
        image, mask = cut_out_subject(image)
        flag = "failed" if mask is None else "yes"
        if mask is not None:
            left, top, right, bottom = subject_box(mask)
            longest = max(right - left, bottom - top)
            # A drawing that fills its picture keeps the frame that its artist gave it.
            if longest < 0.7 * max(image.size) or not is_on_white(image):
                margin = round(MARGIN * longest)
                return _padded(image.crop((left, top, right, bottom)), max(longest + 2 * margin, MIN_SIDE)), flag
    if is_on_white(image):
        return _padded(image, max(image.size)), flag
    if not square:
        return image, flag
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)), flag


def _padded(image: Image.Image, side: int) -> Image.Image:
    if image.size == (side, side):
        return image
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def unique_names(paths: Sequence[Path], taken: Sequence[str] = ()) -> tuple[str, ...]:
    """A plain name for each file, after its own, different from one another and from those taken."""
    names: list[str] = []
    for path in paths:
        stem, number = plain_name(path.stem), 1
        name = stem
        while name.lower() in {other.lower() for other in (*taken, *names)}:
            number += 1
            name = f"{stem[: LONGEST_NAME - len(str(number)) - 1]}-{number}"
        names.append(name)
    return tuple(names)


def plain_name(text: str) -> str:
    """A file name without surprises: letters, digits, dot, hyphen, underscore, not hidden, of LONGEST_NAME at most."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-")[:LONGEST_NAME].rstrip(".-") or "picture"


def _read_json(path: Path) -> dict:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}

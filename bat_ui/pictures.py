"""Single pictures: found in a folder, read safely, and measured for what may spoil training.

In: files that are hostile until checked.  Out: RGB pictures, upright, on white, without metadata.  Named formats only,
size checked before decoding, no animation.  Left out on purpose: colour profiles (pictures are taken as sRGB).
"""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image

from bat_ui.cut_out import is_on_white, white_background
from bat_ui.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
OTHER_SUFFIXES = (".gif", ".tif", ".tiff", ".bmp", ".heic", ".heif", ".avif", ".jxl")  # of pictures that are refused
MAX_BYTES = 50_000_000
MAX_PIXELS = 50_000_000
MAX_SIDE = 2048  # pixels; larger pictures are reduced
MIN_SIDE = 16
LONGEST = 32  # times a side may be the other
BLURRED = 0.02  # photos have 0.07 and more; blurred by 2 px at 256 px they have less than 0.01
RESAVE = "save it again as a JPEG, PNG or WebP picture"
UPRIGHT = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def subject_files(folder: Path | str) -> list[Path]:
    """The picture files in a folder, by suffix, sorted by name.  Raises UserError if there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"There is no folder {shown_name(folder)}: give the folder that holds the subject's pictures.")
    found = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file() and p.name[0] != "."]
    if not found:
        raise UserError(f"There is no picture in {shown_name(folder)}: put 3 to 10 JPEG, PNG or WebP files there.")
    return sorted(found)


def read_picture(path: Path | str) -> Image.Image:
    """A picture file as RGB, upright, white where it was transparent, its longest side at most 2048 px, no metadata.

    Raises UserError, naming the file, if it is missing, too large in bytes or pixels, too small or too narrow, not JPEG,
    PNG or WebP, animated, truncated or damaged.  Dimensions are checked before any pixel is decoded.
    """
    path = Path(path)
    shown = shown_name(path)
    if not path.is_file():
        raise UserError(f"There is no file {shown}: choose the picture again.")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{shown} is larger than {MAX_BYTES // 1_000_000} MB: reduce the picture and choose it again.")
    return decode_picture(path.read_bytes(), shown)


def decode_picture(data: bytes, shown: str) -> Image.Image:
    """The bytes of a picture file as `read_picture` gives them, and refused as there; `shown` names it in a sentence."""
    too_many = f"{shown} has more than {MAX_PIXELS // 1_000_000} million pixels: reduce the picture and choose it again."
    try:
        image = Image.open(io.BytesIO(data), formats=["JPEG", "PNG", "WEBP"])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(too_many) from error
    except Exception as error:  # decoders meet hostile bytes with many kinds of error
        raise UserError(f"{shown} is not a JPEG, PNG or WebP picture: {RESAVE}.") from error
    if image.width * image.height > MAX_PIXELS:
        raise UserError(too_many)
    if min(image.size) < MIN_SIDE:
        raise UserError(f"{shown} is less than {MIN_SIDE} pixels wide or high: choose a larger picture.")
    if max(image.size) > LONGEST * min(image.size):
        raise UserError(f"{shown} is more than {LONGEST} times as long as it is wide: crop it and choose it again.")
    # A phone's JPEG may carry a second picture (format MPO): its first is the photo, nothing moves.
    if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
        raise UserError(f"{shown} is animated: save one still picture of it as PNG.")
    try:
        image.load()
        upright = _as_rgb(_upright(image))
    except Exception as error:  # as above
        raise UserError(f"{shown} is damaged or cut short: copy it again or {RESAVE}.") from error
    upright.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return Image.fromarray(np.array(upright))  # a new picture: nothing but pixels is kept


def look_the_same(one: Image.Image, other: Image.Image) -> bool:
    """True for two copies of a picture (RGB), also at another size, quality or slightly other brightness.

    Two tests must agree: few of the 480 bits of their difference hashes differ (is each of 16 x 16 cells clearly
    darker than its lower, its right neighbour), and no cell has another colour, which tells recoloured drawings apart.
    """
    cells = [np.asarray(image.resize((16, 16), Image.Resampling.BOX), np.float32) for image in (one, other)]
    if np.abs(cells[0] - cells[1]).max() > 32:
        return False
    greys = [cell.mean(axis=2) for cell in cells]
    bits = [np.concatenate([(np.diff(grey, axis=axis) > 3).ravel() for axis in (0, 1)]) for grey in greys]
    return bool((bits[0] != bits[1]).mean() <= 0.1)


def is_blurred(image: Image.Image) -> bool:
    """True if a picture (RGB) is soft even at 256 px: its Laplacian varies little for the contrast that it has.

    Only the subject of a picture on white is looked at, without its outline, which a cut-out makes sharp.  Flat
    drawings are not blurred: their areas either meet in sharp edges or show nothing to judge.
    """
    small = image.copy()
    small.thumbnail((256, 256), Image.Resampling.LANCZOS)
    rgb = np.asarray(small)
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)
    looked_at = np.ones(grey.shape, np.uint8)
    if is_on_white(small):
        inside = (~white_background(rgb)).astype(np.uint8)
        looked_at = cv2.erode(inside, np.ones((9, 9), np.uint8))
    seen = looked_at == 1
    if seen.sum() < 64 or grey[seen].var() < 25:
        return False
    return bool(cv2.Laplacian(grey, cv2.CV_32F)[seen].var() / grey[seen].var() < BLURRED)


def shown_name(path: Path) -> str:
    """A file's name as it can stand in a sentence."""
    return "".join(c if c.isprintable() else "?" for c in path.name)[:80] or "this folder"


def _upright(image: Image.Image) -> Image.Image:
    """As `ImageOps.exif_transpose`, which writes the EXIF data anew and fails where any of it is odd."""
    how = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
    return image if how is None else image.transpose(how)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: convert() would clip it instead of scaling it
        grey, clear = np.asarray(image), image.info.get("transparency")
        image = Image.fromarray((grey // 257).astype(np.uint8))
        if clear is not None:
            image.putalpha(Image.fromarray(np.where(grey == clear, 0, 255).astype(np.uint8)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")

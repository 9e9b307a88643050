"""Aspect-ratio buckets: the shapes in which photographs are learned, so that none has to be cut to a square.

In: a picture and the backbone's resolution.  Out: the picture at the nearest bucket's size, and what SDXL wants to be told
about that crop.  Buckets have about resolution^2 pixels, as other trainers make them.
"""

from __future__ import annotations

import math
from functools import lru_cache

from PIL import Image

Sizes = tuple[int, int, int, int, int, int]


@lru_cache
def buckets(resolution: int, step: int) -> tuple[tuple[int, int], ...]:
    """(width, height) of all buckets: multiples of `step`, at most resolution^2 pixels, sides of half to twice it."""
    low, high = max(resolution // 2 // step, 1) * step, resolution * 2
    shapes = set()
    for side in range(low, high + 1, step):
        other = min(resolution**2 // side // step * step, high)
        if other >= low:
            shapes |= {(side, other), (other, side)}
    return tuple(sorted(shapes))


def bucket_of(size: tuple[int, int], resolution: int, step: int) -> tuple[int, int]:
    """The bucket (width, height) nearest in aspect ratio to a picture of this size; the larger of equals."""
    ratio = math.log(size[0] / size[1])
    return min(buckets(resolution, step), key=lambda b: (round(abs(math.log(b[0] / b[1]) - ratio), 9), -b[0] * b[1]))


def fit(image: Image.Image, width: int, height: int) -> tuple[Image.Image, Sizes]:
    """The picture resized to cover width x height and cropped in the middle, with SDXL's size conditioning: height and
    width before, top and left of the crop in pixels of the resized picture, height and width after."""
    image = image.convert("RGB")
    before = image.size
    scale = max(width / before[0], height / before[1])
    covering = max(round(before[0] * scale), width), max(round(before[1] * scale), height)
    if covering != before:
        image = image.resize(covering, Image.Resampling.LANCZOS)
    left, top = (covering[0] - width) // 2, (covering[1] - height) // 2
    if covering != (width, height):
        image = image.crop((left, top, left + width, top + height))
    return image, (before[1], before[0], top, left, height, width)

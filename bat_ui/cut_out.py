"""Cut the subject of a photo out onto white, for backbones that know only white backgrounds.

In: an RGB picture.  Out: the picture with everything but the subject painted white, and the mask.  GrabCut (colour
models of subject and background plus a smooth border) is started from three ellipses of different sizes in the middle
of the picture; a pixel belongs to the subject if two of the three agree, and a last GrabCut on a larger copy settles
the border.  Left out on purpose: learned segmentation (weights to download) and borders of single hairs.
"""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

GUESS_SIDE = 160  # pixels, longest side of the copy that the three guesses are made on
BORDER_SIDE = 256  # pixels, longest side of the copy that the border is settled on
GUESSES = (0.32, 0.38, 0.44)  # half axes of the ellipses, as a part of the picture's width; the height gets 5 % more
LEAST, MOST = 0.01, 0.92  # a mask that covers less or more of the picture found no subject
NEAR_WHITE = 244  # out of 255, in every channel: white as JPEG leaves it


def cut_out_subject(image: Image.Image) -> tuple[Image.Image, np.ndarray | None]:
    """The picture (RGB, any size) with its background painted white, and the subject's mask (height, width) bool.

    A picture that is already on white comes back as the same object, with the mask of what is not background. If no
    subject is found (the mask would be almost nothing or almost everything) the picture comes back as the same object
    and the mask is None. The same picture always gives the same result.
    """
    rgb = np.asarray(image)
    if is_on_white(image):
        mask = ~white_background(rgb)
        return image, mask if mask.any() else None
    small = _reduced(rgb, BORDER_SIDE)
    mask = _settled(small, _guessed_votes(small))
    if not LEAST <= mask.mean() <= MOST:
        return image, None
    alpha = _smooth_alpha(mask, image.size)
    cut = 255 - (255 - rgb.astype(np.float32)) * alpha[..., None]
    return Image.fromarray(cut.round().astype(np.uint8)), alpha >= 0.5


def is_on_white(image: Image.Image) -> bool:
    """True if at least three fifths of the picture's outermost pixels are white: drawings may touch the frame."""
    rgb = np.asarray(image)
    frame = np.concatenate([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]])
    return bool((frame.min(axis=1) >= NEAR_WHITE).mean() >= 0.6)


def white_background(rgb: np.ndarray) -> np.ndarray:
    """The white pixels that hang together with the frame: white inside the subject is not background."""
    white = (rgb.min(axis=2) >= NEAR_WHITE).astype(np.uint8)
    _, labels = cv2.connectedComponents(np.pad(white, 1, constant_values=1), connectivity=4)
    return labels[1:-1, 1:-1] == labels[0, 0]


def subject_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Smallest box (left, top, right, bottom) in pixels, right and bottom exclusive, around a mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _guessed_votes(rgb: np.ndarray) -> np.ndarray:
    """How many of the three guesses, 0 to 3, take each pixel for the subject, as float32 at the size of `rgb`."""
    small = _reduced(rgb, GUESS_SIDE)
    height, width = small.shape[:2]
    y, x = np.mgrid[:height, :width]
    votes = np.zeros((height, width), np.float32)
    for axis in GUESSES:
        # The centre lies a little low, and only three sides are surely background: subjects stand on the lower frame.
        inside = ((x / width - 0.5) / axis) ** 2 + ((y / height - 0.53) / (1.05 * axis)) ** 2 < 1
        labels = np.where(inside, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
        rim = max(2, round(0.03 * max(height, width)))
        labels[:rim] = labels[:, :rim] = labels[:, -rim:] = cv2.GC_BGD
        votes += _tidy(_grab_cut(small, labels, steps=5))
    return cv2.resize(votes, rgb.shape[1::-1], interpolation=cv2.INTER_LINEAR)


def _settled(rgb: np.ndarray, votes: np.ndarray) -> np.ndarray:
    """The majority's mask with its border settled by GrabCut; where all three agree, nothing is left to settle."""
    majority = votes >= 1.5
    near = np.ones((9, 9), np.uint8)
    surely_outside = cv2.dilate((votes > 0.1).astype(np.uint8), near) == 0
    surely_inside = cv2.erode((votes > 2.9).astype(np.uint8), near) == 1
    if majority.mean() < LEAST or not surely_outside.any():
        return majority
    labels = np.where(majority, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[surely_inside] = cv2.GC_FGD
    labels[surely_outside] = cv2.GC_BGD
    return _tidy(_grab_cut(rgb, labels, steps=2))


def _grab_cut(rgb: np.ndarray, labels: np.ndarray, steps: int) -> np.ndarray:
    if not np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).any():
        return np.zeros(labels.shape, bool)
    cv2.setRNGSeed(0)  # GrabCut starts its colour models by k-means with random centres
    background, subject = np.zeros((1, 65)), np.zeros((1, 65))
    bgr = np.ascontiguousarray(rgb[..., ::-1])
    cv2.grabCut(bgr, labels, None, background, subject, steps, cv2.GC_INIT_WITH_MASK)
    return np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))


def _tidy(mask: np.ndarray) -> np.ndarray:
    """Without specks and thin bridges, only parts of at least a quarter of the largest, small holes filled."""
    brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, brush)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(opened, connectivity=4)
    if count < 2:
        return np.zeros(mask.shape, bool)
    areas = stats[1:, cv2.CC_STAT_AREA]
    kept = np.isin(labels, 1 + np.flatnonzero(areas >= areas.max() / 4))
    count, labels, stats, _ = cv2.connectedComponentsWithStats((~kept).astype(np.uint8), connectivity=4)
    frame = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    holes = [i for i in range(1, count) if i not in frame and stats[i, cv2.CC_STAT_AREA] < 0.03 * mask.size]
    return kept | np.isin(labels, holes)


def _smooth_alpha(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The mask at the picture's full size (width, height) as 0..1, with a soft border a little inside the subject."""
    full = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    full = cv2.GaussianBlur(full, (0, 0), max(0.6, 0.8 * size[0] / mask.shape[1]), borderType=cv2.BORDER_REPLICATE)
    return np.clip((full - 0.4) / 0.3, 0, 1)


def _reduced(rgb: np.ndarray, side: int) -> np.ndarray:
    """A copy with a longest side of at most `side` pixels."""
    scale = side / max(rgb.shape[:2])
    if scale >= 1:
        return rgb
    size = max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale))
    return cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)

"""ALBAT, the mathematics: which backbone images help an adaptation, judged from gradient sketches (theory.md).

In: a model with LoRA layers (sketch) or plain arrays of sketches (everything else). Out: verdicts for groups of
images, a ranking and its predicted error. Knows torch and numpy only: no diffusion library, no disk, no page, no
global state.
"""

from bat_ui.albat.benefit import asymptotic_error, gradient_cosine
from bat_ui.albat.selection import RULES, Assessment, Selection, Sketches, assess, make_sketches, select
from bat_ui.albat.sketch import BatchSketch, Projection, make_projection, sketch
from bat_ui.albat.validity import cluster

__all__ = [
    "RULES",
    "Assessment",
    "BatchSketch",
    "Projection",
    "Selection",
    "Sketches",
    "assess",
    "asymptotic_error",
    "cluster",
    "gradient_cosine",
    "make_projection",
    "make_sketches",
    "select",
    "sketch",
]

"""ALBAT, the mathematics: which backbone images help an adaptation, judged from gradient sketches (theory.md).

In: a model with LoRA layers (sketch) or plain arrays of sketches (everything else). Out: verdicts for groups of
images, a ranking and its predicted error. Knows torch and numpy only: no diffusion library, no disk, no page, no
global state.
"""

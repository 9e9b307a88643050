"""What CLIP says of candidates beside how near they are."""

import torch

from bat_ui.backbones import load_backbone
from bat_ui.search import FEW, fitting_captions, open_store


def test_captions_of_other_pictures_are_found_and_own_ones_left_alone():
    """On the built-in store and its CLIP model: what a person would call wrong is mostly seen, what is right hardly ever."""
    backbone = load_backbone()
    store = open_store(backbone)
    rows = torch.randperm(store.count, generator=torch.Generator().manual_seed(0))[:200].tolist()
    vectors, texts = store.vectors[rows], backbone.clip.embed_texts([store.captions[i] for i in rows])
    assert sum(fitting_captions(vectors, texts)) >= 190
    assert sum(fitting_captions(vectors, texts.roll(1, 0))) <= 60


def test_a_caption_fits_unless_a_quarter_of_all_are_nearer():
    pictures = torch.eye(FEW)
    captions = torch.eye(FEW)
    captions[0] = 0
    captions[1:6, 0] = 0.5
    assert fitting_captions(pictures, captions) == [True] * FEW  # five of twenty are nearer to the first picture
    captions[6, 0] = 0.5
    assert fitting_captions(pictures, captions) == [False] + [True] * (FEW - 1)
    assert fitting_captions(pictures[:9], captions[:9]) == [True] * 9

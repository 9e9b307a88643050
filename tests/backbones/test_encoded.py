"""Encoded pictures: rows, buckets and joining keep everything that belongs to a picture together."""

import pytest
import torch

from bat_ui.backbones.encoded import Encoded


def mixed():
    shapes = [(4, 2, 3), (4, 3, 2), (4, 2, 3)]
    latents = tuple(torch.full(shape, float(i)) for i, shape in enumerate(shapes))
    numbered = torch.arange(3.0)
    return Encoded(latents, numbered.view(3, 1, 1), numbered, numbered[:, None], numbered.expand(6, 3).T, ("a", "b", "c"))


@pytest.mark.parametrize("rows", [[2, 0, 0], torch.tensor([2, 0, 0]), slice(0, 3, 2)])
def test_rows_are_taken_from_everything(rows):
    taken = mixed()[rows]
    expected = [0.0, 2.0] if isinstance(rows, slice) else [2.0, 0.0, 0.0]
    assert isinstance(taken.latents, torch.Tensor)
    for values in (taken.latents[:, 0, 0, 0], taken.states[:, 0, 0], taken.weights, taken.pooled[:, 0], taken.sizes[:, 0]):
        assert values.tolist() == expected
    assert taken.captions == tuple("abc"[int(i)] for i in expected)


def test_buckets_are_the_rows_of_each_shape():
    assert [rows.tolist() for rows in mixed().buckets] == [[0, 2], [1]]
    assert [rows.tolist() for rows in mixed()[[0, 2]].buckets] == [[0, 1]]


def test_joining_keeps_the_order_and_what_all_parts_have():
    whole = Encoded.cat([mixed()[[0]], mixed()[[2]]])
    assert whole.latents.shape == (2, 4, 2, 3) and whole.captions == ("a", "c") and whole.weights.tolist() == [0.0, 2.0]
    bare = Encoded(torch.zeros(1, 4, 3, 2), torch.zeros(1, 1, 1))
    uneven = Encoded.cat([mixed()[[0]], bare])
    assert len(uneven.latents) == 2 and len(uneven.buckets) == 2 and uneven.pooled is None and uneven.captions == ()

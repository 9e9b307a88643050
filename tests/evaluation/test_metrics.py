"""Each metric against a naive twin."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from bat_ui.backbones import load_backbone
from bat_ui.evaluation import metrics
from bat_ui.presets import Preset


@pytest.fixture(scope="module")
def backbone(tiny_backbone_folder):
    return load_backbone(str(tiny_backbone_folder))


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=-1)


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_the_loss_is_the_mean_over_all_draws_one_by_one(rows, backbone):
    backbone = replace(backbone, preset=Preset("a test's", rows=rows))
    pictures = [Image.new("RGB", (64, 64), color) for color in ("red", "blue", "white")]
    images = backbone.encode(pictures, ["a dog", "a cat", "a flat cat"])
    draws = metrics.common_draws(backbone, 5)
    expected = torch.zeros(3)
    with torch.no_grad():
        for i in range(3):
            for t, noise in zip(*draws):
                noisy = backbone.pipeline.scheduler.add_noise(images.latents[i : i + 1], noise[None], t[None])
                made = backbone.unet(noisy, t[None], images.states[i : i + 1]).sample
                if backbone.pipeline.scheduler.config.prediction_type == "v_prediction":
                    wanted = backbone.pipeline.scheduler.get_velocity(images.latents[i : i + 1], noise[None], t[None])
                else:
                    wanted = noise[None]
                expected[i] += ((made - wanted) ** 2).mean() / 5
    assert torch.allclose(metrics.denoising_loss(backbone, images, draws), expected, rtol=1e-4)


def test_common_draws_are_stratified_and_always_the_same(backbone):
    first, second = metrics.common_draws(backbone, 10), metrics.common_draws(backbone, 10)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert sorted((first[0] // 100).tolist()) == list(range(10))


def test_similarity_is_the_mean_over_all_pairs():
    a, b = unit(3, 7), unit(4, 7, seed=1)
    assert metrics.similarity(a, b) == pytest.approx(np.mean([float(x @ y) for x in a for y in b]), abs=1e-6)


def test_paired_similarity_is_the_mean_over_own_pairs():
    a, b = unit(4, 7), unit(4, 7, seed=1)
    assert metrics.paired_similarity(a, b) == pytest.approx(np.mean([float(x @ y) for x, y in zip(a, b)]), abs=1e-6)


def test_diversity_is_the_mean_distance_within_prompts_only():
    v = unit(2, 3, 5)
    pairs = [1 - float(v[p, i] @ v[p, j]) for p in range(2) for i in range(3) for j in range(3) if i != j]
    assert metrics.diversity(v) == pytest.approx(np.mean(pairs), abs=1e-6)
    assert metrics.diversity(v[:, :1].expand(-1, 3, -1)) == pytest.approx(0, abs=1e-6)


def test_pixel_distance_of_black_and_white_is_one_and_of_grey_is_half():
    black, white, grey = (Image.new("RGB", (8, 8), c) for c in ("black", "white", (51, 51, 51)))
    assert metrics.pixel_distance([black], [white]) == pytest.approx(1)
    assert metrics.pixel_distance([black, black], [white, grey]) == pytest.approx((1 + 0.2) / 2)
    assert metrics.pixel_distance([black], [white.resize((16, 16))]) == pytest.approx(1)


def test_the_identifier_is_dropped_as_a_word_only():
    assert metrics.without_identifier("a sks sksophone of sks cat", "sks") == "a sksophone of cat"

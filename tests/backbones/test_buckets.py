"""Aspect-ratio buckets: what SD users expect, and pictures that are cropped as little as possible."""

import math

import pytest
from PIL import Image

from bat_ui.backbones.buckets import bucket_of, buckets, fit


@pytest.mark.parametrize("resolution, step", [(512, 64), (768, 64), (1024, 64), (32, 8)])
def test_buckets_are_multiples_of_the_step_within_the_pixels_of_the_square(resolution, step):
    found = buckets(resolution, step)
    assert (resolution, resolution) in found
    for width, height in found:
        assert width % step == height % step == 0 and width * height <= resolution**2
        assert resolution // 2 <= min(width, height) and max(width, height) <= 2 * resolution
        assert (height, width) in found


def test_the_buckets_at_512_are_the_usual_ones():
    usual = {(512, 512), (576, 448), (640, 384), (704, 320), (768, 320), (832, 256), (1024, 256)}
    assert usual <= set(buckets(512, 64))


@pytest.mark.parametrize("size", [(100, 100), (4000, 3000), (300, 400), (1920, 1080), (500, 3000), (1, 1)])
def test_no_other_bucket_is_nearer_in_shape(size):
    chosen = bucket_of(size, 512, 64)
    apart = {b: abs(math.log(b[0] / b[1]) - math.log(size[0] / size[1])) for b in buckets(512, 64)}
    assert apart[chosen] == pytest.approx(min(apart.values()))


def test_a_picture_covers_its_bucket_and_loses_the_same_on_both_sides():
    image = Image.new("RGB", (200, 100), "red")
    image.paste("blue", (0, 0, 100, 100))
    fitted, sizes = fit(image, 64, 64)
    assert fitted.size == (64, 64) and sizes == (100, 200, 0, 32, 64, 64)
    assert fitted.getpixel((0, 32)) == (0, 0, 255) and fitted.getpixel((63, 32)) == (255, 0, 0)


def test_a_square_is_only_resized():
    image = Image.effect_noise((80, 80), 90).convert("RGB")
    fitted, sizes = fit(image, 32, 32)
    assert fitted.tobytes() == image.resize((32, 32), Image.Resampling.LANCZOS).tobytes()
    assert sizes == (80, 80, 0, 0, 32, 32)
    assert fit(fitted, 32, 32)[0].tobytes() == fitted.tobytes()

"""Sketches of the real model: the projection of explicit gradients of the backbone's own denoising loss."""

import pytest
import torch

from bat_ui import sketching
from bat_ui.albat.sketch import lora_layers, make_projection
from bat_ui.backbones.encoded import Encoded
from bat_ui.seeds import step_generator
from bat_ui.settings import SelectionSettings, TrainingSettings
from bat_ui.sketching import CANDIDATE_STREAM, JUDGE_STREAM, SUBJECT_DRAWS, sketch_candidates, sketch_folds, sketch_images
from bat_ui.training.lora import lora


def test_a_sketched_gradient_is_the_projected_gradient_of_the_denoising_loss(backbone, pictures):
    images, draw = pictures(2, 0), backbone.draw(3, step_generator(0, 1))
    with lora(backbone, 2, 0) as weights:
        rng = torch.Generator().manual_seed(1)
        for p in weights.values():
            p.data += 0.1 * torch.randn(p.shape, generator=rng)
        projection = make_projection(backbone.unet, 32, 0)
        found = sketch_images(backbone, images, torch.arange(2), draw, projection, 0, "gauss_newton", 0)
        for i in range(2):
            loss = 0
            for t, noise in zip(*draw):
                prediction, target = backbone.predict(images[[i]], t[None], noise[None])
                loss = loss + (prediction - target).square().mean() / 3
            explicit = dict(zip(weights, torch.autograd.grad(loss, list(weights.values()))))
            projected = 0
            for layer in lora_layers(backbone.unet):
                for name in (layer.a_weight, layer.b_weight):
                    projected = projected + projection.apply(name, explicit[name].flatten()[None])
            torch.testing.assert_close(found.gradients[i], projected[0], atol=1e-5, rtol=1e-3)
            assert float(found.loss[i]) == pytest.approx(loss.item(), rel=1e-4)


def test_the_risk_is_the_mean_curvature_of_the_first_candidates(backbone, pictures, monkeypatch):
    monkeypatch.setattr(sketching, "CLASS_LIKE", 2)
    settings, training = SelectionSettings(draws=2, sketch_size=32), TrainingSettings(steps=0, rank=2)
    vectors = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    made = sketch_candidates(
        backbone, tuple("abcde"), vectors, pictures(5, 0), pictures(2, 1), settings, training, lambda *_: None
    )
    mean = sum(u.T @ u for u in made.curvature[:2]) / 2
    torch.testing.assert_close(made.risk.T @ made.risk, mean)


def test_pictures_beyond_the_shortlist_change_nothing_of_those_in_it(backbone, pictures):
    settings, training = SelectionSettings(shortlist=4, draws=2, sketch_size=32), TrainingSettings(steps=0, rank=2)
    vectors, candidates = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), pictures(6, 0)
    few, all_of_them = (
        sketch_candidates(
            backbone, tuple("abcdef"[:n]), vectors[:n], candidates[:n], pictures(2, 1), settings, training, lambda *_: None
        )
        for n in (4, 6)
    )
    torch.testing.assert_close(all_of_them.curvature[:4], few.curvature, rtol=1e-4, atol=1e-6)


def test_a_fold_knows_nothing_of_the_picture_that_judges_it(backbone, pictures):
    settings, training = SelectionSettings(draws=2, sketch_size=32), TrainingSettings(steps=2, rank=2, batch_size=2)
    candidates, subject, other = pictures(2, 0), pictures(3, 1), pictures(3, 2)
    changed = Encoded.cat([other[torch.tensor([0])], subject[torch.tensor([1, 2])]])
    made, again = (
        sketch_folds(backbone, ("a", "b"), candidates, each, settings, training, lambda *_: None)
        for each in (subject, changed)
    )
    assert torch.equal(made["fold_gradients"][0], again["fold_gradients"][0])
    assert not torch.allclose(made["judges"][0], again["judges"][0])
    assert not torch.allclose(made["fold_gradients"][1], again["fold_gradients"][1])


def test_the_judges_of_a_fold_are_their_summed_gradients_in_draws_of_their_own(backbone, pictures):
    settings, training = SelectionSettings(draws=2, sketch_size=32, seed=4), TrainingSettings(steps=0, rank=2)
    subject = pictures(8, 1)  # so that each of four folds leaves out two
    made = sketch_folds(backbone, ("a",), pictures(1, 0), subject, settings, training, lambda *_: None)
    with lora(backbone, 2, 4) as weights:  # as the surrogates of no steps
        projection = make_projection(backbone.unet, 32, 4)
        for fold in range(4):
            draw = backbone.draw(SUBJECT_DRAWS, step_generator(4, -JUDGE_STREAM - fold))
            for t, noise, found in zip(*draw, made["judges"][fold]):
                loss = 0
                for i in (fold, fold + 4):
                    prediction, target = backbone.predict(subject[[i]], t[None], noise[None])
                    loss = loss + (prediction - target).square().mean()
                explicit = torch.autograd.grad(loss, list(weights.values()))
                projected = sum(projection.apply(name, g.flatten()[None]) for name, g in zip(weights, explicit))
                torch.testing.assert_close(found, projected[0], atol=1e-5, rtol=1e-3)


def test_a_candidates_sketch_does_not_depend_on_its_neighbours(backbone, pictures):
    settings = SelectionSettings(draws=2, sketch_size=32)
    training = TrainingSettings(steps=2, rank=2, batch_size=2)
    everyone, subject = pictures(40, 0), pictures(2, 1)
    vectors = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))

    def sketch(rows):
        part = everyone[rows]
        ids = tuple(f"c{i}" for i in rows)
        return sketch_candidates(backbone, ids, vectors[rows], part, subject, settings, training, lambda *_: None)

    whole, part = sketch(list(range(40))), sketch([35, 3])
    torch.testing.assert_close(whole.gradients[[35, 3]], part.gradients, atol=1e-6, rtol=1e-3)
    own, other = whole.curvature[[35, 3]], part.curvature  # but for one factor, by which all of a set are sized
    torch.testing.assert_close(own / own.norm(), other / other.norm(), atol=1e-6, rtol=1e-3)


def test_candidates_weigh_as_much_as_their_gauss_newton_matrices(backbone, pictures):
    """On the real model residuals are far from white, and the gradients' own covariance is of another size."""
    settings, candidates, subject = SelectionSettings(draws=3, sketch_size=64), pictures(12, 0), pictures(2, 1)
    training = TrainingSettings(steps=0, rank=2)  # so that the surrogate is the untrained adapter
    vectors, ids = torch.randn(12, 8, generator=torch.Generator().manual_seed(0)), tuple("abcdefghijkl")
    made = sketch_candidates(backbone, ids, vectors, candidates, subject, settings, training, lambda *_: None)
    draw = backbone.draw(3, step_generator(0, -CANDIDATE_STREAM))
    with lora(backbone, 2, 0):
        projection = make_projection(backbone.unet, 64, 0)
        sizes = [
            sketch_images(backbone, candidates, torch.arange(12), draw, projection, 40, kind, 5).curvature.square().sum()
            for kind in ("gauss_newton", "fisher")
        ]
    assert made.curvature.square().sum() == pytest.approx(float(sizes[0]), rel=0.15)
    assert float(sizes[1]) != pytest.approx(float(sizes[0]), rel=0.5)
